"""What the trainer asks of a task: a model on a mesh, a dataset of ordinals, a loss and a held-out measurement."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

Sample = dict[str, Tensor | str]
"""One sample: tensors of equal shape over a micro-batch, and strings; `clip_id` (a string) is required."""
Batch = dict[str, Any]
"""A micro-batch: tensors stacked along a new first axis, on the device; strings as lists. All ranks of a sample have
the same."""


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """The loss of one micro-batch."""

    loss: Tensor
    """What is differentiated: the mean over the micro-batch, float32, no axes."""
    edm_loss: Tensor
    """The same without the uncertainty weighting, detached, for the record; equals `loss` where there is none."""
    num_tokens: int
    """Latent tokens of the micro-batch, before they are sharded over ranks."""
    flop: float = 0.0
    """Floating-point operations of its forward and backward pass on all ranks of the samples together, as the model
    needs them: what is computed a second time counts once. 0 where nobody has counted."""


@dataclass(frozen=True, kw_only=True)
class ValidationRow:
    """The loss of one held-out clip at one noise level."""

    sigma: float
    """Noise level; 0 for objectives without one."""
    clip_id: str
    """The clip."""
    control: Literal["own", "other"]
    """Whether the clip's own control was given or another clip's."""
    loss: float
    """Mean squared error under the objective's weight."""


@dataclass(frozen=True, kw_only=True)
class PreviewFiles:
    """What was written of one drawn clip."""

    clip_id: str
    """The clip."""
    columns: tuple[str, ...]
    """What each column is, before those of the guidances: control inputs and ground truth."""
    video: str
    """Name of the video: all columns side by side."""
    grid: str
    """Name of the picture: first, middle and last frame of each column."""
    num_frames: int
    """Frames of the video."""
    height: int
    """Pixels of a column."""
    width: int
    """Pixels of a column."""
    fps: float
    """Frames a second."""
    scores: Mapping[float, Mapping[str, float]]
    """Scores by guidance and name; empty where the kind of control has none."""


class DrawnClip(Protocol):
    """A clip that was drawn at each guidance, before anything of it was written."""

    def write(self, folder: Path) -> PreviewFiles:
        """Write video and grid, each whole or not at all. Not collective.

        Raises:
            OSError: the disk is full or cannot be written.
            OutOfMemoryError: the device has no room for the frames.
        """
        ...


class Task(Protocol):
    """One model family's side of a training run.

    The trainer wraps nothing: `trainable`'s parameters that require a gradient are trained, as DTensors where they are
    split over the tensor ranks and as plain tensors (or replicated DTensors) where every rank holds them whole. After
    a backward pass each of these has its complete gradient on every tensor rank; sums that sequence parallelism needs
    are the network's matter. The data-parallel mean, accumulation and clipping are the trainer's.

    Every random draw is a function of the seed, the sample's ordinal and a purpose (`worldtune.training.random`), so a
    task has no state beyond its weights and none of it is saved.
    """

    @property
    def trainable(self) -> nn.Module:
        """The module whose parameters are trained, saved and averaged."""
        ...

    @property
    def sample_group(self) -> dist.ProcessGroup:
        """This rank and those that work on the same samples, as a group that the network itself does not use."""
        ...

    @property
    def dataset_digest(self) -> str:
        """Digest of the dataset's clips, which the saved positions in the data are of."""
        ...

    @property
    def measured_clip_ids(self) -> list[str]:
        """The held-out clips that `validate` measures."""
        ...

    @property
    def start_checks(self) -> Mapping[str, str]:
        """What was checked when the task was built, by name, and what was found; for the record."""
        ...

    def make_dataset(self) -> Dataset[Sample]:
        """Return a map-style dataset: an ordinal (global sample number) in, a sample out.

        It is called on the first rank of each `sample_group`; the dataset is copied into loader processes.
        """
        ...

    def largest_batch(self) -> Batch:
        """Return a random micro-batch of the largest shape that training samples have, as a reader gives it.

        On the device; equal on all ranks of `sample_group`, without communication. It draws nothing from the default
        generators.
        """
        ...

    def prepare(self, batch: Batch) -> Batch:
        """Return what `training_loss` needs of a micro-batch. Collective over `sample_group` alone.

        This is for work that no trained weight takes part in. It is done ahead, while the step before computes, on a
        GPU on a stream of its own. It draws nothing from the default generators.
        """
        ...

    def training_loss(self, batch: Batch) -> LossOutput:
        """Return the loss of a prepared micro-batch, with its graph. Collective over the tensor ranks."""
        ...

    def validate(self) -> Iterator[Sequence[ValidationRow]]:
        """Measure the held-out loss at fixed noise, a few clips at each step of the iterator.

        Each step is collective over all ranks, which make equally many and are given all of its rows.
        """
        ...

    def preview(self) -> Iterator[Sequence[DrawnClip]]:
        """Draw held-out clips with the present weights, a few at each step of the iterator, as `previews` says.

        Each step is collective over all ranks, which make equally many. Rank 0 is given what was drawn, others nothing.
        It draws nothing from the default generators, and leaves weights and gradients alone.
        """
        ...
