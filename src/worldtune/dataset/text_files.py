"""Given text embeddings: read in any form of the original's, joined, checked and written in the dataset's own form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import sha256_file
from worldtune.dataset.clips import TEXT_SUFFIXES, TextStore, clip_id, t5_path
from worldtune.dataset.config import TEXT_CHANNELS, DatasetConfig
from worldtune.dataset.layout import GIVEN_SUFFIXES, given_path
from worldtune.dataset.ledger import Ledger
from worldtune.dataset.listing import VideoRow, list_source
from worldtune.dataset.source_clips import SourceClip
from worldtune.dataset.text import read_t5_tokens, write_t5
from worldtune.dataset.work import Outcome, Task, do_tasks

VERSION = 1
"""Of what is done here; the stage's own VERSION is that of embeddings which are made."""
MAX_GIVEN_TOKENS = 8192
"""Most tokens of a given file; what is beyond the dataset's text_max_tokens is cut off."""


@dataclass(frozen=True, kw_only=True)
class TextJob:
    """The given embedding of one clip."""

    root: Path
    source: Path
    clip: SourceClip
    files: list[VideoRow]
    """[key, size, mtime_ns] of each part."""
    max_tokens: int
    channels: int | None
    """Width that the dataset's encoder has, if it is known."""
    store: TextStore

    @property
    def clip_id(self) -> str:
        """The clip's name."""
        return clip_id(self.clip.key, self.clip.start_s, self.clip.end_s)


def store_inputs(config: DatasetConfig) -> dict[str, str]:
    """Return what the ledger of a dataset remembers of its text_store; nothing of the usual one."""
    return {} if config.text_store == "pickle" else {"store": config.text_store}


def write_text_file(root: Path, clip: str, store: TextStore, embedding: np.ndarray) -> Path:
    """Write a clip's embedding (float [n, C]) and remove the one in the other format; errors as those of write_t5."""
    path = t5_path(root, clip, store)
    write_t5(path, embedding)
    for other in TEXT_SUFFIXES:
        if other != store:
            t5_path(root, clip, other).unlink(missing_ok=True)
    return path


def take_texts(
    name: str, config: DatasetConfig, shard: str, ledger: Ledger, label: str, *, datasets: Path
) -> list[dict[str, Any]]:
    """Take over the given embeddings of a shard; only those whose files changed are read.

    Args:
        name: the dataset's name.
        config: the dataset's configuration.
        shard: four digits.
        ledger: of stage t5.
        label: the stage and shard, for the log.
        datasets: folder of all datasets.

    Returns:
        A row of the stage's manifest for each clip, with the reason where its embedding cannot be used.

    Raises:
        WorldtuneError: the source folder does not exist.
    """
    listing = list_source(name, config, datasets)
    tasks = []
    for clip in listing.clips(shard):
        if not clip.has_video or clip.problem:
            continue
        job = TextJob(
            root=ledger.root,
            source=listing.source,
            clip=clip,
            files=listing.text_files(clip, config.views, config.view_text),
            max_tokens=config.text_max_tokens,
            channels=TEXT_CHANNELS.get(config.text_encoder),
            store=config.text_store,
        )
        inputs = {"files": job.files, "max_tokens": job.max_tokens, "channels": job.channels, "given": VERSION}
        tasks.append(Task(clip_id=job.clip_id, inputs=inputs | store_inputs(config), argument=job))
    # Files this small are read faster than a process starts.
    return do_tasks(ledger, tasks, take_text, take_text, label=label, processes=1)


def take_text(job: TextJob) -> Outcome:
    """Read the parts of a clip's embedding, write them as one, and return the clip's row."""
    try:
        parts = [_read_part(job, key) for key, _, _ in job.files]
        widths = sorted({part.shape[1] for part in parts})
        if len(widths) > 1:
            raise WorldtuneError(f"its parts have {' and '.join(map(str, widths))} channels; give them of one encoder")
        tokens = np.concatenate(parts)
        path = write_text_file(job.root, job.clip_id, job.store, tokens[: job.max_tokens])
    except WorldtuneError as error:
        for store in TEXT_SUFFIXES:
            t5_path(job.root, job.clip_id, store).unlink(missing_ok=True)
        return Outcome(row=_row(job, f"text embedding unusable: {error}"))
    facts = {
        "num_tokens": min(len(tokens), job.max_tokens),
        "truncated": len(tokens) > job.max_tokens,
        "channels": widths[0],
        "precision": None,
        "t5_sha256": sha256_file(path),
    }
    return Outcome(row=_row(job, "", **facts), outputs=(path,))


def _read_part(job: TextJob, key: str) -> np.ndarray:
    path = given_path(job.source, key)
    if not path.is_file():
        others = ", ".join(suffix for suffix in GIVEN_SUFFIXES if not key.endswith(suffix))
        raise WorldtuneError(f"expected it as {key} (or {others}) from the folder of the videos")
    try:
        return read_t5_tokens(path, MAX_GIVEN_TOKENS, job.channels)
    except WorldtuneError as error:
        # Rows are the same wherever the folders lie.
        raise WorldtuneError(str(error).replace(str(path), key)) from error


def _row(job: TextJob, reason: str, **facts: Any) -> dict[str, Any]:
    row = {
        "clip_id": job.clip_id,
        "source_key": job.clip.key,
        "start_s": job.clip.start_s,
        "end_s": job.clip.end_s,
        "status": "unusable" if reason else "ok",
        "reason": reason,
    }
    unknown = dict.fromkeys(("caption_sha256", "num_tokens", "truncated", "channels", "precision", "t5_sha256"))
    return row | unknown | facts
