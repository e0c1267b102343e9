"""Looks at a run between its steps: previews and the held-out loss, where they are due and not made yet.

Neither changes weights, draws from the training's random streams, or moves the position in the data.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
import torch.distributed as dist

from worldtune.recipe.schema import Recipe
from worldtune.training.held_out import check_finite, is_measured
from worldtune.training.lease import Lease
from worldtune.training.metrics import VALIDATION_FILE, Tracker, read_rows, replace_rows
from worldtune.training.previews import is_due, is_made, make_preview
from worldtune.training.task import Task, ValidationRow
from worldtune.training.whereabouts import mark

logger = logging.getLogger(__name__)


def preview_if_due(
    task: Task,
    recipe: Recipe,
    attempt: Path,
    step: int,
    *,
    lease: Lease | None,
    tracker: Tracker,
    is_told_to_stop: Callable[[bool], bool],
) -> None:
    """Draw the preview of a step, if the recipe wants one and there is none. Collective over all ranks.

    Args:
        task: it draws.
        recipe: says when and how.
        attempt: folder of the previews.
        step: completed optimizer steps.
        lease: on rank 0, the right to write into `attempt`.
        tracker: is shown what was drawn; used on rank 0.
        is_told_to_stop: collective; is told whether this rank cannot go on, and returns whether all ranks leave.

    Raises:
        TemporaryError: the lease was lost.
    """
    if not is_due(step, recipe.previews, last_step=recipe.training.max_iter):
        return
    is_main = dist.get_rank() == 0
    made = [is_main and is_made(attempt, step)]
    dist.broadcast_object_list(made, src=0)
    if made[0]:
        return

    def ends(failed: bool) -> bool:
        mark("preview", step)
        if lease is not None:
            lease.check()
        return is_told_to_stop(failed)

    mark("preview", step)
    if lease is not None:
        lease.check()
    make_preview(task, recipe.previews, attempt, step, is_main=is_main, ends=ends, tracker=tracker)


def measure_if_due(
    task: Task,
    recipe: Recipe,
    attempt: Path,
    step: int,
    *,
    lease: Lease | None,
    tracker: Tracker,
    is_told_to_stop: Callable[[bool], bool],
) -> None:
    """Measure the held-out loss of a step, if the recipe wants it and it is not known. Collective over all ranks.

    What was measured of a step at which the run stops is dropped; the next start measures it.

    Args:
        task: it measures.
        recipe: says when and what.
        attempt: folder of validation.jsonl.
        step: completed optimizer steps.
        lease: on rank 0, the right to write into `attempt`.
        tracker: is shown the means; used on rank 0.
        is_told_to_stop: see `preview_if_due`.

    Raises:
        WorldtuneError: a loss is not finite.
        TemporaryError: the lease was lost.
    """
    if step % recipe.validation.every and step != recipe.training.max_iter:
        return
    mark("held-out loss", step)
    is_main = dist.get_rank() == 0
    path = attempt / VALIDATION_FILE
    present = [is_main and _is_known(path, task, recipe, step)]
    dist.broadcast_object_list(present, src=0)
    if present[0]:
        return
    started = time.monotonic()
    rows: list[ValidationRow] = []
    with torch.no_grad():
        for some in task.validate():
            mark("held-out loss", step)
            rows += some
            if is_told_to_stop(False):
                return
    rows.sort(key=lambda row: (row.clip_id, row.sigma, row.control))
    check_finite(rows, step)
    if not is_main or not rows:
        return
    if lease is not None:
        lease.check()
    # Some of them may be there: noise levels and clips of a recipe may change.
    replace_rows(
        path,
        [
            {"step": step, "sigma": row.sigma, "clip_id": row.clip_id, "control": row.control, "loss": row.loss}
            for row in rows
        ],
        keys=("step", "sigma", "clip_id", "control"),
    )
    means = {
        f"held_out/{control}": mean(losses)
        for control in ("own", "other")
        if (losses := [row.loss for row in rows if row.control == control])
    }
    tracker.log(means, step)
    text = ", ".join(f"{name} control {value:.4f}" for name, value in means.items())
    logger.info("held-out loss at step %d: %s (%.1f s)", step, text, time.monotonic() - started)


def _is_known(path: Path, task: Task, recipe: Recipe, step: int) -> bool:
    return is_measured(read_rows(path), step, sigmas=recipe.validation.sigmas, clip_ids=task.measured_clip_ids)
