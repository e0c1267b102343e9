"""The seg control against a painting that is made pixel by pixel, from masks that COCO's own library has encoded."""

import colorsys
import pickle

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from worldtune.controls.registry import CONTROL_KINDS

SEG = CONTROL_KINDS["seg"]
SHAPE = (4, 9, 12)


def thing(mask):
    data = coco.encode(np.asfortranarray(mask.reshape(-1, 1).astype(np.uint8)))
    return {"phrase": "x", "segmentation_mask_rle": {"data": data, "mask_shape": mask.shape}}


def hsv_color(rng):
    hue, saturation, value = rng.uniform(0, 1), rng.uniform(0.1, 1), rng.uniform(0.2, 1)
    return [int(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value)]


@given(
    masks=st.integers(0, 5).flatmap(lambda count: arrays(bool, (count, *SHAPE))),
    start=st.integers(0, 3),
    seed=st.integers(0, 2**32),
    is_text=st.booleans(),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_pixel_has_the_drawn_colour_of_the_smallest_object_there(
    tmp_path, source_of, config_of, masks, start, seed, is_text
):
    things = [thing(mask) for mask in masks]
    for entry in things if is_text else ():
        data = entry["segmentation_mask_rle"]["data"]
        data["counts"] = data["counts"].decode()
    path = tmp_path / "objects.pickle"
    path.write_bytes(pickle.dumps(things))
    frames = np.zeros((SHAPE[0] - start, *SHAPE[1:], 3), np.uint8)
    source = source_of(path, start=start, frames=frames)
    hint = SEG.training(source, config_of("seg"), np.random.default_rng(seed)).hint

    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, len(masks) + 1))
    chosen = rng.choice(len(masks), count, replace=False).tolist() if count else []
    colors = [hsv_color(rng) for _ in chosen]
    for frame, row, column in np.ndindex(hint.shape[:3]):
        here = [index for index, number in enumerate(chosen) if masks[number][start + frame, row, column]]
        # Of objects of one size the later one lies on top.
        top = min(here, key=lambda index: (masks[chosen[index]].sum(), -index), default=None)
        assert hint[frame, row, column].tolist() == ([0, 0, 0] if top is None else colors[top])
