"""Stage fetch_videos: the videos of an HD-VILA dataset, source/videos/<video_id>.mp4, each asked for by one job.

A download that breaks off is taken up again where it stopped, by the same job or the next. A video that could not be
downloaded keeps its row and its reason in the ledger, so that a repeated job does not ask for it again: what is gone
stays gone, and thousands of such requests get an address blocked. Only `forget_failed` (`make retry`) lets them be
tried again. A network that cannot be reached ends the job and is held against no video. So does, once all were tried, a
shard of which too little has arrived.
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from worldtune.common.disk import disk_errors_named
from worldtune.common.errors import WorldtuneError
from worldtune.common.words import shown
from worldtune.dataset.clips import clip_id, shard_of
from worldtune.dataset.config import DatasetConfig, source_folder
from worldtune.dataset.ledger import open_ledger
from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, write_manifest
from worldtune.dataset.work import Outcome, Task, do_tasks
from worldtune.dataset.youtube import DownloadError, download_video

VERSION = 1

STAGE = "fetch_videos"
DOWNLOAD_FAILED = "download failed"
"""What the reason of a video begins with that could not be downloaded."""
METADATA = "metadata.jsonl"
PARTS = ".parts"
"""Folder below the source with downloads that have not ended."""
SHOWN_REASONS = 5
SHOWN_WORDS = 10
"""Words of a reason that tell it from another kind; what follows differs from video to video."""
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
TIME = re.compile(r"(\d{1,4}):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")
COLUMNS: dict[str, pa.DataType] = {**CLIP_COLUMNS, "url": pa.string(), "num_bytes": pa.int64()}
"""Columns of the manifest."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ListedClip:
    """One clip of the metadata."""

    key: str
    """Path of its video below the source folder."""
    url: str
    start_s: float
    end_s: float
    caption: str

    @property
    def clip_id(self) -> str:
        """The clip's name, which joins it with all other stages."""
        return clip_id(self.key, self.start_s, self.end_s)


def listed_clips(metadata: Path, max_clips: int) -> list[ListedClip]:
    """Return the first `max_clips` clips of the metadata that have different videos, in its order.

    Args:
        metadata: one JSON object a line with url, video_id, caption, span_start and span_end (H:MM:SS.mmm).
        max_clips: where reading ends.

    Raises:
        WorldtuneError: the file is missing, or a line that is read is wrong; the message names it.
    """
    clips: list[ListedClip] = []
    seen: set[str] = set()
    for where, record in _records(metadata):
        clip = _clip(where, record)
        if clip.url in seen or clip.key in seen:
            continue
        seen |= {clip.url, clip.key}
        clips.append(clip)
        if len(clips) == max_clips:
            break
    return clips


def _records(metadata: Path) -> Iterator[tuple[str, Any]]:
    try:
        with open(metadata, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{metadata}, line {number}", json.loads(line)
    except FileNotFoundError as error:
        raise WorldtuneError(f"{metadata} does not exist. Make it: `snakemake {metadata}`.") from error
    # RecursionError: JSON may be nested without end.
    except (ValueError, RecursionError) as error:
        raise WorldtuneError(
            f"{metadata} has a line that is no JSON ({error}). Delete it and fetch it again."
        ) from error


def _clip(where: str, record: Any) -> ListedClip:
    values = record if isinstance(record, dict) else {}
    video, url = str(values.get("video_id", "")), str(values.get("url", ""))
    # The id names a file: one that is none could name any.
    if not VIDEO_ID.fullmatch(video):
        raise WorldtuneError(
            f"{where}: video_id is {shown(values.get('video_id'))}; expected letters, digits, _ and -."
        )
    if not _is_web_address(url):
        raise WorldtuneError(f"{where}: url is {shown(values.get('url'))}; expected one that begins with https://.")
    start_s, end_s = (_seconds(where, key, values.get(key)) for key in ("span_start", "span_end"))
    if end_s <= start_s:
        raise WorldtuneError(f"{where}: span_end is not after span_start.")
    return ListedClip(
        key=f"videos/{video}.mp4", url=url, start_s=start_s, end_s=end_s, caption=str(values.get("caption") or "")
    )


def _is_web_address(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError:
        return False


def _seconds(where: str, key: str, value: Any) -> float:
    match = TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise WorldtuneError(f"{where}: {key} is {shown(value)}; expected a time such as 0:01:02.500.")
    return round(3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]), 6)


def shard_clips(config: DatasetConfig, source: Path, shard: str) -> list[ListedClip]:
    """Return the clips of one shard of a dataset of kind hdvila; errors as those of `listed_clips`."""
    clips = listed_clips(source / METADATA, config.max_clips or 0)
    return [clip for clip in clips if shard_of(clip.key, config.num_shards) == shard]


def fetch_videos(
    name: str, config: DatasetConfig, shard: str, *, datasets: Path = Path("datasets"), processes: int = 1
) -> Path:
    """Download the videos of a shard that were never tried, and write its manifest.

    Args:
        name: the dataset's name.
        config: the dataset's configuration, of kind hdvila.
        shard: four digits.
        datasets: folder of all datasets.
        processes: downloads at once.

    Returns:
        The manifest's path. It has a row for each clip, with the reason where its video could not be downloaded.

    Raises:
        WorldtuneError: the metadata are missing or wrong, the network cannot be reached, or fewer videos than
            `min_success` could be had.
        OSError: the disk is full or cannot be written.
    """
    root, source = datasets / name, source_folder(name, config, datasets)
    tasks = []
    for clip in shard_clips(config, source, shard):
        inputs = {"url": clip.url, "version": VERSION}
        tasks.append(Task(clip_id=clip.clip_id, inputs=inputs, argument=(source, clip)))
    path = manifest_path(root, STAGE, shard)
    with open_ledger(root, STAGE, shard) as ledger:
        rows = do_tasks(ledger, tasks, fetch_video, _died, label=f"{STAGE} {name} {shard}", processes=processes)
        check_success(name, shard, rows, config.min_success)
        write_manifest(path, rows, COLUMNS)
    return path


def check_success(name: str, shard: str, rows: Sequence[Mapping[str, Any]], min_success: float) -> None:
    """Refuse a shard of which too little could be downloaded; what is known of each video stays in the ledger.

    Raises:
        WorldtuneError: the share of usable rows is below `min_success`; the message counts the reasons.
    """
    failed = [str(row["reason"]) for row in rows if row["status"] != "ok"]
    arrived = len(rows) - len(failed)
    if not failed or arrived >= min_success * len(rows):
        return
    counts = Counter(" ".join(reason.split()[:SHOWN_WORDS]) for reason in failed)
    listed = "".join(f"\n  {count} x {reason} ..." for reason, count in counts.most_common(SHOWN_REASONS))
    raise WorldtuneError(
        f"dataset {name}, shard {shard}: {arrived} of {len(rows)} videos have arrived, less than the share of "
        f"{min_success:g} that is asked for (datasets.{name}.min_success). The most frequent reasons:{listed}\nMend "
        f"what causes them, such as an address that was blocked, and ask again with `make retry DATASET={name}`, or "
        "lower min_success."
    )


def fetch_video(argument: tuple[Path, ListedClip]) -> Outcome:
    """Download one video and return its row."""
    source, clip = argument
    target = source / clip.key
    try:
        with disk_errors_named(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(download_video(clip.url, source / PARTS, target.stem), target)
    except DownloadError as error:
        return Outcome(row=_row(clip, f"{DOWNLOAD_FAILED}: {error}"))
    return Outcome(row=_row(clip, "", num_bytes=target.stat().st_size), outputs=(target,))


def _died(argument: tuple[Path, ListedClip]) -> Outcome:
    return Outcome(row=_row(argument[1], f"{DOWNLOAD_FAILED}: its process ended without a word"))


def _row(clip: ListedClip, reason: str, num_bytes: int | None = None) -> dict[str, Any]:
    return {
        "clip_id": clip.clip_id,
        "source_key": clip.key,
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "status": "unusable" if reason else "ok",
        "reason": reason,
        "url": clip.url,
        "num_bytes": num_bytes,
    }


def forget_failed(name: str, config: DatasetConfig, *, datasets: Path = Path("datasets")) -> dict[str, int]:
    """Remove the rows of failed downloads from the ledgers, and the manifests of their shards, so that those run again.

    Args:
        name: the dataset's name.
        config: its configuration.
        datasets: folder of all datasets.

    Returns:
        Number of removed rows by the shard whose job will try them again; empty where nothing had failed.

    Raises:
        WorldtuneError: the dataset downloads nothing.
    """
    if config.kind not in ("hdvila", "huggingface"):
        raise WorldtuneError(
            f"{name} is of kind {config.kind!r}, which downloads no videos; there is nothing to retry."
        )
    root = datasets / name
    forgotten: dict[str, int] = {}
    # Ledgers of an earlier number of shards too: a job takes over what they know.
    for ledger_file in sorted((root / "ledger" / STAGE).glob("*.jsonl")):
        with open_ledger(root, STAGE, ledger_file.stem) as ledger:
            failed = [row for row in ledger.rows() if str(row.get("reason", "")).startswith(DOWNLOAD_FAILED)]
            for row in failed:
                shard = shard_of(row["source_key"], config.num_shards)
                forgotten[shard] = forgotten.get(shard, 0) + 1
                # Before the ledger forgets, so that an interruption in between loses no shard.
                manifest_path(root, STAGE, shard).unlink(missing_ok=True)
            # A row that names clips of an earlier file stays known, for the case that the file fails again.
            ledger.start(*(row["clip_id"] for row in failed if row.get("clips")))
            ledger.forget(row["clip_id"] for row in failed if not row.get("clips"))
    return dict(sorted(forgotten.items()))
