"""Stage controls: one kind of control for each clip of a shard.

Edges are computed: the Canny map of the whole clip at the "medium" thresholds, as edge/<clip_id>.mkv (grey, lossless),
for held-out evaluation and reports; training draws its own thresholds. The other kinds are given as files in a folder
named after the kind beside the source video; they are checked against the clip and copied.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import copy_file, sha256_file
from worldtune.dataset.clips import COMPUTED_CONTROLS, LOSSLESS_SUFFIXES, control_path, lossless_path, video_path
from worldtune.dataset.config import DatasetConfig, source_folder
from worldtune.dataset.control_checks import ControlFacts, check_control
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.ingest import STAGE as INGEST_STAGE
from worldtune.dataset.layout import Layout, given_path
from worldtune.dataset.ledger import open_ledger
from worldtune.dataset.listing import control_key
from worldtune.dataset.manifest import (
    CLIP_COLUMNS,
    Columns,
    manifest_path,
    read_manifest,
    retire_manifests,
    write_manifest,
)
from worldtune.dataset.work import Outcome, Task, do_tasks
from worldtune.formats.controls import FILE_CONTROLS
from worldtune.media.geometry import nearest_aspect_ratio
from worldtune.media.video import iterate_frames, video_writer
from worldtune.recipe.schema import VIDEO_SIZES_WH

VERSION = 6

EDGE_PRESET = "medium"

COLUMNS: dict[str, pa.DataType] = {
    **CLIP_COLUMNS,
    "video_sha256": pa.string(),
    "num_frames": pa.int64(),
    "control_sha256": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "empty_frames": pa.int64(),
    "num_objects": pa.int64(),
    "people_per_frame": pa.float64(),
}
"""Columns of the manifest; the last five are of ControlFacts."""
MOTION_COLUMN = "motion"
"""One more of ControlFacts, where the control is a given video."""
LOSSLESS_COLUMN = "lossless_sha256"
"""One more, where a lossless file is made beside each control."""


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
    return annotated_stage(kind) if config.annotate.find(kind) else taken_stage(kind)


def control_columns(kind: str, config: DatasetConfig) -> Columns:
    """Return the columns of the manifests of a dataset's `control_stage`."""
    annotator = config.annotate.find(kind)
    if annotator is None:
        return taken_columns(kind)
    return COLUMNS | ({LOSSLESS_COLUMN: pa.string()} if annotator.makes_lossless else {})


def taken_columns(kind: str) -> Columns:
    """Return the columns of the manifests of `taken_stage`."""
    is_given_video = FILE_CONTROLS[kind].is_video and kind not in COMPUTED_CONTROLS
    return COLUMNS | ({MOTION_COLUMN: pa.float64()} if is_given_video else {})


def taken_stage(kind: str) -> str:
    """Return the name of this stage for one kind; its ledger is that of `annotated_stage` too, as are the files."""
    return f"controls-{kind}"


def annotated_stage(kind: str) -> str:
    """Return the name of stage annotate for one kind."""
    return f"annotate-{kind}"


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
    stage = taken_stage(kind)
    path = manifest_path(root, stage, shard)
    with open_ledger(root, stage, shard) as ledger:
        retire_manifests(root, annotated_stage(kind))
        tasks = _tasks(root, source_folder(name, config, datasets), shard, kind, config.layout)
        if kind in LOSSLESS_SUFFIXES:
            # Stage annotate may have made them, of other depths than those that are given.
            for task in tasks:
                lossless_path(root, task.clip_id, kind).unlink(missing_ok=True)
        label = f"{stage} {name} {shard}"
        rows = do_tasks(ledger, tasks, make_control, _died, label=label, processes=processes)
        write_manifest(path, rows, taken_columns(kind))
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
    row = dict.fromkeys(taken_columns(job.kind)) | {column: job.clip[column] for column in CLIP_COLUMNS}
    state = {"status": "unusable" if reason else "ok", "reason": reason, "video_sha256": job.clip["video_sha256"]}
    return row | state | {column: value for column, value in facts.items() if column in row}


def _died(job: ControlJob) -> Outcome:
    return Outcome(row=_row(job, f"{job.kind} died: the process that made it ended without a word"))


def make_control(job: ControlJob) -> Outcome:
    """Make or take over the control of one clip, and return its row."""
    try:
        facts = _write_edges(job) if job.kind == "edge" else _take_given(job)
    except WorldtuneError as error:
        job.target.unlink(missing_ok=True)
        # Rows are the same wherever the folders lie.
        reason = str(error).replace(str(job.given), job.given_key).replace(str(job.video), "the clip")
        return Outcome(row=_row(job, f"{job.kind} unusable: {reason}"))
    row = _row(job, "", **vars(facts), control_sha256=sha256_file(job.target))
    return Outcome(row=row, outputs=(job.target,))


def _write_edges(job: ControlJob) -> ControlFacts:
    # Imported here: OpenCV is slow to load, and reading this module's columns must not need it.
    import cv2

    from worldtune.controls.edge import EDGE_RESOLUTION, PRESETS, edge_map

    # There is a process for each core already.
    cv2.setNumThreads(1)
    low, high = PRESETS[EDGE_PRESET]
    size_wh = VIDEO_SIZES_WH[EDGE_RESOLUTION][nearest_aspect_ratio(job.clip["width"], job.clip["height"])]
    with video_writer(job.target, job.clip["fps"], lossless=True) as append:
        for frame in iterate_frames(job.video):
            append(edge_map(frame, low, high, size_wh)[None])
    # As it will be read, from the first frame to the last.
    return check_control(job.kind, job.target, job.clip)


def check_whole_video(clip: dict[str, Any], given: str) -> None:
    """Raise a WorldtuneError where what is given for a video does not fit its clip, which has other frames."""
    if clip["start_s"] is not None:
        raise WorldtuneError(f"the clip is a part of its video; cut the video and {given} yourself")
    if clip["source_variable_frame_rate"] or clip["source_rotation_degrees"]:
        turned = clip["source_rotation_degrees"]
        found = (
            f"is turned by {turned} degrees when it is shown" if turned else "has frames that last for different times"
        )
        raise WorldtuneError(
            f"the video {found}; encode the video with a constant rate, upright, and make {given} from that"
        )


def _take_given(job: ControlJob) -> ControlFacts:
    check_whole_video(job.clip, "its control")
    if not job.given.is_file():
        raise WorldtuneError(f"expected it as {job.given_key} in the source folder")
    facts = check_control(job.kind, job.given, job.clip)
    copy_file(job.given, job.target)
    return facts
