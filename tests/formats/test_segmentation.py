import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from worldtune.common.errors import WorldtuneError
from worldtune.demo.scenes import render_scene
from worldtune.demo.write import segmentation_of
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.formats.rle import decode_clip_mask, encode_clip_mask
from worldtune.formats.segmentation import ClipMask, write_segmentation


def clip_mask(mask, frames=None):
    made = ClipMask(*mask.shape)
    for frame in range(len(mask)) if frames is None else frames:
        made.put(frame, mask[frame])
    return made


@settings(max_examples=60, deadline=None)
@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=6)), st.randoms(use_true_random=False))
def test_frames_in_any_order_give_the_runs_of_the_whole_clip(mask, random):
    order = list(range(len(mask)))
    random.shuffle(order)
    made = clip_mask(mask, order)
    assert made.entry() == encode_clip_mask(mask)
    assert made.area == mask.sum()


def test_frames_that_are_not_given_are_empty():
    mask = np.zeros((5, 3, 4), bool)
    mask[[1, 3]] = True
    assert clip_mask(mask, [1, 3]).entry() == encode_clip_mask(mask)


def test_a_frame_of_another_size_outside_the_clip_or_given_twice_is_refused():
    mask = clip_mask(np.ones((2, 3, 4), bool), [1])
    for frame, shape in ((0, (4, 3)), (2, (3, 4)), (1, (3, 4))):
        with pytest.raises(WorldtuneError, match="a mask"):
            mask.put(frame, np.ones(shape, bool))


def test_pycocotools_decodes_the_file_to_the_same_masks(tmp_path):
    from pycocotools import mask as coco

    masks = np.random.default_rng(0).random((3, 4, 5, 6)) < 0.4
    masks[1] = False
    masks[2] = True
    write_segmentation(tmp_path / "a.pickle", [(f"thing {n}", clip_mask(mask)) for n, mask in enumerate(masks)])
    objects = read_pickle(tmp_path / "a.pickle", MAX_CONTROL_BYTES)
    assert [thing["phrase"] for thing in objects] == ["thing 0", "thing 1", "thing 2"]
    for thing, mask in zip(objects, masks, strict=True):
        entry = thing["segmentation_mask_rle"]
        np.testing.assert_array_equal(coco.decode(entry["data"]).reshape(mask.shape), mask)
        np.testing.assert_array_equal(decode_clip_mask(entry, 0, len(mask)), mask)


def test_exact_masks_of_a_rendered_scene_come_back_bit_by_bit(tmp_path):
    expected = segmentation_of(render_scene("scene_0000", seed=0, num_frames=5, width=64, height=48, fps=24))
    masks = [decode_clip_mask(thing["segmentation_mask_rle"], 0, 5) for thing in expected]
    objects = [(thing["phrase"], clip_mask(mask)) for thing, mask in zip(expected, masks, strict=True)]
    write_segmentation(tmp_path / "a.pickle", objects)
    assert read_pickle(tmp_path / "a.pickle", MAX_CONTROL_BYTES) == expected
    assert any(mask.any() for mask in masks)


def test_no_object_is_a_file_as_well(tmp_path):
    write_segmentation(tmp_path / "a.pickle", [])
    assert read_pickle(tmp_path / "a.pickle", MAX_CONTROL_BYTES) == []
