"""What a job measures before its first step: whether the largest batch fits, and how long training will take.

Two steps on random inputs of the largest shape that the dataset has for the recipe, from the tokenizer to the clipped
gradients. Weights, moments, averages, random draws and the position in the data stay as they are: a run with this
measurement equals one without it, bit for bit. `preflight.json` in the attempt holds what was found; a restart under
the same recipe, inputs, code and hardware reads it and measures nothing.
"""

import logging
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest, read_json, write_json
from worldtune.parallel.mesh import Mesh
from worldtune.recipe.estimate import sample_flop
from worldtune.recipe.memory import gpu_memory
from worldtune.recipe.schema import Recipe
from worldtune.training.data import Prefetcher
from worldtune.training.gradients import GradientAccumulator, clip, global_norm
from worldtune.training.hardware import DeviceMemory, describe_hardware, peak_tflops
from worldtune.training.lease import Lease
from worldtune.training.metrics import StepClock
from worldtune.training.random import seed_default_generators
from worldtune.training.state import TrainState
from worldtune.training.task import Batch, Task

VERSION = 2
FORMAT = 1
PREFLIGHT = "preflight.json"
TIMED_STEPS = 2
"""The first one compiles and makes buffers; the last one counts."""
MICRO_STEPS = 2
"""Micro-steps of a timed step at most: from the second one on, all are alike."""
NEARLY_FULL = 0.97
CONTROLS_MEASURED = 2
"""Forward passes of a held-out clip at each noise level: with its own control, and with another clip's."""
GIB = 2**30
MEMORY_ADVICE = (
    'Under [parallel], set encode_ahead = false, recompute more (recompute = "everything" and recompute_less = 0 take '
    "the least memory), raise tensor or context, or shard the weights; or lower data.num_frames, data.resolution or "
    "training.micro_batch_size."
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A step at the largest shape."""

    first_step_s: float
    """Seconds of the first one, with compilation; not scaled to all micro-steps."""
    data_s: float
    """Seconds of a step's micro-steps in which their inputs are encoded, as far as it is not done beside others."""
    forward_s: float
    """Seconds of all their forward passes."""
    backward_s: float
    """Seconds of all their backward passes."""
    optimizer_s: float
    """Seconds of the sum over ranks, the norm and the clipping; the update itself is not made."""
    num_tokens: int
    """Latent tokens of one micro-batch."""

    @property
    def step_s(self) -> float:
        """Seconds of a step with all its micro-steps."""
        return self.data_s + self.forward_s + self.backward_s + self.optimizer_s


class Preflight:
    """The measurement of one attempt."""

    def __init__(
        self, recipe: Recipe, folder: Path, *, circumstances: str, device: torch.device, lease: Lease | None, only: bool
    ) -> None:
        """Measure nothing yet.

        Args:
            recipe: the resolved recipe.
            folder: the attempt's.
            circumstances: stands for recipe, inputs and code; used on rank 0.
            device: of this rank.
            lease: on rank 0, the right to write into `folder`.
            only: whether the job ends after this.
        """
        self.only = only
        self._recipe = recipe
        self._path = folder / PREFLIGHT
        self._lease = lease
        self._device = device
        self._hardware = describe_hardware(device, dist.get_world_size())
        self._key = digest([circumstances, self._hardware, str(torch.__version__)])

    def run(self, task: Task, state: TrainState, gradients: GradientAccumulator, mesh: Mesh) -> None:
        """Measure and record unless that is done; collective over all ranks.

        Args:
            task: as it goes into training.
            state: as it goes into training; it does not change.
            gradients: without sums, before and after.
            mesh: of all ranks.

        Raises:
            WorldtuneError: the largest batch does not fit the GPU; the message names its shape and keys to change.
        """
        recorded = [self._lease is not None and self._is_recorded()]
        dist.broadcast_object_list(recorded, src=0)
        if recorded[0]:
            if self.only and self._lease is not None:
                self._tell(read_json(self._path))
            return
        memory = DeviceMemory(self._device)
        batch: Batch = {}
        try:
            batch = task.largest_batch()
            shapes = {name: list(value.shape) for name, value in batch.items() if isinstance(value, Tensor)}
            timing = _time_steps(self._recipe, task, batch, state, gradients, mesh, self._device, memory)
        except torch.OutOfMemoryError as error:
            raise WorldtuneError(self._out_of_memory(batch, error)) from error
        del batch
        memory.release()
        peak = memory.max_over_ranks()
        if self._lease is None:
            return
        record = self._record(task, state, timing, peak, shapes)
        self._lease.check()
        write_json(self._path, record)
        self._tell(record)

    def _is_recorded(self) -> bool:
        return self._path.exists() and read_json(self._path).get("key") == self._key

    def _out_of_memory(self, batch: Batch, error: torch.OutOfMemoryError) -> str:
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        largest = max(tensors, key=lambda name: tensors[name].numel(), default="")
        shape = f"{largest} {'x'.join(map(str, tensors[largest].shape))}" if largest else "being made"
        return (
            f"the largest micro-batch of the dataset ({shape}) does not fit the memory of {self._hardware['device']}, "
            f"rank {dist.get_rank()}: {str(error).splitlines()[0]} {MEMORY_ADVICE}"
        )

    def _record(
        self, task: Task, state: TrainState, timing: Timing, peak: Mapping[str, Any], shapes: Mapping[str, list[int]]
    ) -> dict[str, Any]:
        recipe = self._recipe
        tokens = timing.num_tokens * recipe.training.gradient_accumulation * recipe.parallel.data
        samples_flop = sample_flop(recipe, timing.num_tokens // recipe.training.micro_batch_size)
        rate = recipe.training.global_batch_size * samples_flop / timing.step_s / recipe.world_size / 1e12
        known = peak_tflops(self._hardware["device"]) if recipe.training.precision == "bfloat16" else None
        return {
            "format": FORMAT,
            "key": self._key,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "hardware": self._hardware,
            "torch": str(torch.__version__),
            "parallel": recipe.parallel.model_dump(mode="json"),
            "checks": dict(task.start_checks),
            "largest_batch": {"shapes": dict(shapes), "tokens": timing.num_tokens},
            # Of a GPU, at the largest size that the recipe allows.
            "memory_gib": {**peak, "counted": gpu_memory(recipe).total / GIB if peak["device"] else None},
            "seconds": {
                "first_step": timing.first_step_s,
                "step": timing.step_s,
                "data": timing.data_s,
                "forward": timing.forward_s,
                "backward": timing.backward_s,
                "optimizer": timing.optimizer_s,
            },
            "tokens_per_s": tokens / timing.step_s,
            "tflops_a_process": rate,
            "mfu": rate / known if known else None,
            "checkpoint_gib": state.num_bytes() / GIB,
            "free_disk_gib": shutil.disk_usage(self._path.parent).free / GIB,
            "predicted": predict(recipe, timing, from_step=state.step, num_clips=len(task.measured_clip_ids)),
        }

    def _tell(self, record: Mapping[str, Any]) -> None:
        memory, seconds, predicted = record["memory_gib"], record["seconds"], record["predicted"]
        of_device = f" of {memory['device']:.1f}" if memory["device"] else ""
        mfu = f", {record['mfu']:.1%} MFU" if record["mfu"] else ""
        logger.info(
            "preflight: %s tokens at the largest shape, %.2f s/step after %.1f s for the first%s, peak %.1f%s GiB; "
            "steps %d to %d would take %.2f h at this shape, measurements and previews %.2f h, in jobs of %d minutes: "
            "%d (%s)",
            *(f"{record['largest_batch']['tokens']:,}", seconds["step"], seconds["first_step"], mfu),
            *(memory["peak"], of_device),
            *(predicted["from_step"], predicted["to_step"], predicted["training_h"]),
            predicted["validation_h"] + predicted["previews_h"],
            *(self._recipe.cluster.runtime_minutes, predicted["jobs"], self._path),
        )
        if memory["device"] and memory["peak"] + memory["outside"] > NEARLY_FULL * memory["device"]:
            logger.warning(
                "the largest batch leaves %.1f of %.1f GiB: gaps between blocks of memory may still end the run. %s",
                *(memory["device"] - memory["peak"] - memory["outside"], memory["device"], MEMORY_ADVICE),
            )


def _time_steps(
    recipe: Recipe,
    task: Task,
    batch: Batch,
    state: TrainState,
    gradients: GradientAccumulator,
    mesh: Mesh,
    device: torch.device,
    memory: DeviceMemory,
) -> Timing:
    """Make the trainer's step without its update, twice."""
    accumulation = recipe.training.gradient_accumulation
    micro_steps = min(accumulation, MICRO_STEPS)
    # One more, so that the last step too has a batch that is encoded beside it.
    batches = Prefetcher(
        lambda: batch,
        task.prepare,
        device,
        num_batches=TIMED_STEPS * micro_steps + 1,
        ahead=recipe.parallel.encode_ahead,
    )
    steps: list[dict[str, float]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_default_generators(recipe.training.seed, "preflight")
        for _ in range(TIMED_STEPS):
            clock = StepClock(device)
            for _ in range(micro_steps):
                prepared = batches.next()
                clock.mark("data")
                output = task.training_loss(prepared)
                clock.mark("forward")
                (output.loss / accumulation).backward()
                gradients.add()
                clock.mark("backward")
            sums = gradients.finish()
            norm = global_norm(sums, state.parameters, mesh)
            clip(sums, norm.item(), recipe.optimizer.max_grad_norm)
            # The average takes one weight at a time into float32.
            memory.mark_update(max(gradient.numel() * 4 for gradient in sums.values()))
            clock.mark("optimizer")
            steps.append(clock.finish())
            del sums
    last = steps[-1]
    scale = accumulation / micro_steps
    return Timing(
        first_step_s=steps[0]["step_s"],
        data_s=last["data_s"] * scale,
        forward_s=last["forward_s"] * scale,
        backward_s=last["backward_s"] * scale,
        optimizer_s=last["optimizer_s"],
        num_tokens=output.num_tokens,
    )


def predict(recipe: Recipe, timing: Timing, *, from_step: int, num_clips: int) -> dict[str, Any]:
    """Return how long training will take if every batch has the largest shape.

    Measurements and previews are counted as forward passes. Reading videos, which loaders do beside the steps, saving,
    which goes on beside them, and decoding previews are not in it.

    Args:
        recipe: the resolved recipe.
        timing: of a step.
        from_step: completed steps.
        num_clips: held-out clips that are measured.

    Returns:
        The steps that it is for, `training_h`, `validation_h`, `previews_h` and `hours`, `jobs`: how many of the time
        limit cluster.runtime_minutes that is, and `left_out`.
    """
    last = recipe.training.max_iter
    due = _times(recipe.validation.every, from_step, last)
    passes = num_clips * len(recipe.validation.sigmas) * CONTROLS_MEASURED
    # Ranks share the clips, unless weights are sharded over them.
    ranks = recipe.parallel.data if recipe.parallel.shard == "nothing" else 1
    samples = recipe.training.micro_batch_size * recipe.training.gradient_accumulation
    training_s = (last - from_step) * timing.step_s
    forward_s = timing.forward_s / samples
    validation_s = due * math.ceil(passes / ranks) * forward_s
    previews_s = _times(recipe.previews.every, from_step, last) * _preview_passes(recipe, num_clips, ranks) * forward_s
    all_s = training_s + validation_s + previews_s
    job_s = max(60.0, recipe.cluster.runtime_minutes * 60.0 - recipe.cluster.save_seconds)
    return {
        "from_step": from_step,
        "to_step": last,
        "training_h": training_s / 3600,
        "validation_h": validation_s / 3600,
        "previews_h": previews_s / 3600,
        "hours": all_s / 3600,
        "jobs": math.ceil(all_s / job_s),
        "left_out": "starting jobs; decoding previews; reading and saving, as far as steps wait for them",
    }


def _times(every: int, from_step: int, last: int) -> int:
    """Return how often something is due at multiples of a step number and behind the last step; 0 is never."""
    return sum(1 for step in range(from_step, last) if step % every == 0) + 1 if every else 0


def _preview_passes(recipe: Recipe, num_clips: int, ranks: int) -> int:
    """Return the forward passes of one preview, one after the other; none without held-out clips."""
    previews = recipe.previews
    rounds = math.ceil(previews.num_clips / ranks) if num_clips else 0
    # Guidance takes a second one, without the text.
    return rounds * sum((previews.num_steps + 1) * (2 if guidance else 1) for guidance in previews.guidances)
