"""Stage cuts: long videos are divided into clips at changes of scene and at a longest duration.

Each source video is decoded once, whole; PySceneDetect's content detector sees each frame. A scene that is longer than
`max_s` is divided into pieces of that length; a scene or last piece that is shorter than `min_s` is no clip and keeps a
row that says so. Clips that a list of captions cuts out itself are left as they are. The detector's frames and
arithmetic depend on nothing but the file, so the same file gives the same clips and thereby the same clip ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import clip_id
from worldtune.dataset.config import CutConfig, DatasetConfig
from worldtune.dataset.ledger import open_ledger
from worldtune.dataset.listing import list_uncut_source
from worldtune.dataset.manifest import manifest_path, write_manifest
from worldtune.dataset.source_clips import SourceClip
from worldtune.dataset.spans import COLUMNS, STAGE
from worldtune.dataset.work import Outcome, Task, do_tasks
from worldtune.media.scene_changes import SceneChanges, find_scene_changes
from worldtune.media.video import VideoError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CutJob:
    """One source video to divide."""

    key: str
    source: Path
    """Folder of the key."""
    cut: CutConfig


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a video: frames `start` to `end` - 1."""

    start: int
    end: int
    scene: int


def find_cuts(
    name: str, config: DatasetConfig, shard: str, *, datasets: Path = Path("datasets"), processes: int = 1
) -> Path:
    """Divide the videos of a shard and write the manifest; only videos that changed are decoded.

    Args:
        name: the dataset's name.
        config: the dataset's configuration, with `cut`.
        shard: four digits.
        datasets: folder of all datasets.
        processes: worker processes.

    Returns:
        The manifest's path. It has a row for each part of a video, with the reason where it is no clip, and a row
        without times for a video that cannot be decoded.

    Raises:
        WorldtuneError: the dataset is not to be cut, or its source folder does not exist.
    """
    if config.cut is None:
        raise WorldtuneError(f"dataset {name} has no `cut` in the configuration; its videos are clips as they are.")
    root = datasets / name
    listing = list_uncut_source(name, config, datasets)
    tasks = [
        _task(CutJob(key=clip.key, source=listing.source, cut=config.cut))
        for clip in listing.clips(shard)
        if is_to_be_cut(clip)
    ]
    path = manifest_path(root, STAGE, shard)
    with open_ledger(root, STAGE, shard) as ledger:
        found = do_tasks(ledger, tasks, cut_video, _died, label=f"{STAGE} {name} {shard}", processes=processes)
        write_manifest(path, [row for video in found for row in _rows(video)], COLUMNS)
    return path


def is_to_be_cut(clip: SourceClip) -> bool:
    """Whether a clip of the listing is a whole video that is to be divided."""
    return clip.has_video and clip.start_s is None and not clip.problem


def _task(job: CutJob) -> Task[CutJob]:
    try:
        status = (job.source / job.key).stat()
        file = [status.st_size, status.st_mtime_ns]
    except OSError:
        file = None
    inputs = {"file": file, "cut": job.cut.model_dump(mode="json"), "version": VERSION}
    return Task(clip_id=clip_id(job.key), inputs=inputs, argument=job)


def cut_video(job: CutJob) -> Outcome:
    """Divide one video; the row holds its parts as a list."""
    path = job.source / job.key
    threshold = job.cut.threshold if job.cut.scenes else None
    try:
        changes = find_scene_changes(path, threshold)
    except VideoError as error:
        return _refused(job, f"cannot be cut: {str(error).replace(str(path), job.key)}")
    parts = [
        {
            "start_s": start_s,
            "end_s": end_s,
            "num_frames": part.end - part.start,
            "scene": part.scene,
            "reason": _too_short(changes, part, job.cut),
        }
        for part in divide(changes, job.cut)
        for start_s, end_s in [changes.span_s(part.start, part.end)]
    ]
    return Outcome(row={"source_key": job.key, "status": "ok", "reason": "", "parts": parts})


def _died(job: CutJob) -> Outcome:
    return _refused(job, "decoder died: the process that read the video ended without a word")


def _refused(job: CutJob, reason: str) -> Outcome:
    return Outcome(row={"source_key": job.key, "status": "unusable", "reason": reason, "parts": []})


def divide(changes: SceneChanges, cut: CutConfig) -> Iterator[Part]:
    """Yield the parts of a video in order: they follow each other without gap from its first frame to its last."""
    for scene, (first, end) in enumerate(pairwise([0, *changes.starts, changes.num_frames])):
        start = first
        while start < end:
            stop = end if cut.max_s is None else min(changes.last_within(start, cut.max_s), end)
            yield Part(start=start, end=stop, scene=scene)
            start = stop


def _too_short(changes: SceneChanges, part: Part, cut: CutConfig) -> str:
    seconds = changes.duration_s(part.start, part.end)
    # Frames seldom make up exactly a time that somebody wrote down.
    if seconds + changes.frame_s / 2 >= cut.min_s:
        return ""
    return f"short remainder: {seconds:.3f} s between two cuts; at least {cut.min_s:g} s are needed (cut.min_s)"


def _rows(video: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the manifest's rows of one video."""
    key = video["source_key"]
    whole = {"start_s": None, "end_s": None, "num_frames": None, "scene": None, "reason": video["reason"]}
    for part in video["parts"] or [whole]:
        yield {
            "clip_id": clip_id(key, part["start_s"], part["end_s"]),
            "source_key": key,
            "status": "unusable" if part["reason"] else "ok",
            **part,
        }
