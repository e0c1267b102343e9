"""Run-length encoded masks against COCO's own library, in both directions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from worldtune.formats.rle import decode_clip_mask, encode_clip_mask

# pycocotools' own call of numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12))


def assert_equal_to_coco(mask: np.ndarray) -> None:
    column = np.asfortranarray(mask.reshape(-1, 1).astype(np.uint8))
    theirs, ours = coco.encode(column), encode_clip_mask(mask)
    assert ours["data"] == {"size": list(theirs["size"]), "counts": theirs["counts"]}
    assert np.array_equal(coco.decode(ours["data"]), column)
    assert coco.area(ours["data"]) == mask.sum()
    for counts in (theirs["counts"], theirs["counts"].decode()):
        entry = {"data": {"size": list(theirs["size"]), "counts": counts}, "mask_shape": mask.shape}
        assert np.array_equal(decode_clip_mask(entry, 0, len(mask)), mask)
        for start in range(len(mask)):
            assert np.array_equal(decode_clip_mask(entry, start, 1)[0], mask[start])


@given(SHAPES.flatmap(lambda shape: arrays(bool, shape)))
@settings(max_examples=100, deadline=None)
def test_random_masks(mask: np.ndarray) -> None:
    assert_equal_to_coco(mask)


@given(SHAPES, st.booleans())
@settings(max_examples=20, deadline=None)
def test_empty_and_full_masks(shape: tuple[int, int, int], value: bool) -> None:
    assert_equal_to_coco(np.full(shape, value))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_whole_clip_columns_of_long_runs(runs: list[int], starts_with_ones: bool) -> None:
    column = np.repeat(np.arange(len(runs)) % 2 == starts_with_ones, runs)
    assert_equal_to_coco(column.reshape(1, -1, 1))


@pytest.mark.parametrize("shape", [(9, 96, 160), (121, 24, 40)])
def test_a_clip_of_shapes_that_move(shape: tuple[int, int, int]) -> None:
    frames, height, width = shape
    rows, columns = np.mgrid[:height, :width]
    centres = np.linspace(0, width, frames)
    mask = np.stack([(rows - height / 2) ** 2 + (columns - centre) ** 2 < (height / 3) ** 2 for centre in centres])
    assert_equal_to_coco(mask)
