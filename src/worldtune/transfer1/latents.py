"""Stage cache_latents: the first window of each clip of a shard through the video tokenizer, once for all its samples.

Training with data.cache_latents reads these files and encodes the hint alone. `worldtune.dataset.latents` says where
they lie and what they are. T frames, H height, W width.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, digest, read_json, sha256_file
from worldtune.common.progress import progress
from worldtune.dataset.clips import Clip, video_path
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.ingest import STAGE as INGEST_STAGE
from worldtune.dataset.latents import COLUMNS, STAGE, LatentCache, LatentsKind, inputs_key, inputs_text, latents_path
from worldtune.dataset.ledger import Ledger, open_ledger
from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, read_manifest, write_manifest
from worldtune.media.geometry import fit
from worldtune.media.video import read_frames
from worldtune.transfer1.denoiser import DTYPES
from worldtune.transfer1.tokenizer import VideoTokenizer

TENSOR = "latents"
"""Name of the only tensor of a file."""
MADE_FROM = "made_from"
"""Key of the file's only metadata: several would be written in an order of chance."""
logger = logging.getLogger(__name__)


def cache_latents(
    name: str,
    shard: str,
    kind: LatentsKind,
    *,
    datasets: Path,
    checkpoints: Path,
    device: torch.device,
    num_workers: int,
) -> Path:
    """Encode the clips of a shard and write its manifest; only clips whose inputs changed go through the tokenizer.

    Args:
        name: the dataset's name.
        shard: four digits.
        kind: what is made.
        datasets: folder of all datasets.
        checkpoints: folder of all checkpoints, which holds the tokenizer.
        device: where to encode.
        num_workers: processes that read videos ahead; 0 reads in this one.

    Returns:
        The manifest's path. It has a row for each usable clip of stage ingest; one that is too short says so.

    Raises:
        WorldtuneError: there is no manifest of stage ingest, the tokenizer cannot be loaded, or a video cannot be read.
    """
    root = datasets / name
    path = manifest_path(root, kind.stage, shard)
    with open_ledger(root, kind.stage, shard) as ledger:
        clips = read_manifest(manifest_path(root, INGEST_STAGE, shard), INGEST_COLUMNS)
        usable = [clip for clip in clips if clip["status"] == "ok"]
        label = f"{STAGE} {name} {shard}"
        rows = _encode(usable, ledger, kind, checkpoints / kind.tokenizer, device, num_workers, label)
        write_manifest(path, rows, COLUMNS)
    return path


def _encode(
    clips: list[dict[str, Any]],
    ledger: Ledger,
    kind: LatentsKind,
    folder: Path,
    device: torch.device,
    num_workers: int,
    label: str,
) -> list[dict[str, Any]]:
    """Return a row for each clip, from the ledger where clip and tokenizer are as they were."""
    tokenizer_sha256 = digest(read_json(folder / "files.json"))
    ledger.adopt([clip["clip_id"] for clip in clips])
    rows: list[dict[str, Any]] = []
    todo: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for clip in clips:
        inputs = kind.inputs(clip, tokenizer_sha256)
        record = ledger.current(clip["clip_id"], inputs)
        if clip["num_frames"] < kind.num_frames:
            reason = f"latents unusable: {clip['num_frames']} frames, a sample needs {kind.num_frames}"
            rows.append(_row(clip, inputs, "unusable", reason, None))
        elif record is not None:
            rows.append(record["row"])
        else:
            todo.append((clip, inputs))
    logger.info("%s: %d clips, %d of them to encode", label, len(clips), len(todo))
    if todo:
        tokenizer = VideoTokenizer(folder, kind.num_frames, device, DTYPES[kind.precision])
        windows = _Windows(ledger.root, kind, [clip for clip, _ in todo])
        # A forked worker sees that its parent was killed and ends.
        loader = DataLoader(
            windows,
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
            pin_memory=device.type == "cuda",
        )
        for (clip, inputs), window in zip(progress(todo, label), loader, strict=True):
            path = latents_path(ledger.root, kind, clip["clip_id"])
            ledger.start(clip["clip_id"])
            _write(path, tokenizer.encode_frames(window[None])[0], inputs)
            row = _row(clip, inputs, "ok", "", sha256_file(path))
            ledger.finish(clip["clip_id"], inputs, (path,), row)
            rows.append(row)
    return rows


def _row(
    clip: dict[str, Any], inputs: dict[str, Any], status: str, reason: str, latents_sha256: str | None
) -> dict[str, Any]:
    return {column: clip[column] for column in CLIP_COLUMNS} | {
        "status": status,
        "reason": reason,
        "key": inputs_key(inputs),
        "latents_sha256": latents_sha256,
    }


class _Windows(Dataset[Tensor]):
    """The first window of each clip, fitted as a sample of it is: uint8 [3, T, H, W]."""

    def __init__(self, root: Path, kind: LatentsKind, clips: list[dict[str, Any]]) -> None:
        self.root = root
        self.kind = kind
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        clip = self.clips[index]
        frames = read_frames(video_path(self.root, clip["clip_id"]), 0, self.kind.num_frames)
        return channels_first(fit(frames, self.kind.size_wh(clip["width"], clip["height"])).frames)


def channels_first(frames_thwc: np.ndarray) -> Tensor:
    """Return frames [T, H, W, 3] as a tensor [3, T, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(frames_thwc.transpose(3, 0, 1, 2)))


def _write(path: Path, latents: Tensor, inputs: dict[str, Any]) -> None:
    """Write latents [16, T, H, W] with what they were made from, whole or not at all."""
    with atomic_path(path) as temporary:
        save_file({TENSOR: latents.contiguous().cpu()}, temporary, metadata={MADE_FROM: inputs_text(inputs)})


def read_latents(cache: LatentCache, clip: Clip) -> Tensor:
    """Return the cached latents of a clip: [16, T, H, W] on the CPU, in the cache's precision, not scaled.

    Raises:
        WorldtuneError: the file is missing or damaged, or its latents were made from something else or have another
            shape or type.
    """
    path = cache.path(clip)
    manifests = manifest_path(cache.root, cache.kind.stage, "0000").parent
    advice = f"Delete it and {manifests}, then make them again: {cache.target()}."
    try:
        with safe_open(path, framework="pt") as file:
            made_from = (file.metadata() or {}).get(MADE_FROM)
            latents = file.get_tensor(TENSOR)
    except FileNotFoundError as error:
        raise WorldtuneError(
            f"{path} does not exist. Delete {manifests}, then make it again: {cache.target()}."
        ) from error
    except (OSError, SafetensorError) as error:
        raise WorldtuneError(f"{path} holds no latents ({error}). {advice}") from error
    expected = inputs_text(cache.inputs(clip))
    if made_from != expected:
        raise WorldtuneError(f"{path} was made from {made_from}, expected {expected}. {advice}")
    shape, dtype = cache.shape(clip), DTYPES[cache.kind.precision]
    if tuple(latents.shape) != shape or latents.dtype != dtype:
        raise WorldtuneError(
            f"{path} holds {latents.dtype} of shape {list(latents.shape)}, expected {dtype} of {list(shape)}. {advice}"
        )
    return latents
