import colorsys
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import worldtune.controls.seg as seg
from worldtune.common.errors import WorldtuneError
from worldtune.controls.registry import CONTROL_KINDS
from worldtune.controls.seg import draw_colors
from worldtune.formats.rle import encode_clip_mask
from worldtune.recipe.schema import SegControl

SHAPE = (6, 48, 64)
SEG = CONTROL_KINDS["seg"]


def coco_counts(column):
    """COCO's compressed text, as in its reference: numbers of 5 bits a character, differences from the fourth on."""
    runs, value, length = [], 0, 0
    for pixel in column:
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    runs.append(length)
    text = ""
    for index, run in enumerate(runs):
        number = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            part, number = number & 31, number >> 5
            more = number != -1 if part & 16 else number != 0
            text += chr(part + 48 + 32 * more)
    return text


def entry(mask):
    data = {"size": [mask.size, 1], "counts": coco_counts(mask.reshape(-1).astype(int).tolist())}
    return {"phrase": "x", "segmentation_mask_rle": {"data": data, "mask_shape": mask.shape}}


def boxes(*areas):
    masks = np.zeros((len(areas), *SHAPE), bool)
    for mask, area in zip(masks, areas, strict=True):
        mask[area] = True
    return masks


@pytest.fixture
def write(tmp_path):
    def make(masks, encode=entry):
        path = tmp_path / "a.pickle"
        path.write_bytes(pickle.dumps([encode(mask) for mask in masks]))
        return path

    return make


NESTED = boxes(np.s_[:, 10:14, 10:14], np.s_[:, 5:30, 5:30], np.s_[1:5, 8:20, 8:20])


def test_smaller_objects_lie_on_larger_ones(write, source_of, config_of):
    hint = SEG.evaluation(source_of(write(NESTED), start=1), config_of("seg")).hint
    small, large, middle = draw_colors(SegControl(), 3, np.random.default_rng(0))
    expected = np.zeros((*SHAPE, 3), np.uint8)
    for mask, color in ((NESTED[1], large), (NESTED[2], middle), (NESTED[0], small)):
        expected[mask] = color
    assert np.array_equal(hint, expected[1:5])
    assert len({small, middle, large, (0, 0, 0)}) == 4


def test_size_is_that_in_the_whole_clip_not_in_the_window(write, source_of, config_of):
    masks = boxes(np.s_[:, 0:20, 0:20], np.s_[0:1, 0:40, 0:40])
    hint = SEG.evaluation(source_of(write(masks), start=0), config_of("seg")).hint
    first, second = draw_colors(SegControl(), 2, np.random.default_rng(0))
    assert tuple(hint[0, 5, 5]) == second
    assert tuple(hint[0, 30, 30]) == second
    assert tuple(hint[1, 5, 5]) == first


def test_training_paints_every_number_of_objects_from_none_to_all(write, source_of, config_of):
    masks = boxes(np.s_[:, 0:4, 0:4], np.s_[:, 10:14, 0:4], np.s_[:, 20:24, 0:4])
    source, rng = source_of(write(masks)), np.random.default_rng(0)
    seen, numbers = set(), []
    for _ in range(200):
        hint = SEG.training(source, config_of("seg"), rng).hint
        painted = frozenset(row for row in (0, 10, 20) if hint[0, row, 0].any())
        assert len({tuple(hint[0, row, 0]) for row in painted}) == len(painted)
        numbers.append(len(painted))
        seen.add(painted)
    assert len(seen) == 8
    assert np.allclose(np.bincount(numbers) / 200, 0.25, atol=0.1)
    fewer = [SEG.training(source, config_of("seg", seg={"max_objects": 1}), rng).hint for _ in range(20)]
    assert {len(np.unique(hint.reshape(-1, 3), axis=0)) - 1 for hint in fewer} == {0, 1}


def test_evaluation_paints_the_first_objects_that_the_recipe_admits(write, source_of, config_of):
    hint = SEG.evaluation(source_of(write(NESTED)), config_of("seg", seg={"max_objects": 2})).hint
    assert len(np.unique(hint.reshape(-1, 3), axis=0)) == 3


def test_an_object_of_more_spans_than_are_set_one_by_one(monkeypatch, write, source_of, config_of):
    rng = np.random.default_rng(4)
    path = write(rng.random((3, *SHAPE)) < np.array([0.5, 0.3, 0.1])[:, None, None, None])
    expected = SEG.evaluation(source_of(path), config_of("seg")).hint
    assert len(np.unique(expected.reshape(-1, 3), axis=0)) == 4
    monkeypatch.setattr(seg, "MAX_SPANS", 0)
    assert np.array_equal(SEG.evaluation(source_of(path), config_of("seg")).hint, expected)


def test_a_clip_without_objects_is_black(write, source_of, config_of):
    source = source_of(write([]))
    assert not SEG.training(source, config_of("seg"), np.random.default_rng(0)).hint.any()
    assert not SEG.evaluation(source, config_of("seg")).hint.any()


@given(seed=st.integers(0, 2**32), count=st.integers(0, 100), saturation=st.floats(0, 1), value=st.floats(0.01, 1))
def test_colours_differ_and_lie_in_their_ranges(seed, count, saturation, value):
    config = SegControl(saturation_min=saturation, value_min=value)
    colors = draw_colors(config, count, np.random.default_rng(seed))
    assert len(set(colors)) == len(colors) == count
    for color in colors:
        _, found_saturation, found_value = colorsys.rgb_to_hsv(*(part / 255 for part in color))
        assert found_value > value - 1 / 255
        assert found_saturation > saturation - 2 / max(color[0], color[1], color[2], 1)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"phrase": "x"}, "expected a list"),
        ([{"phrase": "x"}], "object 0 has no segmentation_mask_rle"),
        ([{"segmentation_mask_rle": {"mask_shape": (6, 48, 64)}}], "'data'"),
        ([{"segmentation_mask_rle": {"mask_shape": (6, 48, 64), "data": {"counts": b"\x01"}}}], "COCO's code"),
        ([{"segmentation_mask_rle": {"mask_shape": 5, "data": {"counts": b"1"}}}], "cannot be painted"),
        ([{"segmentation_mask_rle": {"mask_shape": (6, 48, 64), "data": {"counts": b"1"}}}], "another clip"),
        ([{"segmentation_mask_rle": {"mask_shape": np.full((3, 2), 6), "data": {"counts": b"1"}}}], "mask_shape"),
        (
            [{"segmentation_mask_rle": encode_clip_mask(np.ones((6, 64, 48), bool))}],
            "expected (T, 48, 64)",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, content, part, source_of, config_of):
    path = tmp_path / "damaged.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(WorldtuneError) as caught:
        SEG.evaluation(source_of(path), config_of("seg"))
    assert str(path) in str(caught.value)
    assert part in str(caught.value)
