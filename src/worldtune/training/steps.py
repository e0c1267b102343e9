"""What an optimizer step gives: its batch, its numbers on the host, its row of the record."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from worldtune.parallel.mesh import Mesh
from worldtune.training.metrics import Row, finite
from worldtune.training.order import BatchLayout
from worldtune.training.throughput import utilization


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What the micro-steps gave."""

    totals: Tensor
    """Of the global batch, float32 [4]: mean loss and EDM loss, tokens and operations."""
    losses: Tensor
    """Of this rank's micro-steps, float32 [A]."""
    clip_ids: list[str]
    """Of the global batch, in the order of its sample numbers."""


def gather_batch(
    losses: Tensor, clip_ids: list[list[str]], work: Sequence[float], *, layout: BatchLayout, mesh: Mesh
) -> StepBatch:
    """Join what all data-parallel ranks' micro-steps gave. Collective over them.

    Args:
        losses: loss and EDM loss of this rank's micro-steps, float32 [A, 2].
        clip_ids: of each of them.
        work: tokens and operations of all of them together.
        layout: the samples over ranks and micro-steps.
        mesh: of all ranks.
    """
    sent = [torch.full((), value, dtype=torch.float32, device=losses.device) for value in work]
    totals = torch.cat([losses.mean(dim=0) / layout.data, torch.stack(sent)])
    rows = [clip_ids]
    if layout.data > 1:
        group = mesh.data.get_group()
        dist.all_reduce(totals, group=group)
        rows = [[] for _ in range(layout.data)]
        dist.all_gather_object(rows, clip_ids, group=group)
    # A sample's number rises by micro-step, then by rank.
    ordered = [clip_id for micro_step in zip(*rows, strict=True) for row in micro_step for clip_id in row]
    return StepBatch(totals=totals, losses=losses[:, 0], clip_ids=ordered)


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """The numbers of the global batch; what is decided from the last two is the same on all ranks."""

    loss: float
    edm_loss: float
    tokens: float
    """Latent tokens."""
    flop: float
    """Operations, 0 where nobody has counted."""
    grad_norm: float
    grad_norm_by_group: dict[str, float | None]
    """By part of the trained module; None where it is not finite."""
    is_finite: bool
    """Whether losses and norms are, on all ranks."""
    stopped: str | None
    """Why to stop after the step."""

    def row(self, *, num_devices: int, peak: float | None, seconds: dict[str, float]) -> Row:
        """Return the part of the step's row that follows from its numbers and its time.

        Args:
            num_devices: of all ranks together.
            peak: of one device in operations per second; None is not known.
            seconds: by part of the step, with `step_s`.
        """
        return {
            "loss": finite(self.loss),
            "edm_loss": finite(self.edm_loss),
            "grad_norm": self.grad_norm if self.is_finite else None,
            "grad_norm_by_group": self.grad_norm_by_group,
            **seconds,
            "tokens_per_s": self.tokens / seconds["step_s"],
            "mfu": utilization(self.flop, seconds["step_s"], num_devices=num_devices, peak=peak),
        }
