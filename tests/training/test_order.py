import numpy as np
import torch

from worldtune.training.order import BatchLayout, OrdinalBatchSampler, clip_index
from worldtune.training.random import generator, numpy_generator


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    epochs = [[clip_index(3, epoch * 11 + position, 11) for position in range(11)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[2] != [clip_index(4, 22 + position, 11) for position in range(11)]


def test_layouts_cover_the_same_global_batches() -> None:
    for micro, data, accumulation in ((1, 1, 12), (2, 3, 2), (4, 3, 1), (12, 1, 1)):
        layout = BatchLayout(micro_batch_size=micro, data=data, accumulation=accumulation)
        read = [list(OrdinalBatchSampler(layout, rank, 2, 5)) for rank in range(data)]
        assert all(len(row) == len(OrdinalBatchSampler(layout, 0, 2, 5)) == 3 * accumulation for row in read)
        for step in range(3):
            batches = [row[step * accumulation : (step + 1) * accumulation] for row in read]
            ordinals = sorted(ordinal for row in batches for batch in row for ordinal in batch)
            assert ordinals == list(range((step + 2) * 12, (step + 3) * 12))


def test_draws_depend_on_seed_and_key_only() -> None:
    first = torch.randn(5, generator=generator(1, "noise", 7))
    torch.randn(100)
    assert torch.equal(first, torch.randn(5, generator=generator(1, "noise", 7)))
    for other in (generator(2, "noise", 7), generator(1, "noise", 8), generator(1, "sigma", 7)):
        assert not torch.equal(first, torch.randn(5, generator=other))
    assert np.array_equal(numpy_generator(1, "edge", 7).random(3), numpy_generator(1, "edge", 7).random(3))
