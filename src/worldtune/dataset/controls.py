"""Stage controls: one kind of control for each clip of a shard.

Edges are computed: the Canny map of the whole clip at the "medium" thresholds, as edge/<clip_id>.mkv (grey, lossless),
for held-out evaluation and reports; training draws its own thresholds. The other kinds are given as files in a folder
named after the kind beside the source video; they are checked against the clip and copied.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import copy_file, sha256_file
from worldtune.dataset.clips import COMPUTED_CONTROLS, control_path, video_path
from worldtune.dataset.config import DatasetConfig, source_folder
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.ingest import STAGE as INGEST_STAGE
from worldtune.dataset.layout import Layout, given_path
from worldtune.dataset.ledger import open_ledger
from worldtune.dataset.listing import control_key
from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, read_manifest, write_manifest
from worldtune.dataset.work import Outcome, Task, do_tasks
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.formats.rle import decode_runs
from worldtune.media.geometry import nearest_aspect_ratio
from worldtune.media.video import check_video, iterate_frames, video_writer
from worldtune.recipe.schema import VIDEO_SIZES_WH, KeypointControl

VERSION = 4

EDGE_PRESET = "medium"

COLUMNS: dict[str, pa.DataType] = {
    **CLIP_COLUMNS,
    "video_sha256": pa.string(),
    "num_frames": pa.int64(),
    "control_sha256": pa.string(),
}
"""Columns of the manifest."""


@dataclass(frozen=True, kw_only=True)
class ControlJob:
    """The control of one clip."""

    kind: str
    clip: dict[str, Any]
    """The clip's row in the manifest of stage ingest."""
    video: Path
    given: Path
    """Where a given control lies."""
    given_key: str
    target: Path


def control_stage(kind: str, config: DatasetConfig) -> str:
    """Return the name of the stage that makes or takes over one kind of a dataset's controls."""
    return f"{'annotate' if config.annotate.find(kind) else 'control'}-{kind}"


def make_controls(
    name: str,
    config: DatasetConfig,
    shard: str,
    kind: str,
    *,
    datasets: Path = Path("datasets"),
    processes: int = 1,
) -> Path:
    """Make or take over the controls of one kind for a shard and write its manifest.

    Args:
        name: the dataset's name.
        config: the dataset's configuration.
        shard: four digits.
        kind: the control, one of the dataset's.
        datasets: folder of all datasets.
        processes: worker processes.

    Returns:
        The manifest's path. It has a row for each usable clip of stage ingest.

    Raises:
        WorldtuneError: the dataset has no such control, or there is no manifest of stage ingest.
    """
    if kind not in config.controls:
        raise WorldtuneError(f"dataset {name} has the controls {', '.join(config.controls)}, not {kind!r}.")
    root = datasets / name
    stage = control_stage(kind, config)
    path = manifest_path(root, stage, shard)
    with open_ledger(root, stage, shard) as ledger:
        tasks = _tasks(root, source_folder(name, config, datasets), shard, kind, config.layout)
        label = f"{stage} {name} {shard}"
        rows = do_tasks(ledger, tasks, make_control, _died, label=label, processes=processes)
        write_manifest(path, rows, COLUMNS)
    return path


def _tasks(root: Path, source: Path, shard: str, kind: str, layout: Layout) -> list[Task[ControlJob]]:
    tasks = []
    for clip in read_manifest(manifest_path(root, INGEST_STAGE, shard), INGEST_COLUMNS):
        if clip["status"] != "ok":
            continue
        given_key = control_key(clip["source_key"], kind, layout)
        job = ControlJob(
            kind=kind,
            clip=clip,
            video=video_path(root, clip["clip_id"]),
            given=given_path(source, given_key),
            given_key=given_key,
            target=control_path(root, clip["clip_id"], kind),
        )
        tasks.append(Task(clip_id=clip["clip_id"], inputs=_inputs(job), argument=job))
    return tasks


def _inputs(job: ControlJob) -> dict[str, Any]:
    inputs: dict[str, Any] = {"video_sha256": job.clip["video_sha256"], "version": VERSION}
    if job.kind not in COMPUTED_CONTROLS:
        try:
            status = job.given.stat()
            inputs["file"] = [status.st_size, status.st_mtime_ns]
        except OSError:
            inputs["file"] = None
    return inputs


def _row(job: ControlJob, reason: str, **facts: Any) -> dict[str, Any]:
    row = {column: job.clip[column] for column in CLIP_COLUMNS} | {
        "status": "unusable" if reason else "ok",
        "reason": reason,
        "video_sha256": job.clip["video_sha256"],
        "num_frames": None,
        "control_sha256": None,
    }
    return row | facts


def _died(job: ControlJob) -> Outcome:
    return Outcome(row=_row(job, f"{job.kind} died: the process that made it ended without a word"))


def make_control(job: ControlJob) -> Outcome:
    """Make or take over the control of one clip, and return its row."""
    try:
        num_frames = _write_edges(job) if job.kind == "edge" else _take_given(job)
    except WorldtuneError as error:
        job.target.unlink(missing_ok=True)
        # Rows are the same wherever the folders lie.
        reason = str(error).replace(str(job.given), job.given_key).replace(str(job.video), "the clip")
        return Outcome(row=_row(job, f"{job.kind} unusable: {reason}"))
    facts = {"num_frames": num_frames, "control_sha256": sha256_file(job.target)}
    return Outcome(row=_row(job, "", **facts), outputs=(job.target,))


def _write_edges(job: ControlJob) -> int:
    # Imported here: OpenCV is slow to load, and reading this module's columns must not need it.
    import cv2

    from worldtune.controls.edge import EDGE_RESOLUTION, PRESETS, edge_map

    # There is a process for each core already.
    cv2.setNumThreads(1)
    low, high = PRESETS[EDGE_PRESET]
    size_wh = VIDEO_SIZES_WH[EDGE_RESOLUTION][nearest_aspect_ratio(job.clip["width"], job.clip["height"])]
    num_frames = 0
    with video_writer(job.target, job.clip["fps"], lossless=True) as append:
        for frame in iterate_frames(job.video):
            append(edge_map(frame, low, high, size_wh)[None])
            num_frames += 1
    _check_frames(job, num_frames)
    return num_frames


def _check_frames(job: ControlJob, num_frames: int) -> None:
    if num_frames != job.clip["num_frames"]:
        raise WorldtuneError(f"it has {num_frames} frames, the clip has {job.clip['num_frames']}; make it again")


def _take_given(job: ControlJob) -> int:
    if job.clip["start_s"] is not None:
        raise WorldtuneError("the clip is a part of its video; cut the video and its control yourself")
    # The clip then has other frames than the video, for which the control was made.
    if job.clip["source_variable_frame_rate"] or job.clip["source_rotation_degrees"]:
        turned = job.clip["source_rotation_degrees"]
        found = (
            f"is turned by {turned} degrees when it is shown" if turned else "has frames that last for different times"
        )
        raise WorldtuneError(
            f"the video {found}; encode the video with a constant rate, upright, and make the control from that"
        )
    if not job.given.is_file():
        raise WorldtuneError(f"expected it as {job.given_key} in the source folder")
    num_frames = GIVEN_CHECKS[job.kind](job)
    _check_frames(job, num_frames)
    copy_file(job.given, job.target)
    return num_frames


def _check_given_video(job: ControlJob) -> int:
    info = check_video(job.given)
    if info.variable_frame_rate:
        raise WorldtuneError("its frames last for different times; encode it with the video's rate")
    if info.rotation_degrees:
        raise WorldtuneError(f"it is turned by {info.rotation_degrees} degrees when it is shown; encode it upright")
    if (info.width, info.height) != (job.clip["width"], job.clip["height"]):
        raise WorldtuneError(
            f"it is {info.width}x{info.height}, the clip is {job.clip['width']}x{job.clip['height']}; make it again"
        )
    return info.num_frames


def _check_segmentation(job: ControlJob) -> int:
    """Check a list of {"phrase", "segmentation_mask_rle": {"data": {"size", "counts"}, "mask_shape": (T, H, W)}}."""
    objects = read_pickle(job.given, MAX_CONTROL_BYTES)
    height, width, num_frames = job.clip["height"], job.clip["width"], job.clip["num_frames"]
    if not isinstance(objects, list):
        raise WorldtuneError("expected a list of objects")
    for number, thing in enumerate(objects):
        try:
            phrase, mask = thing["phrase"], thing["segmentation_mask_rle"]
            shape, size, counts = tuple(mask["mask_shape"]), tuple(mask["data"]["size"]), mask["data"]["counts"]
        except (TypeError, KeyError, IndexError) as error:
            raise WorldtuneError(f"object {number} is no phrase with a mask ({error!r})") from error
        if not isinstance(phrase, str) or not isinstance(counts, bytes | str):
            raise WorldtuneError(f"object {number} is no phrase with a mask")
        if shape != (num_frames, height, width) or size != (num_frames * height * width, 1):
            raise WorldtuneError(
                f"object {number} has a mask of {shape}, size {size}; expected {(num_frames, height, width)} and "
                f"{(num_frames * height * width, 1)}"
            )
        if int(decode_runs(counts).sum()) != num_frames * height * width:
            raise WorldtuneError(f"the mask of object {number} does not cover the clip")
    return int(num_frames)


def _check_keypoints(job: ControlJob) -> int:
    """Check {frame: [person, ...]} as drawing does at the recipes' usual confidence."""
    # Imported here for the same reason as edges are.
    from worldtune.controls.keypoint import people_points

    frames = read_pickle(job.given, MAX_CONTROL_BYTES)
    if not isinstance(frames, dict) or not all(isinstance(frame, int) for frame in frames):
        raise WorldtuneError("expected a table of frame numbers")
    numbers = sorted(frames)
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise WorldtuneError("its frame numbers have gaps; give an entry for every frame")
    for number in numbers:
        try:
            people_points(frames[number], KeypointControl().confidence_min)
        except WorldtuneError as error:
            raise WorldtuneError(f"frame {number}: {error}") from error
    return len(numbers)


GIVEN_CHECKS: dict[str, Callable[[ControlJob], int]] = {
    "depth": _check_given_video,
    "hdmap": _check_given_video,
    "lidar": _check_given_video,
    "seg": _check_segmentation,
    "keypoint": _check_keypoints,
}
"""By kind: checks a given control's content and returns its number of frames."""
