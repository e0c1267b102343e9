"""The values that can change the output of a dataset stage: what the graph records and what the scripts check."""

from typing import Any

from worldtune.common.versions import stage_version
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.listing import list_dataset

STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "render_synthetic": ("world", "views", "scenes", "seed", "num_frames", "width", "height", "fps", "version"),
    "list_repository": ("repository", "revision", "folder", "caption_column", "version"),
    "fetch_videos": ("max_clips", "caption_column", "min_success", "num_shards", "version"),
    "cuts": ("kind", "path", "listing", "cut", "version"),
    "ingest": ("kind", "path", "listing", "min_frames", "version"),
    "captions": ("kind", "path", "listing", "version"),
    "make_captions": ("kind", "path", "listing", "captioner", "version"),
    "t5": ("text", "given_texts", "text_store", "text_encoder", "text_max_tokens", "text_precision", "version"),
    "controls": ("control", "given", "version"),
    "annotate": ("control", "annotator", "prompts", "version"),
    "validate": (
        *("controls", "views", "held_out_fraction", "min_clips", "text", "text_store", "text_encoder"),
        *("text_max_tokens", "version"),
    ),
}
"""Names of the values of each stage; a rule has one param for each."""

STAGE_MODULES = {
    "render_synthetic": "demo/write.py",
    "list_repository": "dataset/repository.py",
    "fetch_videos": "dataset/download.py",
    "cuts": "dataset/cuts.py",
    "ingest": "dataset/ingest.py",
    "captions": "dataset/captions.py",
    "make_captions": "dataset/make_captions.py",
    "t5": "dataset/t5.py",
    "controls": "dataset/controls.py",
    "annotate": "dataset/annotation.py",
    "validate": "dataset/validate.py",
}
"""The module of each stage, which holds its VERSION."""


def stage_values(
    stage: str, name: str, config: DatasetConfig, *, shard: str | None = None, control: str | None = None
) -> dict[str, Any]:
    """Return the canonical values of one job.

    Args:
        stage: a key of STAGE_KEYS.
        name: the dataset's name.
        config: the dataset's configuration.
        shard: four digits, for stages that work by shard.
        control: the control's kind, for the stages "controls" and "annotate".

    Returns:
        A JSON value for each name in STAGE_KEYS[stage].
    """
    values: dict[str, Any] = {"version": stage_version(STAGE_MODULES[stage]), "control": control}
    for key in STAGE_KEYS[stage]:
        if key in values:
            continue
        if key == "scenes" or (key == "listing" and stage in ("cuts", "ingest")):
            values[key] = list_dataset(name, config).videos(_required(shard))
        elif key == "annotator":
            annotator = config.annotate.find(_required(control))
            version = stage_version(f"annotate/{control}.py")
            values[key] = annotator.model_dump(mode="json") | {"version": version} if annotator else None
        elif key == "prompts":
            annotator = config.annotate.find(_required(control))
            reads = annotator is not None and annotator.reads_prompts
            values[key] = list_dataset(name, config).prompts(_required(shard)) if reads else []
        elif key == "given_texts":
            listing = list_dataset(name, config) if config.text == "given" else None
            values[key] = listing.texts(_required(shard), config.views, config.view_text) if listing else []
        elif key == "given":
            values[key] = list_dataset(name, config).controls(_required(shard), _required(control))
        elif key == "listing":
            values[key] = list_dataset(name, config).captions(_required(shard))
        elif key == "captioner":
            values[key] = config.captioner.result_values() if config.captioner else None
        else:
            values[key] = config.model_dump(mode="json")[key]
    return {key: values[key] for key in STAGE_KEYS[stage]}


def _required(value: str | None) -> str:
    if value is None:
        raise ValueError("this stage works by shard, and the stages controls and annotate by control")
    return value
