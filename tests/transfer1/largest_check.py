"""What the largest micro-batch has in common with samples."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from worldtune.training.task import Batch
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.largest import largest_batch


def described(batch: Batch) -> dict[str, Any]:
    """Keys with shapes and types."""
    return {
        key: (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else len(value)
        for key, value in batch.items()
    }


def assert_largest_is_like_samples(clips: ClipDataset) -> None:
    """Compare with the micro-batch of the first samples; all training clips must have one size."""
    batch = largest_batch(clips, torch.device("cpu"))
    read = default_collate([clips[ordinal] for ordinal in range(clips.recipe.training.micro_batch_size)])
    assert described(batch) == described(read)
    again = largest_batch(clips, torch.device("cpu"))
    assert all(torch.equal(value, again[key]) for key, value in batch.items() if isinstance(value, Tensor))
