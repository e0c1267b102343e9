"""The seg control: objects as areas of plain colours (spec/transfer1-training.md 5.9). T frames, H height, W width."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.controls.protocol import Controlled, ControlSource, draw_integer
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.formats.rle import clip_mask_spans, decode_clip_mask, decode_runs, mask_shape
from worldtune.recipe.schema import Control, SegControl

MAX_SPANS = 200_000
"""Spans of an object's pixels that are set one by one: a few hundred rows of a hundred frames have fewer."""
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
            _put(labels, number + 1, masks[number], start)
    except (WorldtuneError, LookupError, TypeError) as error:
        raise WorldtuneError(f"{path} cannot be painted: {error}. Make the file again.") from error
    palette = np.array([(0, 0, 0), *colors], np.uint8)
    painted = np.empty((*shape, 3), np.uint8)
    # One by one: numpy looks up single bytes much faster than rows of three.
    for channel in range(3):
        painted[..., channel] = palette[:, channel][labels]
    return painted


def _put(labels: np.ndarray, label: int, mask: dict[str, Any], start: int) -> None:
    """Set the pixels of an object in a window that begins at frame `start` (uint16 [T, H, W])."""
    begins, ends = clip_mask_spans(mask, start, len(labels))
    if begins.size > MAX_SPANS:
        labels[decode_clip_mask(mask, start, len(labels))] = label
        return
    # An object is mostly a small part of the window, of which no mask is made.
    pixels = labels.reshape(-1)
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        pixels[begin:end] = label


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
