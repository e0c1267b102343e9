"""What the trainer watches: losses and gradients that are not finite, a first loss that cannot be right, data waits."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import torch.distributed as dist
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.schema import Health, Recipe
from worldtune.training.metrics import METRICS_FILE, SKIPPED_FILE, append_rows
from worldtune.training.order import BatchLayout

DATA_WAIT_STEPS = 20
"""Steps that the share of waiting is a mean of."""
STARTING_STEPS = 5
"""Steps after a start that do not count: loaders start, kernels are compiled."""
WARN_EVERY_STEPS = 100
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What is known on the host after the backward pass of a step."""

    measured: list[float]
    """This rank's values, as given."""
    is_finite: bool
    """Whether all values of all ranks are finite."""
    largest: list[float]
    """The largest of each flag over all ranks."""
    shared: float
    """The largest of `shared` over all ranks."""


def agree(measured: Tensor, flags: Sequence[float], shared: Tensor | None = None) -> Agreement:
    """Bring a step's numbers to the host, and what all ranks must decide alike. Collective over all ranks.

    Everything goes in one exchange and one wait for the device, which has nothing to do before the host knows them.

    Args:
        measured: losses and gradient norms, float32 of any shape, or none.
        flags: finite numbers of this rank, equally many on all ranks.
        shared: float32 [], a number that ranks may have with other roundings and must use with the same one; 0 where
            there is none.
    """
    # Filled on the device: to send them there, the host would wait a first time.
    sent = [torch.full((), flag, dtype=torch.float32, device=measured.device) for flag in flags]
    alike = measured.new_zeros(()) if shared is None else shared.nan_to_num()
    exchanged = torch.stack([(~torch.isfinite(measured)).any().float(), alike, *sent])
    dist.all_reduce(exchanged, op=dist.ReduceOp.MAX)
    values = torch.cat([measured.flatten(), exchanged]).tolist()
    not_finite, largest_shared, *largest = values[measured.numel() :]
    return Agreement(
        measured=values[: measured.numel()], is_finite=not not_finite, largest=largest, shared=largest_shared
    )


def check_first_loss(edm_loss: float, clip_ids: Sequence[str], config: Health) -> None:
    """Check the loss of the first step of all, before its update.

    Args:
        edm_loss: mean over the global batch of the weighted squared error without the uncertainty term; the schema says
            why it is comparable.
        clip_ids: the batch.
        config: the band.

    Raises:
        WorldtuneError: it lies outside, or is not finite.
    """
    if config.first_loss_min <= edm_loss <= config.first_loss_max:
        return
    raise WorldtuneError(
        f"the edm_loss of the first step is {edm_loss:.4g}, expected {config.first_loss_min:g} to "
        f"{config.first_loss_max:g} (health.first_loss_min, health.first_loss_max): over many clips an output of zero "
        "has 1, a trained base less. No update was made. Look at checkpoints.base and checkpoints.control, at the "
        f"tokenizer and at the clips {', '.join(clip_ids)}; if such a loss is right for them, widen the band in the "
        "recipe."
    )


class SkippedSteps:
    """The record of steps without an update, and their limits."""

    def __init__(self, config: Health, attempt: Path, layout: BatchLayout, data_rank: int) -> None:
        """Take the limits, the attempt's folder, in which rank 0 writes `skipped.jsonl`, and this rank's samples."""
        self._config = config
        self._attempt = attempt
        self._layout = layout
        self._data_rank = data_rank

    def record(self, step: int, *, losses: Sequence[float], groups: Sequence[str], clip_ids: Sequence[str]) -> None:
        """Write down what a skipped step was trained on. Collective over all ranks.

        Args:
            step: number of the step, from 1.
            losses: of this rank's micro-steps.
            groups: groups of parameters whose gradient is not finite.
            clip_ids: the global batch, in the order of its sample numbers.
        """
        # JSON has no NaN.
        finite_losses = [loss if math.isfinite(loss) else None for loss in losses]
        mine = {"rank": dist.get_rank(), "data_rank": self._data_rank, "losses": finite_losses}
        ranks = [mine] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        if dist.get_rank() != 0:
            return
        row = {"step": step, "groups": list(groups), "ranks": ranks, "samples": self._samples(step, clip_ids)}
        append_rows(self._attempt / SKIPPED_FILE, [row])
        what = f"the gradient of {', '.join(groups)}" if groups else "the loss"
        logger.warning("step %d: %s is not finite; no update. Clips: %s", step, what, ", ".join(clip_ids))

    def _samples(self, step: int, clip_ids: Sequence[str]) -> list[dict[str, int | str]]:
        layout = self._layout
        places = [
            (data_rank, micro_step, ordinal)
            for micro_step in range(layout.accumulation)
            for data_rank in range(layout.data)
            for ordinal in layout.ordinals(step - 1, micro_step, data_rank)
        ]
        return [
            {"data_rank": data_rank, "micro_step": micro_step, "ordinal": ordinal, "clip_id": clip_id}
            for (data_rank, micro_step, ordinal), clip_id in zip(places, clip_ids, strict=True)
        ]

    def check_limits(self, step: int, *, in_a_row: int, in_all: int) -> None:
        """Raise a WorldtuneError where too many steps were skipped up to `step`, the last one skipped."""
        config = self._config
        if in_a_row >= config.max_skipped_in_a_row:
            count = f"{in_a_row} steps in a row are not finite (health.max_skipped_in_a_row)"
        elif in_all >= config.max_skipped:
            count = f"{in_all} steps since the first one are not finite (health.max_skipped)"
        else:
            return
        raise WorldtuneError(
            f"the losses or gradients of {count}; the last one is step {step}. {self._attempt / SKIPPED_FILE} has the "
            f"clips. Look at loss in {self._attempt / METRICS_FILE}: lower optimizer.learning_rate if it rose before, "
            "else check these clips."
        )


class DataWait:
    """Warns where the GPUs wait for data."""

    def __init__(self, recipe: Recipe) -> None:
        """Take the threshold and what could be changed."""
        self._recipe = recipe
        self._num_seen = 0
        self._shares: deque[float] = deque(maxlen=DATA_WAIT_STEPS)
        self._last_warning = -WARN_EVERY_STEPS

    def note(self, share: float) -> None:
        """Take in the share of the next step in which the slowest rank waited; warns once in a while."""
        self._num_seen += 1
        if self._num_seen <= STARTING_STEPS:
            return
        self._shares.append(share)
        recent = mean(self._shares)
        is_due = self._num_seen - self._last_warning >= WARN_EVERY_STEPS
        if len(self._shares) < DATA_WAIT_STEPS or recent <= self._recipe.health.max_data_wait or not is_due:
            return
        self._last_warning = self._num_seen
        logger.warning(
            "%.0f %% of the last %d steps went by waiting for data (health.max_data_wait is %.0f %%): %s",
            100 * recent,
            DATA_WAIT_STEPS,
            100 * self._recipe.health.max_data_wait,
            "; or ".join(self._advice()),
        )

    def _advice(self) -> list[str]:
        recipe = self._recipe
        advice = [f"raise data.num_workers, now {recipe.data.num_workers}, if the node has idle cores"]
        if not recipe.data.cache_latents and recipe.control.kind != "upscale":
            advice.append("set data.cache_latents = true, so that no video is decoded and encoded in a step")
        if not recipe.parallel.encode_ahead:
            advice.append("set parallel.encode_ahead = true if there is memory for it")
        return advice
