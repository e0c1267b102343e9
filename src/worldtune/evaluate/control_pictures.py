"""One frame of a clip's control as a picture, for people; training paints its hints itself."""

import colorsys
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import control_path, video_path
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.formats.rle import decode_clip_mask
from worldtune.media.video import read_frames

MIN_CONFIDENCE = 0.6
"""Keypoints below it are left out, as the original's drawing leaves them out."""
GOLDEN_RATIO = 0.618034
BODY_COLOUR, HAND_COLOUR = (240, 196, 64), (72, 180, 240)
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ControlPicture:
    """One frame of a control."""

    pixels: NDArray[np.uint8]
    """RGB, [H, W, 3]; a computed control may have another size than the clip."""
    legend: tuple[tuple[str, Colour], ...] = ()
    """What the colours stand for: a phrase and its RGB; empty where they stand for nothing."""


@dataclass(frozen=True, kw_only=True)
class ClipPicture:
    """One frame of a clip's video or of one of its controls, to be shown beside the others."""

    kind: str
    """ "video", or the kind of control."""
    title: str
    pixels: NDArray[np.uint8] | None
    """RGB, [H, W, 3]; None where there is nothing to show."""
    legend: tuple[tuple[str, Colour], ...] = ()
    problem: str = ""
    """Why there is nothing to show."""

    def small(self, width: int) -> Image.Image:
        """Return the pixels, at most `width` wide."""
        assert self.pixels is not None
        image = Image.fromarray(self.pixels)
        if image.width <= width:
            return image
        return image.resize((width, max(1, round(image.height * width / image.width))))


def source_picture(path: Path, below: Path) -> ClipPicture:
    """Return the first frame of a source video that became no clip; paths in a problem are below the folder `below`."""
    try:
        return ClipPicture(kind="video", title="source, frame 0", pixels=read_frames(path, 0, 1)[0])
    except WorldtuneError as error:
        return ClipPicture(kind="video", title="source", pixels=None, problem=_below(below, error))


def clip_pictures(root: Path, clip_id: str, kinds: Sequence[str], num_frames: int | None) -> list[ClipPicture]:
    """Return the middle frame of a clip's video, then of its controls of these kinds.

    A control whose file is missing or damaged has its problem in the place of pixels; where the video is, there are no
    controls either.
    """
    middle = (num_frames or 0) // 2
    title = f"video, frame {middle}"
    try:
        frame = read_frames(video_path(root, clip_id), middle, 1)[0]
    except WorldtuneError as error:
        return [ClipPicture(kind="video", title=title, pixels=None, problem=_below(root, error))]
    pictures = [ClipPicture(kind="video", title=title, pixels=frame)]
    for kind in kinds:
        try:
            painted = control_picture(root, clip_id, kind, middle, (frame.shape[1], frame.shape[0]))
        except WorldtuneError as error:
            pictures.append(ClipPicture(kind=kind, title=kind, pixels=None, problem=_below(root, error)))
        else:
            pictures.append(ClipPicture(kind=kind, title=kind, pixels=painted.pixels, legend=painted.legend))
    return pictures


def _below(root: Path, error: WorldtuneError) -> str:
    """Return an error with paths below a folder."""
    return str(error).replace(f"{root}/", "")


def legend_html(legend: Sequence[tuple[str, Colour]]) -> str:
    """Return HTML of what the colours of a picture stand for."""
    return "".join(
        f"<span class='key'><i style='background:rgb{tuple(colour)}'></i>{html.escape(phrase)}</span>"
        for phrase, colour in legend
    )


def control_picture(root: Path, clip_id: str, kind: str, frame: int, size_wh: tuple[int, int]) -> ControlPicture:
    """Paint one frame of a clip's control.

    Args:
        root: the dataset's folder.
        clip_id: the clip.
        kind: kind of control, a key of CONTROL_SUFFIXES.
        frame: number of the frame, from 0.
        size_wh: width and height of the clip's video; keypoints are painted at this size.

    Raises:
        WorldtuneError: the control's file is missing or damaged, or has no such frame.
    """
    path = control_path(root, clip_id, kind)
    if not path.is_file():
        raise WorldtuneError(f"{path} does not exist: the clip has no such control.")
    if kind == "seg":
        return _segmentation(path, frame)
    if kind == "keypoint":
        return _keypoints(path, frame, size_wh)
    return ControlPicture(read_frames(path, frame, 1)[0])


def colour_of(number: int) -> Colour:
    """Return the colour of the object with this number: neighbours in number lie far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + number * GOLDEN_RATIO) % 1.0, 0.62, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _segmentation(path: Path, frame: int) -> ControlPicture:
    things: Any = read_pickle(path, MAX_CONTROL_BYTES)
    pixels: NDArray[np.uint8] | None = None
    legend = []
    try:
        for number, thing in enumerate(things):
            mask = decode_clip_mask(thing["segmentation_mask_rle"], frame, 1)[0]
            if pixels is None:
                pixels = np.zeros((*mask.shape, 3), np.uint8)
            pixels[mask] = colour_of(number)
            if mask.any():
                legend.append((str(thing["phrase"]), colour_of(number)))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise WorldtuneError(
            f"{path} is no list of phrases with masks of one size ({error!r}). Make it again."
        ) from error
    if pixels is None:
        raise WorldtuneError(f"{path} holds no object: nothing to paint.")
    return ControlPicture(pixels, tuple(legend))


def _keypoints(path: Path, frame: int, size_wh: tuple[int, int]) -> ControlPicture:
    frames: Any = read_pickle(path, MAX_CONTROL_BYTES)
    width, height = size_wh
    picture = Image.new("RGB", size_wh)
    draw = ImageDraw.Draw(picture)
    radius = max(1.0, height / 110)
    try:
        # Files may count frames from any number on.
        for person in frames[sorted(frames)[frame]]:
            for key, colour, scale in (("body-keypoints", BODY_COLOUR, 1.0), ("hand-keypoints", HAND_COLOUR, 0.6)):
                rows = np.asarray(person[key], np.float32)
                for x, y, confidence in rows[np.isfinite(rows).all(axis=1)]:
                    if confidence >= MIN_CONFIDENCE:
                        at_x, at_y, reach = float(x) * width, float(y) * height, radius * scale
                        draw.ellipse((at_x - reach, at_y - reach, at_x + reach, at_y + reach), fill=colour)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise WorldtuneError(f"{path} holds no people with keypoints in frame {frame} ({error!r}).") from error
    return ControlPicture(np.asarray(picture), (("body", BODY_COLOUR), ("hands", HAND_COLOUR)))
