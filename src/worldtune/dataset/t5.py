"""Stage t5: the embedding of each clip's text, t5_xxl/<clip_id>.pickle or .safetensors.

It is made from the caption by an encoder that is loaded once a shard, or on each GPU of the job; or given (text_files).
"""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from worldtune.common.files import sha256_file, syncs_left_to_caller
from worldtune.common.progress import progress
from worldtune.dataset.clips import t5_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.ledger import Ledger, open_ledger
from worldtune.dataset.make_captions import caption_stage
from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, read_manifest, write_manifest
from worldtune.dataset.text_files import store_inputs, take_texts, write_text_file
from worldtune.dataset.verification import captions_of_rows

VERSION = 2

STAGE = "t5"
logger = logging.getLogger(__name__)

COLUMNS: dict[str, pa.DataType] = {
    **CLIP_COLUMNS,
    "caption_sha256": pa.string(),
    "num_tokens": pa.int64(),
    "truncated": pa.bool_(),
    "channels": pa.int64(),
    "precision": pa.string(),
    "t5_sha256": pa.string(),
}
"""Columns of the manifest."""


def embed_captions(
    name: str,
    config: DatasetConfig,
    shard: str,
    *,
    datasets: Path = Path("datasets"),
    checkpoints: Path = Path("checkpoints"),
    device: str = "auto",
) -> Path:
    """Embed the captions of a shard and write its manifest; only captions that changed go through the encoder.

    Args:
        name: the dataset's name.
        config: the dataset's configuration.
        shard: four digits.
        datasets: folder of all datasets.
        checkpoints: folder of all checkpoints, which holds the text encoder.
        device: "cuda", "cpu" or "auto".

    Returns:
        The manifest's path. It has a row for each clip with a caption.

    Raises:
        WorldtuneError: there is no caption manifest, or the encoder cannot be loaded.
    """
    root = datasets / name
    path = manifest_path(root, STAGE, shard)
    with open_ledger(root, STAGE, shard) as ledger:
        label = f"{STAGE} {name} {shard}"
        if config.text == "given":
            rows = take_texts(name, config, shard, ledger, label, datasets=datasets)
        else:
            stage, columns = caption_stage(config)
            captions = read_manifest(manifest_path(root, stage, shard), columns)
            rows = _embed(captions, ledger, checkpoints / config.text_encoder, config, device, label)
        write_manifest(path, rows, COLUMNS)
    return path


def _embed(
    captions: list[dict[str, Any]], ledger: Ledger, folder: Path, config: DatasetConfig, device: str, label: str
) -> list[dict[str, Any]]:
    """Return a row for each usable caption, from the ledger where caption and encoder are as they were."""
    # Imported here: the encoder's libraries take seconds, and reading this module's columns must not need them.
    from worldtune.annotate.folder_hash import folder_sha256
    from worldtune.annotate.t5 import load_encoder

    root = ledger.root
    encoder_hash = folder_sha256(folder)
    ledger.adopt([caption["clip_id"] for caption in captions])
    rows: dict[str, dict[str, Any]] = {}
    todo: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for caption in captions:
        if caption["status"] != "ok":
            continue
        inputs = {
            "caption_sha256": caption["caption_sha256"],
            "encoder_sha256": encoder_hash,
            "max_tokens": config.text_max_tokens,
            "precision": config.text_precision,
            "version": VERSION,
        } | store_inputs(config)
        record = ledger.current(caption["clip_id"], inputs)
        if record is None:
            todo.append((caption, inputs))
        else:
            rows[caption["clip_id"]] = record["row"]
    logger.info("%s: %d captions, %d of them as they were", label, len(rows) + len(todo), len(rows))
    if todo:
        encoder = load_encoder(folder, device, config.text_precision)
        texts = captions_of_rows(root, [caption for caption, _ in todo], caption_stage(config)[0])
        embeddings = encoder.encode(texts, config.text_max_tokens)
        # In advance and together, since each waits for the disk.
        ledger.start(*(caption["clip_id"] for caption, _ in todo))
        with ledger.results_in_groups(), syncs_left_to_caller():
            for _, (index, embedding) in zip(progress(todo, label), embeddings, strict=True):
                caption, inputs = todo[index]
                path = t5_path(root, caption["clip_id"], config.text_store)
                write_text_file(root, caption["clip_id"], config.text_store, embedding.tokens)
                row = {column: caption[column] for column in (*CLIP_COLUMNS, "caption_sha256")} | {
                    "num_tokens": len(embedding.tokens),
                    "truncated": embedding.truncated,
                    "channels": encoder.channels,
                    "precision": encoder.precision,
                    "t5_sha256": sha256_file(path),
                }
                ledger.finish(caption["clip_id"], inputs, (path,), row)
                rows[caption["clip_id"]] = row
    return list(rows.values())
