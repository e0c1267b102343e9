"""The loop: optimizer steps from the newest checkpoint to the last step, and everything that happens between them."""

import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch
import torch.distributed as dist
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.mesh import Mesh
from worldtune.recipe.schema import Recipe
from worldtune.training.data import BatchReader, Prefetcher
from worldtune.training.ema import PowerEma
from worldtune.training.gradients import GradientAccumulator, check_replicas, clip, global_norm
from worldtune.training.held_out import check_finite, is_measured
from worldtune.training.lease import Lease
from worldtune.training.metrics import (
    METRICS_FILE,
    VALIDATION_FILE,
    Row,
    StepClock,
    Tracker,
    append_rows,
    console_line,
    cut_rows,
    peak_memory_gb,
    read_rows,
    replace_rows,
)
from worldtune.training.optimizer import MasterAdamW, learning_rate_factor
from worldtune.training.order import BatchLayout
from worldtune.training.previews import is_due, is_made, make_preview
from worldtune.training.random import seed_default_generators
from worldtune.training.sharding import broadcast_replicas, trainable_parameters
from worldtune.training.signals import StopRequest
from worldtune.training.state import CheckpointStore, TrainState
from worldtune.training.task import Task

VERSION = 1
"""Raised when a change of the trainer changes the weights that come out; it enters every attempt's identity."""

MAX_SKIPPED_IN_A_ROW = 20
CHECKPOINTS = "checkpoints"
RECENT_STEPS = 20
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a call of `train` ended."""

    step: int
    """Completed optimizer steps of the attempt."""
    new_steps: int
    """Those of this call."""
    stopped: str | None
    """Why it ended before the last step, or None."""


def train(
    recipe: Recipe,
    task: Task,
    attempt: Path,
    *,
    mesh: Mesh,
    device: torch.device,
    stop: StopRequest,
    lease: Lease | None,
    tracker: Tracker,
) -> TrainResult:
    """Train to `training.max_iter`, from the attempt's newest checkpoint if it has one. Collective over all ranks.

    Args:
        recipe: the resolved recipe.
        task: the model on the mesh.
        attempt: folder of checkpoints, previews, metrics.jsonl and validation.jsonl, shared by all ranks.
        mesh: of all ranks.
        device: of this rank.
        stop: this rank's request to stop; any rank's is enough.
        lease: on rank 0, the right to write into `attempt`.
        tracker: a view of the metrics; used on rank 0.

    Raises:
        WorldtuneError: gradients were not finite many times in a row, a held-out loss was not, a batch is bad, the
            network's parallel plan is wrong, or the lease was lost.
        TemporaryError: the disk is too full for the checkpoints.
    """
    return _Trainer(recipe, task, attempt, mesh, device, stop, lease, tracker).run()


class _Trainer:
    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        attempt: Path,
        mesh: Mesh,
        device: torch.device,
        stop: StopRequest,
        lease: Lease | None,
        tracker: Tracker,
    ) -> None:
        self.recipe, self.task, self.attempt = recipe, task, attempt
        self.mesh, self.device, self.stop, self.tracker = mesh, device, stop, tracker
        self.lease = lease
        self.is_main = dist.get_rank() == 0
        self.data_rank = mesh.data.get_local_rank()
        self.layout = BatchLayout(
            micro_batch_size=recipe.training.micro_batch_size,
            data=recipe.parallel.data,
            accumulation=recipe.training.gradient_accumulation,
        )
        self.parameters = trainable_parameters(task.trainable)
        broadcast_replicas(self.parameters, mesh)
        optimizer = MasterAdamW(self.parameters, recipe.optimizer)
        self.state = TrainState(self.parameters, optimizer, PowerEma(optimizer.live, recipe.ema.rates))
        self.gradients = GradientAccumulator(self.parameters, mesh)
        self.store = CheckpointStore(
            attempt / CHECKPOINTS,
            keep_last=recipe.saving.keep_last,
            keep_every=recipe.saving.keep_every,
            lease=lease,
        )
        self.recent_step_s: deque[float] = deque(maxlen=RECENT_STEPS)

    def run(self) -> TrainResult:
        last_step = self.recipe.training.max_iter
        self.first_step = first_step = self._resume()
        if first_step < last_step:
            reader = BatchReader(
                self.task.make_dataset,
                self.layout,
                self.task.sample_group,
                self.device,
                data_rank=self.data_rank,
                num_workers=self.recipe.data.num_workers,
                first_step=first_step,
                last_step=last_step,
            )
            self.batches = Prefetcher(
                reader.next,
                self.task.prepare,
                self.device,
                num_batches=reader.num_batches,
                ahead=self.recipe.parallel.encode_ahead,
            )
        self._preview_if_due()
        self._validate_if_due()
        stopped = self._agree(torch.zeros((), device=self.device))[2]
        while self.state.step < last_step and stopped is None:
            stopped = self._step()
            if self.state.step % self.recipe.saving.every == 0 or self.state.step == last_step or stopped is not None:
                self._save()
            # A stop has no time for it; the next start makes up for what is due.
            if stopped is None:
                self._preview_if_due()
                self._validate_if_due()
        return TrainResult(step=self.state.step, new_steps=self.state.step - first_step, stopped=stopped)

    def _save(self) -> None:
        started = time.monotonic()
        path = self.store.save(self.state)
        logger.info("saved %s in %.1f s", path, time.monotonic() - started)

    def _resume(self) -> int:
        resumed = self.store.resume(self.state)
        if self.state.step > self.recipe.training.max_iter:
            raise WorldtuneError(
                f"{self.attempt} has gone on to step {self.state.step}, beyond training.max_iter = "
                f"{self.recipe.training.max_iter}. Raise max_iter, or delete the later checkpoints in {CHECKPOINTS}/."
            )
        if self.is_main:
            saving = self.recipe.saving
            # The newest one is complete before an old one goes.
            self.store.check_space(self.state.num_bytes(), count=1 if resumed else saving.keep_last + 1)
            self._check_lease()
            for name in (METRICS_FILE, VALIDATION_FILE):
                cut_rows(self.attempt / name, self.state.step)
            logger.info(
                "%s at step %d of %d; a checkpoint has %.2f GiB",
                "resuming" if resumed else "starting",
                self.state.step,
                self.recipe.training.max_iter,
                self.state.num_bytes() / 2**30,
            )
        return self.state.step

    def _step(self) -> str | None:
        """Make one optimizer step; returns why to stop after it, or None."""
        step = self.state.step
        clock = StepClock(self.device)
        losses, clip_ids, num_tokens = self._accumulate(step, clock)
        gradients = self.gradients.finish()
        if step == self.first_step:
            check_replicas(gradients, self.parameters, self.mesh)
        norm = global_norm(gradients, self.parameters, self.mesh)
        grad_norm, is_finite, stopped = self._agree(norm)
        learning_rate = self.recipe.optimizer.learning_rate * learning_rate_factor(step, self.recipe.schedule)
        if is_finite:
            clip(gradients, grad_norm, self.recipe.optimizer.max_grad_norm)
            self.state.optimizer.step(gradients, learning_rate)
            self.state.ema.update(step)
            self.state.skipped_in_a_row = 0
        self.state.step += 1
        clock.mark("optimizer")
        seconds = clock.finish()
        self.recent_step_s.append(seconds["step_s"])
        if self.is_main:
            tokens = num_tokens * self.layout.data
            self._record(
                {
                    "step": self.state.step,
                    "loss": losses[0],
                    "edm_loss": losses[1],
                    "grad_norm": grad_norm if is_finite else None,
                    "learning_rate": learning_rate,
                    **seconds,
                    "tokens_per_s": tokens / seconds["step_s"],
                    "peak_memory_gb": peak_memory_gb(self.device),
                    "clip_ids": clip_ids,
                    "time": time.time(),
                }
            )
        if not is_finite:
            self._count_skipped(clip_ids)
        return stopped

    def _accumulate(self, step: int, clock: StepClock) -> tuple[list[float | None], list[str], int]:
        """Run the micro-steps; returns loss and EDM loss of the global batch, its clips and this row's tokens."""
        accumulation = self.layout.accumulation
        totals = torch.zeros(2, device=self.device)
        clip_ids: list[list[str]] = []
        num_tokens = 0
        for micro_step in range(accumulation):
            batch = self.batches.next()
            ordinal = self.layout.ordinals(step, micro_step, self.data_rank)[0]
            seed_default_generators(self.recipe.training.seed, "default", ordinal)
            clock.mark("data")
            output = self.task.training_loss(batch)
            clock.mark("forward")
            (output.loss / accumulation).backward()
            self.gradients.add()
            clock.mark("backward")
            totals += torch.stack([output.loss.detach(), output.edm_loss.detach()]).float()
            clip_ids.append(list(batch["clip_id"]))
            num_tokens += output.num_tokens
        return self._global_losses(totals / accumulation), self._global_clip_ids(clip_ids), num_tokens

    def _global_losses(self, losses: Tensor) -> list[float | None]:
        if self.layout.data > 1:
            dist.all_reduce(losses, group=self.mesh.data.get_group())
            losses = losses / self.layout.data
        # JSON has no NaN.
        return [loss if math.isfinite(loss) else None for loss in losses.tolist()]

    def _global_clip_ids(self, clip_ids: list[list[str]]) -> list[str]:
        rows = [clip_ids]
        if self.layout.data > 1:
            rows = [[] for _ in range(self.layout.data)]
            dist.all_gather_object(rows, clip_ids, group=self.mesh.data.get_group())
        return [clip_id for micro_step in zip(*rows, strict=True) for row in micro_step for clip_id in row]

    def _agree(self, norm: Tensor) -> tuple[float, bool, str | None]:
        """Return this rank's norm, whether all ranks' are finite, and why to stop if any rank was asked to."""
        reason = self.stop.reason()
        flags = torch.stack([(~torch.isfinite(norm)).float(), torch.full_like(norm, float(reason is not None))])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        # Waits for the device, which has nothing to do before the host knows the norm.
        value, not_finite, stop = torch.cat([norm[None], flags]).tolist()
        return value, not not_finite, (reason or "a signal to another rank") if stop else None

    def _count_skipped(self, clip_ids: list[str]) -> None:
        state = self.state
        state.skipped += 1
        state.skipped_in_a_row += 1
        logger.warning("step %d: the gradient is not finite; no update. Clips: %s", state.step, ", ".join(clip_ids))
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise WorldtuneError(
                f"the gradients of {MAX_SKIPPED_IN_A_ROW} steps in a row are not finite; the last one, step "
                f"{state.step}, read the clips {', '.join(clip_ids)}. Look at loss in {self.attempt / METRICS_FILE}: "
                "lower optimizer.learning_rate if it rose before, else check these clips."
            )

    def _record(self, row: Row) -> None:
        self._check_lease()
        append_rows(self.attempt / METRICS_FILE, [row])
        self.tracker.log({key: value for key, value in row.items() if isinstance(value, float)}, row["step"])
        last_step = self.recipe.training.max_iter
        if row["step"] % self.recipe.logging.console_every == 0 or row["step"] == last_step:
            logger.info("%s", console_line(row, last_step, median(self.recent_step_s) * (last_step - row["step"])))

    def _preview_if_due(self) -> None:
        # Before the held-out loss, whose last measurement makes an attempt finished.
        step, config = self.state.step, self.recipe.previews
        if not is_due(step, config, last_step=self.recipe.training.max_iter):
            return
        made = [self.is_main and is_made(self.attempt, step)]
        dist.broadcast_object_list(made, src=0)
        if made[0]:
            return
        self._check_lease()

        def ends(failed: bool) -> bool:
            self._check_lease()
            _, can_go_on, stopped = self._agree(torch.full((), math.nan if failed else 0.0, device=self.device))
            return stopped is not None or not can_go_on

        make_preview(self.task, config, self.attempt, step, is_main=self.is_main, ends=ends, tracker=self.tracker)

    def _validate_if_due(self) -> None:
        step = self.state.step
        if step % self.recipe.validation.every and step != self.recipe.training.max_iter:
            return
        path = self.attempt / VALIDATION_FILE
        present = [self.is_main and self._is_measured(path)]
        dist.broadcast_object_list(present, src=0)
        if present[0]:
            return
        started = time.monotonic()
        with torch.no_grad():
            rows = self.task.validate()
        check_finite(rows, step)
        if not self.is_main or not rows:
            return
        self._check_lease()
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
        self.tracker.log(means, step)
        text = ", ".join(f"{name} control {value:.4f}" for name, value in means.items())
        logger.info("held-out loss at step %d: %s (%.1f s)", step, text, time.monotonic() - started)

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()

    def _is_measured(self, path: Path) -> bool:
        sigmas, clip_ids = self.recipe.validation.sigmas, self.task.measured_clip_ids
        return is_measured(read_rows(path), self.state.step, sigmas=sigmas, clip_ids=clip_ids)
