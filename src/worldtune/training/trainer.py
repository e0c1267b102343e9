"""The loop: optimizer steps from the newest checkpoint to the last step, and everything that happens between them."""

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.common.progress import step_progress
from worldtune.parallel.mesh import Mesh
from worldtune.recipe.schema import Recipe
from worldtune.training.data import BatchReader, Prefetcher
from worldtune.training.ema import PowerEma
from worldtune.training.errors import TemporaryError
from worldtune.training.gradients import (
    GradientAccumulator,
    check_replicas,
    clip,
    gradient_norms,
    parameter_groups,
)
from worldtune.training.health import DataWait, SkippedSteps, agree, check_first_loss
from worldtune.training.launch_info import note_resume
from worldtune.training.lease import Lease
from worldtune.training.looks import measure_if_due, preview_if_due
from worldtune.training.main_rank import on_main_rank
from worldtune.training.metrics import (
    METRICS_FILE,
    SKIPPED_FILE,
    VALIDATION_FILE,
    Row,
    StepClock,
    Tracker,
    append_rows,
    console_text,
    cut_rows,
    finite,
    peak_memory_gb,
    tracked,
)
from worldtune.training.optimizer import MasterAdamW, learning_rate_factor
from worldtune.training.order import BatchLayout
from worldtune.training.preflight import Preflight
from worldtune.training.random import seed_default_generators
from worldtune.training.sharding import broadcast_replicas, trainable_parameters
from worldtune.training.signals import StopRequest
from worldtune.training.state import TrainState
from worldtune.training.steps import StepBatch, StepNumbers, gather_batch
from worldtune.training.store import CheckpointStore
from worldtune.training.task import Task
from worldtune.training.throughput import peak_flop_per_s
from worldtune.training.whereabouts import mark

VERSION = 1
"""Raised when a change of the trainer changes the weights that come out; it enters every attempt's identity."""

CHECKPOINTS = "checkpoints"
LOADERS = "loaders"
"""Key of the loaders' positions in what a checkpoint carries."""
RECENT_STEPS = 20
LAST_WRITE_S = 600.0
"""What a checkpoint in flight is given when training has failed."""
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
    about: Mapping[str, str],
    preflight: Preflight | None,
) -> TrainResult:
    """Train to `training.max_iter`, from the attempt's newest checkpoint if it has one. Collective over all ranks.

    Args:
        recipe: the resolved recipe.
        task: the model on the mesh.
        attempt: folder of checkpoints, previews, metrics.jsonl, validation.jsonl and skipped.jsonl; all ranks see it.
        mesh: of all ranks.
        device: of this rank.
        stop: this rank's request to stop; any rank's is enough.
        lease: on rank 0, the right to write into `attempt`.
        tracker: a view of the metrics; used on rank 0.
        about: what checkpoints belong to, such as the hash of the frozen base, which they do not hold.
        preflight: what is measured before the first step of this call; None measures nothing.

    Raises:
        WorldtuneError: the first loss is out of its band, losses or gradients were not finite too often, a held-out
            loss was not, a batch is bad, the network's parallel plan is wrong, the largest batch does not fit the GPU,
            a checkpoint belongs to something else, or the lease was lost.
        TemporaryError: the disk is too full for the checkpoints.
    """
    trainer = _Trainer(recipe, task, attempt, mesh, device, stop, lease, tracker, about, preflight)
    try:
        return trainer.run()
    finally:
        trainer.close()


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
        about: Mapping[str, str],
        preflight: Preflight | None,
    ) -> None:
        self.recipe, self.task, self.attempt = recipe, task, attempt
        self.mesh, self.device, self.stop, self.tracker = mesh, device, stop, tracker
        self.lease, self.preflight = lease, preflight
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
            about=about,
        )
        self.recent_step_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self.groups = parameter_groups(task.trainable, self.parameters)
        self.skipped = SkippedSteps(recipe.health, attempt, self.layout, self.data_rank)
        self.data_wait = DataWait(recipe)
        self.own_data_wait = 0.0
        self.peak = peak_flop_per_s(device, recipe.training.precision)
        self.reader: BatchReader | None = None

    def close(self) -> None:
        """End what runs beside the loop."""
        try:
            # Also after an error: what was saved before it shall not be lost with it.
            self.store.close(LAST_WRITE_S)
        finally:
            if self.reader is not None:
                self.reader.close()

    def run(self) -> TrainResult:
        last_step = self.recipe.training.max_iter
        self.first_step = first_step = self._resume()
        measures_only = self.preflight is not None and self.preflight.only
        if first_step < last_step and not measures_only:
            self.store.prepare(self.state)
            self.reader = reader = BatchReader(
                self.task.make_dataset,
                self.layout,
                self.task.sample_group,
                self.device,
                dataset_digest=self.task.dataset_digest,
                data_rank=self.data_rank,
                num_workers=self.recipe.data.num_workers,
                first_step=first_step,
                last_step=last_step,
            )
            reader.load_state_dict(self.loaders)
            reader.start()
            self.batches = Prefetcher(
                reader.next,
                self.task.prepare,
                self.device,
                num_batches=reader.num_batches,
                ahead=self.recipe.parallel.encode_ahead,
            )
        if self.preflight is not None and (first_step < last_step or measures_only):
            mark("measuring before the first step")
            self.preflight.run(self.task, self.state, self.gradients, self.mesh)
            if measures_only:
                return TrainResult(step=first_step, new_steps=0, stopped=None)
        stopped = self._agree(torch.zeros(0, device=self.device))[2]
        if stopped is None:
            stopped = self._look_if_due()
        with step_progress("step", last_step, done=first_step, is_shown=self.is_main) as self.show:
            while self.state.step < last_step and stopped is None:
                stopped = self._step()
                is_last = self.state.step == last_step or stopped is not None
                if self.state.step % self.recipe.saving.every == 0 or is_last:
                    self._save()
                # A stop has no time for it; the next start makes up for what is due.
                if stopped is None:
                    stopped = self._look_if_due()
                    if stopped is not None:
                        self._save()
        mark("writing the last checkpoint")
        self.store.finish()
        return TrainResult(step=self.state.step, new_steps=self.state.step - first_step, stopped=stopped)

    def _save(self) -> None:
        """Begin to save the present step, unless it is saved."""
        mark("saving", self.state.step)
        self.store.begin(self.state, {LOADERS: self._loader_positions()})

    def _look_if_due(self) -> str | None:
        """Draw previews and measure the held-out loss where the present step is one for it.

        Returns:
            Why to stop at this step, where a rank was asked to meanwhile, or None.
        """
        stopped: str | None = None

        def is_told_to_stop(failed: bool) -> bool:
            nonlocal stopped
            measured = torch.full((), math.nan if failed else 0.0, device=self.device)
            _, can_go_on, stopped, _ = self._agree(measured)
            return stopped is not None or not can_go_on

        # The held-out loss comes last: its last measurement makes an attempt finished.
        for look in (preview_if_due, measure_if_due):
            if stopped is None:
                look(
                    self.task,
                    self.recipe,
                    self.attempt,
                    self.state.step,
                    lease=self.lease,
                    tracker=self.tracker,
                    is_told_to_stop=is_told_to_stop,
                )
        return stopped

    def _loader_positions(self) -> list[dict[str, Any]]:
        """Return the position of each data-parallel rank's loader, in their order; collective over all ranks."""
        assert self.reader is not None
        found: list[dict[str, Any] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(found, self.reader.state_dict(self.state.step))
        return sorted((position for position in found if position is not None), key=lambda one: one["data_rank"])

    def _resume(self) -> int:
        mark("looking for a checkpoint")
        extra = self.store.resume(self.state)
        resumed = extra is not None
        self.loaders = (extra or {}).get(LOADERS, [])
        if self.state.step > self.recipe.training.max_iter:
            raise WorldtuneError(
                f"{self.attempt} has gone on to step {self.state.step}, beyond training.max_iter = "
                f"{self.recipe.training.max_iter}. Raise max_iter, or delete the later checkpoints in {CHECKPOINTS}/."
            )
        if self.preflight is None or not self.preflight.only:
            num_bytes = self.state.num_bytes()
            on_main_rank(lambda: self._go_on_with_records(is_resumed=resumed, num_bytes=num_bytes))
        return self.state.step

    def _go_on_with_records(self, *, is_resumed: bool, num_bytes: int) -> None:
        """Cut from the attempt's records, on rank 0, what is made again."""
        step = self.state.step
        # The newest checkpoint is complete before an old one goes.
        self.store.check_space(num_bytes, count=1 if is_resumed else self.recipe.saving.keep_last + 1)
        self._check_lease()
        repeated = cut_rows(self.attempt / METRICS_FILE, step)
        for name in (VALIDATION_FILE, SKIPPED_FILE):
            cut_rows(self.attempt / name, step)
        note_resume(self.attempt, start_step=step, repeated_steps=repeated)
        logger.info(
            "%s at step %d of %d%s; a checkpoint has %.2f GiB",
            *("resuming" if is_resumed else "starting", step, self.recipe.training.max_iter),
            *(f"; made again after it: {repeated}" if repeated else "", num_bytes / 2**30),
        )

    def _step(self) -> str | None:
        """Make one optimizer step; returns why to stop after it, or None."""
        state = self.state
        step = state.step
        clock = StepClock(self.device)
        batch = self._accumulate(step, clock)
        gradients = self.gradients.finish()
        mark("optimizer", step + 1)
        if step == self.first_step:
            check_replicas(gradients, self.parameters, self.mesh)
        numbers = self._measure(batch, gradients)
        self._watch(step, batch, numbers)
        learning_rate = self.recipe.optimizer.learning_rate * learning_rate_factor(step, self.recipe.schedule)
        if numbers.is_finite:
            clip(gradients, numbers.grad_norm, self.recipe.optimizer.max_grad_norm)
            state.optimizer.step(gradients, learning_rate)
            state.ema.update(step)
        state.skipped += not numbers.is_finite
        state.skipped_in_a_row = 0 if numbers.is_finite else state.skipped_in_a_row + 1
        state.step += 1
        clock.mark("optimizer")
        seconds = clock.finish()
        self.recent_step_s.append(seconds["step_s"])
        self.own_data_wait = seconds["data_s"] / seconds["step_s"]
        if self.is_main:
            self._record(
                {
                    "step": state.step,
                    **numbers.row(num_devices=dist.get_world_size(), peak=self.peak, seconds=seconds),
                    "learning_rate": learning_rate,
                    "peak_memory_gb": peak_memory_gb(self.device),
                    "clip_ids": batch.clip_ids,
                    "time": time.time(),
                }
            )
        if not numbers.is_finite:
            self.skipped.check_limits(state.step, in_a_row=state.skipped_in_a_row, in_all=state.skipped)
        return numbers.stopped

    def _measure(self, batch: StepBatch, gradients: Mapping[str, Tensor]) -> StepNumbers:
        """Bring the step's numbers to the host, and agree with all ranks on what follows from them."""
        norms = gradient_norms(gradients, self.parameters, self.mesh, self.groups)
        # Copies of a weight on several ranks would drift apart, were each clipped by its own rank's norm.
        values, is_finite, stopped, grad_norm = self._agree(torch.cat([batch.totals, norms]), norms[0])
        loss, edm_loss, tokens, flop, _, *group_norms = values
        names = sorted(set(self.groups.values()))
        return StepNumbers(
            loss=loss,
            edm_loss=edm_loss,
            tokens=tokens,
            flop=flop,
            grad_norm=grad_norm,
            grad_norm_by_group={name: finite(norm) for name, norm in zip(names, group_norms, strict=True)},
            is_finite=is_finite,
            stopped=stopped,
        )

    def _watch(self, step: int, batch: StepBatch, numbers: StepNumbers) -> None:
        """Look whether the run is well, before the update after 0-based step `step`."""
        if self.is_main:
            self.data_wait.note(self.longest_data_wait)
        if not numbers.is_finite:
            self._check_lease()
            groups = [group for group, norm in numbers.grad_norm_by_group.items() if norm is None]
            self.skipped.record(step + 1, losses=batch.losses.tolist(), groups=groups, clip_ids=batch.clip_ids)
        if step == 0:
            edm_loss = numbers.edm_loss if numbers.is_finite else math.nan
            check_first_loss(edm_loss, batch.clip_ids, self.recipe.health)

    def _accumulate(self, step: int, clock: StepClock) -> StepBatch:
        """Run the micro-steps."""
        accumulation = self.layout.accumulation
        losses: list[Tensor] = []
        clip_ids: list[list[str]] = []
        work = [0.0, 0.0]
        for micro_step in range(accumulation):
            mark("data", step + 1)
            batch = self.batches.next()
            ordinal = self.layout.ordinals(step, micro_step, self.data_rank)[0]
            seed_default_generators(self.recipe.training.seed, "default", ordinal)
            clock.mark("data")
            mark("forward", step + 1)
            output = self.task.training_loss(batch)
            clock.mark("forward")
            mark("backward", step + 1)
            (output.loss / accumulation).backward()
            self.gradients.add()
            clock.mark("backward")
            losses.append(torch.stack([output.loss.detach(), output.edm_loss.detach()]).float())
            clip_ids.append(list(batch["clip_id"]))
            work = [work[0] + output.num_tokens, work[1] + output.flop]
        return gather_batch(torch.stack(losses), clip_ids, work, layout=self.layout, mesh=self.mesh)

    def _agree(self, measured: Tensor, shared: Tensor | None = None) -> tuple[list[float], bool, str | None, float]:
        """Return this rank's values, whether all ranks' are finite, why to stop if any rank was asked to, and `shared`.

        See `worldtune.training.health.agree`.
        """
        reason = self.stop.reason()
        flags = [float(reason is not None), float(self.store.failed()), self.own_data_wait]
        agreement = agree(measured, flags, shared)
        stop, failed, data_wait = agreement.largest
        if failed:
            self.store.finish()
            raise TemporaryError(
                f"{self.attempt / CHECKPOINTS}: another rank could not write its part of a checkpoint."
            )
        self.longest_data_wait = data_wait
        why = (reason or "a signal to another rank") if stop else None
        return agreement.measured, agreement.is_finite, why, agreement.shared

    def _record(self, row: Row) -> None:
        self._check_lease()
        append_rows(self.attempt / METRICS_FILE, [row])
        self.tracker.log({f"train/{key}": value for key, value in tracked(row).items()}, row["step"])
        last_step = self.recipe.training.max_iter
        if row["step"] % self.recipe.logging.console_every == 0 or row["step"] == last_step:
            self.show(row["step"], console_text(row, median(self.recent_step_s) * (last_step - row["step"])))

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()
