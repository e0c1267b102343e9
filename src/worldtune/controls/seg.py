"""The seg control: objects as areas of plain colours (spec/transfer1-training.md 5.9). T frames, H height, W width."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.controls.protocol import Controlled, ControlSource, draw_integer
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.formats.rle import decode_clip_mask, decode_runs, mask_shape
from worldtune.recipe.schema import Control, SegControl

EVALUATION_SEED = 0
"""Seed of the colours in evaluation."""

Color = tuple[int, int, int]


def draw_colors(config: SegControl, count: int, rng: np.random.Generator) -> list[Color]:
    """Draw RGB colours, 0 to 255, that all differ: hue, saturation and value are uniform."""
    colors: dict[Color, None] = {}
    while len(colors) < count:
        hue = float(rng.uniform(0.0, 1.0))
        saturation = float(rng.uniform(config.saturation_min, 1.0))
        value = float(rng.uniform(config.value_min, 1.0))
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors[int(red * 255), int(green * 255), int(blue * 255)] = None
    return list(colors)


def read_masks(path: Path) -> list[dict[str, Any]]:
    """Return the entries `segmentation_mask_rle` of a segmentation file, one for each object.

    Raises:
        WorldtuneError: the file is damaged or is no list of objects.
    """
    objects = read_pickle(path, MAX_CONTROL_BYTES)
    if not isinstance(objects, list):
        raise WorldtuneError(f"{path}: expected a list of objects, found a {type(objects).__name__}. Make it again.")
    masks = []
    for number, thing in enumerate(objects):
        mask = thing.get("segmentation_mask_rle") if isinstance(thing, dict) else None
        if not isinstance(mask, dict):
            raise WorldtuneError(f"{path}: object {number} has no segmentation_mask_rle. Make the file again.")
        masks.append(mask)
    return masks


def paint(
    path: Path, masks: Sequence[dict[str, Any]], colors: Sequence[Color], start: int, shape: tuple[int, int, int]
) -> np.ndarray:
    """Paint masks on black, the one with most pixels in the clip first, so that smaller ones lie on top.

    Args:
        path: the masks' file, for messages.
        masks: entries `segmentation_mask_rle`.
        colors: RGB, one for each mask.
        start: first frame of the window.
        shape: (T, H, W) of the window.

    Returns:
        uint8 [T, H, W, 3].

    Raises:
        WorldtuneError: a mask is damaged, of another size, or ends before the window does.
    """
    labels = np.zeros(shape, np.uint16)
    try:
        areas = [int(decode_runs(mask["data"]["counts"])[1::2].sum()) for mask in masks]
        for number in sorted(range(len(masks)), key=lambda number: -areas[number]):
            # Its own size is checked before memory of that size is taken.
            stated = mask_shape(masks[number])
            if stated[1:] != shape[1:]:
                raise WorldtuneError(
                    f"a mask_shape is {stated}; expected (T, {shape[1]}, {shape[2]}), the clip's height and width"
                )
            labels[decode_clip_mask(masks[number], start, shape[0])] = number + 1
    except (WorldtuneError, LookupError, TypeError) as error:
        raise WorldtuneError(f"{path} cannot be painted: {error}. Make the file again.") from error
    return np.array([(0, 0, 0), *colors], np.uint8)[labels]


class Seg:
    """Objects in drawn colours: a drawn number of them in training, the first of the file in evaluation."""

    def training(self, source: ControlSource, config: Control, rng: np.random.Generator) -> Controlled:
        """Return some of the objects, perhaps none, in drawn colours; see protocol.ControlKind."""
        path = source.control_file()
        masks = read_masks(path)
        count = draw_integer(rng, 0, min(config.seg.max_objects, len(masks)))
        chosen = [masks[number] for number in rng.choice(len(masks), count, replace=False)] if count else []
        colors = draw_colors(config.seg, count, rng)
        return Controlled(video=source.frames, hint=paint(path, chosen, colors, source.start, source.frames.shape[:3]))

    def evaluation(self, source: ControlSource, config: Control) -> Controlled:
        """Return all objects that the recipe admits, in fixed colours; see protocol.ControlKind."""
        path = source.control_file()
        masks = read_masks(path)[: config.seg.max_objects]
        colors = draw_colors(config.seg, len(masks), np.random.default_rng(EVALUATION_SEED))
        return Controlled(video=source.frames, hint=paint(path, masks, colors, source.start, source.frames.shape[:3]))
