"""Samples that are drawn while a run trains: when they are due, and their record in the attempt.

previews/step_000000500/CLIP.mp4, CLIP.png   control, ground truth and a sample for each guidance, side by side
previews/step_000000500/previews.json        which column is what, how it was drawn, scores; written last
previews.jsonl                               the scores of all steps, one row a (step, clip_id, guidance)

A preview is there to be looked at, and no run ends for the want of one: where its files cannot be written, or the
device has no room for its frames, that is a warning, nothing of it is left, and training goes on.
"""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import torch

from worldtune.common.disk import disk_advice
from worldtune.common.files import write_json
from worldtune.recipe.schema import Previews
from worldtune.training.metrics import Row, Tracker, replace_rows
from worldtune.training.state import folder_name
from worldtune.training.task import DrawnClip, PreviewFiles, Task

PREVIEWS = "previews"
PREVIEWS_FILE = "previews.jsonl"
SUMMARY = "previews.json"
SUMMARY_FORMAT = 1
BEARABLE = (OSError, torch.OutOfMemoryError)
"""Errors that cost a preview and not the run."""
logger = logging.getLogger(__name__)


def is_due(step: int, config: Previews, *, last_step: int) -> bool:
    """Return whether a preview belongs to a step; whether it is there already is another question."""
    return config.every > 0 and (step % config.every == 0 or step == last_step)


def is_made(attempt: Path, step: int) -> bool:
    """Return whether the attempt has the preview of a step."""
    return (attempt / PREVIEWS / folder_name(step) / SUMMARY).is_file()


def make_preview(
    task: Task,
    config: Previews,
    attempt: Path,
    step: int,
    *,
    is_main: bool,
    ends: Callable[[bool], bool],
    tracker: Tracker,
) -> None:
    """Draw the preview of a step and write it in the place of what is there. Collective over all ranks.

    Args:
        task: it draws.
        config: the recipe's section.
        attempt: its folder.
        step: completed optimizer steps.
        is_main: whether this is rank 0, which writes.
        ends: collective; is told whether this rank cannot go on, and returns whether all ranks leave the preview.
        tracker: shown the videos and the means of the scores; used on rank 0.
    """
    started = time.monotonic()
    folder = attempt / PREVIEWS / folder_name(step)
    written: list[PreviewFiles] = []
    if is_main:
        shutil.rmtree(folder, ignore_errors=True)
    for drawn in task.preview():
        files = _write(drawn, folder) if is_main else []
        if ends(files is None):
            if is_main:
                shutil.rmtree(folder, ignore_errors=True)
            return
        written += files or []
    if is_main:
        _finish(config, attempt, step, written, tracker, seconds=time.monotonic() - started)


def _write(drawn: Sequence[DrawnClip], folder: Path) -> list[PreviewFiles] | None:
    """Write some clips; returns None where that cannot be done."""
    try:
        return [clip.write(folder) for clip in drawn]
    except BEARABLE as error:
        _warn(folder, error)
        return None


def _finish(
    config: Previews, attempt: Path, step: int, written: Sequence[PreviewFiles], tracker: Tracker, *, seconds: float
) -> None:
    folder = attempt / PREVIEWS / folder_name(step)
    rows: list[Row] = [
        {"step": step, "clip_id": clip.clip_id, "guidance": guidance, **scores}
        for clip in written
        for guidance, scores in clip.scores.items()
    ]
    try:
        replace_rows(attempt / PREVIEWS_FILE, rows, keys=("step",))
        write_json(folder / SUMMARY, _summary(config, step, written, seconds))
        tracker.log_videos({f"previews/{clip.clip_id}": folder / clip.video for clip in written}, step)
    except BEARABLE as error:
        _warn(folder, error)
        return
    means = _means(rows)
    tracker.log(means, step)
    text = ", ".join(f"{name.removeprefix('previews/')} {value:.3f}" for name, value in means.items())
    logger.info("preview at step %d: %s (%.1f s)", step, ": ".join(filter(None, [str(folder), text])), seconds)


def _summary(config: Previews, step: int, written: Sequence[PreviewFiles], seconds: float) -> Row:
    return {
        "format": SUMMARY_FORMAT,
        "step": step,
        "weights": "present",
        "columns": [
            *next((clip.columns for clip in written), ()),
            *(f"guidance {guidance:g}" for guidance in config.guidances),
        ],
        "guidances": list(config.guidances),
        "num_steps": config.num_steps,
        "seed": config.seed,
        "seconds": round(seconds, 2),
        "clips": [
            {
                "clip_id": clip.clip_id,
                "video": clip.video,
                "grid": clip.grid,
                "num_frames": clip.num_frames,
                "height": clip.height,
                "width": clip.width,
                "fps": clip.fps,
                "scores": {f"{guidance:g}": dict(scores) for guidance, scores in clip.scores.items()},
            }
            for clip in written
        ],
    }


def _means(rows: Sequence[Row]) -> dict[str, float]:
    """Return the means over clips by `previews/<score>/guidance_<value>`."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name in row.keys() - {"step", "clip_id", "guidance"}:
            values.setdefault(f"previews/{name}/guidance_{row['guidance']:g}", []).append(row[name])
    return {name: mean(values[name]) for name in sorted(values)}


def _warn(folder: Path, error: BaseException) -> None:
    logger.warning("%s is left out, training goes on: %s", folder, disk_advice(error) or error)
