"""The stages whose manifests tell of a dataset's clips, as its configuration has them."""

from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.controls import control_columns, control_stage
from worldtune.dataset.download import COLUMNS as HDVILA_COLUMNS
from worldtune.dataset.fetched import COLUMNS as REPOSITORY_COLUMNS
from worldtune.dataset.fetched import STAGE as FETCH_STAGE
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.ingest import STAGE as INGEST_STAGE
from worldtune.dataset.make_captions import caption_stage
from worldtune.dataset.manifest import Columns
from worldtune.dataset.spans import COLUMNS as CUT_COLUMNS
from worldtune.dataset.spans import STAGE as CUT_STAGE
from worldtune.dataset.t5 import COLUMNS as T5_COLUMNS
from worldtune.dataset.t5 import STAGE as T5_STAGE

FETCH_COLUMNS: dict[str, Columns] = {"hdvila": HDVILA_COLUMNS, "huggingface": REPOSITORY_COLUMNS}
"""Columns of stage fetch_videos, by the kinds of dataset that have it."""


def dataset_stages(config: DatasetConfig) -> dict[str, Columns]:
    """Return the columns of the manifests by stage; each stage has one manifest a shard."""
    captions, columns = caption_stage(config)
    return {
        INGEST_STAGE: INGEST_COLUMNS,
        captions: columns,
        T5_STAGE: T5_COLUMNS,
        **{control_stage(kind, config): control_columns(kind, config) for kind in config.controls},
        **({FETCH_STAGE: FETCH_COLUMNS[config.kind]} if config.kind in FETCH_COLUMNS else {}),
        **({CUT_STAGE: CUT_COLUMNS} if config.cut is not None else {}),
    }
