"""What a run is measured on, and which part of its record counts as measured under the present recipe."""

import math
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import Clip, Dataset
from worldtune.recipe.schema import Recipe
from worldtune.training.metrics import Row
from worldtune.training.task import ValidationRow


def measured_clips(dataset: Dataset, recipe: Recipe) -> list[Clip]:
    """Return the held-out clips that a run is measured on: the first ones, by id, that are long enough."""
    num_frames = recipe.data.num_frames
    usable = [
        clip for clip in dataset.split("held_out") if clip.num_frames is not None and clip.num_frames >= num_frames
    ]
    return usable[: recipe.validation.max_clips]


def check_finite(rows: Iterable[ValidationRow], step: int) -> None:
    """Raise a WorldtuneError that names the first of a step's held-out losses that is not finite."""
    for row in rows:
        if not math.isfinite(row.loss):
            control = "its own control" if row.control == "own" else "another clip's control"
            raise WorldtuneError(
                f"the held-out loss is {row.loss} at step {step}, expected a finite number: clip {row.clip_id} at "
                f"sigma = {row.sigma:g} with {control}. Lower optimizer.learning_rate if the training loss rose "
                "before, else check the clip's video, caption and control."
            )


def is_measured(rows: Iterable[Row], step: int, *, sigmas: Sequence[float], clip_ids: Sequence[str]) -> bool:
    """Return whether validation rows have, at a step, every clip at every noise level under its own control."""
    found = {(row["sigma"], row["clip_id"]) for row in rows if row["step"] == step and row["control"] == "own"}
    return all((sigma, clip_id) in found for sigma in sigmas for clip_id in clip_ids)


def held_out_loss(
    rows: Sequence[Row], *, last_step: int, sigmas: Sequence[float], clip_ids: Sequence[str]
) -> dict[str, Any]:
    """Return the mean loss over clips by noise level before the first step and after the last, for both controls.

    Only what can be compared is in it: a noise level is left out at a step at which it was not measured on all clips,
    as is so at step 0 after the recipe's noise levels or number of clips have changed.

    Args:
        rows: validation rows.
        last_step: the run's last step.
        sigmas: the recipe's noise levels.
        clip_ids: the clips that the recipe asks for.
    """
    result: dict[str, Any] = {}
    for when, step in (("first", 0), ("last", last_step)):
        complete = [
            sigma for sigma in sorted(sigmas) if is_measured(rows, step, sigmas=[sigma], clip_ids=clip_ids) and clip_ids
        ]
        for control, suffix in (("own", ""), ("other", "_other_control")):
            losses = {
                sigma: [
                    row["loss"]
                    for row in rows
                    if (row["step"], row["sigma"], row["control"]) == (step, sigma, control)
                    and row["clip_id"] in clip_ids
                ]
                for sigma in complete
            }
            means = {f"{sigma:g}": mean(values) for sigma, values in losses.items() if values}
            if means:
                result[when + suffix] = means
    return result
