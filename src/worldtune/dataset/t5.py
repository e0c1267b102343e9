"""Stage t5: the caption of each clip becomes t5_xxl/<clip_id>.pickle; the encoder is loaded once a shard."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import sha256_file, syncs_left_to_caller
from worldtune.common.progress import progress
from worldtune.dataset.captions import COLUMNS as CAPTION_COLUMNS
from worldtune.dataset.captions import STAGE as CAPTION_STAGE
from worldtune.dataset.clips import caption_path, t5_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.ledger import Ledger, open_ledger
from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, read_manifest, write_manifest
from worldtune.dataset.text import write_t5

VERSION = 1

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
        captions = read_manifest(manifest_path(root, CAPTION_STAGE, shard), CAPTION_COLUMNS)
        label = f"{STAGE} {name} {shard}"
        rows = _embed(captions, ledger, checkpoints / config.text_encoder, config.text_max_tokens, device, label)
        write_manifest(path, rows, COLUMNS)
    return path


def _embed(
    captions: list[dict[str, Any]], ledger: Ledger, folder: Path, max_tokens: int, device: str, label: str
) -> list[dict[str, Any]]:
    """Return a row for each usable caption, from the ledger where caption and encoder are as they were."""
    # Imported here: the encoder's libraries take seconds, and reading this module's columns must not need them.
    from worldtune.annotate.t5 import TextEncoder, encoder_sha256

    root = ledger.root
    encoder_hash = encoder_sha256(folder)
    ledger.adopt([caption["clip_id"] for caption in captions])
    rows: dict[str, dict[str, Any]] = {}
    todo: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for caption in captions:
        if caption["status"] != "ok":
            continue
        inputs = {
            "caption_sha256": caption["caption_sha256"],
            "encoder_sha256": encoder_hash,
            "max_tokens": max_tokens,
            "version": VERSION,
        }
        record = ledger.current(caption["clip_id"], inputs)
        if record is None:
            todo.append((caption, inputs))
        else:
            rows[caption["clip_id"]] = record["row"]
    logger.info("%s: %d captions, %d of them as they were", label, len(rows) + len(todo), len(rows))
    if todo:
        encoder = TextEncoder(folder, device)
        texts = [_read_caption(root, caption["clip_id"]) for caption, _ in todo]
        embeddings = encoder.encode(texts, max_tokens)
        # In advance and together, since each waits for the disk.
        ledger.start(*(caption["clip_id"] for caption, _ in todo))
        with ledger.results_in_groups(), syncs_left_to_caller():
            for _, (index, embedding) in zip(progress(todo, label), embeddings, strict=True):
                caption, inputs = todo[index]
                path = t5_path(root, caption["clip_id"])
                write_t5(path, embedding.tokens)
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


def _read_caption(root: Path, clip: str) -> str:
    path = caption_path(root, clip)
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WorldtuneError(f"{path} cannot be read: {error}. Run the captions stage again.") from error
