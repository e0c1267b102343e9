"""Which clip a sample number means, and which sample numbers a rank reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from worldtune.training.random import numpy_generator


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_clips: int) -> np.ndarray:
    return numpy_generator(seed, "order", epoch).permutation(num_clips)


def clip_index(seed: int, ordinal: int, num_clips: int) -> int:
    """Return the clip of a global sample number: each epoch of `num_clips` samples is a permutation of its own."""
    epoch, position = divmod(ordinal, num_clips)
    return int(_permutation(seed, epoch, num_clips)[position])


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """How the samples of an optimizer step lie over data-parallel ranks and micro-steps."""

    micro_batch_size: int
    """Samples of one forward pass on one rank."""
    data: int
    """Data-parallel ranks."""
    accumulation: int
    """Forward passes of one optimizer step."""

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step."""
        return self.micro_batch_size * self.data * self.accumulation

    def ordinals(self, step: int, micro_step: int, data_rank: int) -> list[int]:
        """Return the sample numbers of one forward pass on one data-parallel rank."""
        first = step * self.global_batch_size + (micro_step * self.data + data_rank) * self.micro_batch_size
        return list(range(first, first + self.micro_batch_size))


class OrdinalBatchSampler(Sampler[list[int]]):
    """The sample numbers of one data-parallel rank from one optimizer step to another, a micro-batch at a time."""

    def __init__(self, layout: BatchLayout, data_rank: int, first_step: int, last_step: int) -> None:
        """Take steps `first_step` (0-based, inclusive) to `last_step` (exclusive)."""
        super().__init__()
        self._layout = layout
        self._data_rank = data_rank
        self._steps = range(first_step, last_step)

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return len(self._steps) * self._layout.accumulation

    def __iter__(self) -> "OrdinalIterator":
        """Return an iterator over the sample numbers of each micro-batch."""
        first, last = (step * self._layout.accumulation for step in (self._steps.start, self._steps.stop))
        return OrdinalIterator(self._layout, self._data_rank, first, last)


class OrdinalIterator(Iterator[list[int]]):
    """Yields sample numbers, a micro-batch at a time, and tells its position to torchdata's StatefulDataLoader.

    Micro-batches of one data-parallel rank are counted from the run's first step on.
    """

    def __init__(self, layout: BatchLayout, data_rank: int, first: int, last: int) -> None:
        """Take micro-batches `first` (inclusive) to `last` (exclusive)."""
        self._layout = layout
        self._data_rank = data_rank
        self._next = first
        self._last = last

    def __next__(self) -> list[int]:
        """Return the sample numbers of the next micro-batch."""
        if self._next >= self._last:
            raise StopIteration
        step, micro_step = divmod(self._next, self._layout.accumulation)
        self._next += 1
        return self._layout.ordinals(step, micro_step, self._data_rank)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the next micro-batch."""
        return {"micro_batch": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the micro-batch that `state_dict` told."""
        self._next = state["micro_batch"]
