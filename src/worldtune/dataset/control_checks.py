"""What a control's file must be to lie on its clip, by its schema in formats/controls.py; and what is in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.formats.controls import FILE_CONTROLS, ControlSchema
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.formats.rle import decode_runs, whole_numbers
from worldtune.media.geometry import nearest_aspect_ratio
from worldtune.media.grey16 import iterate_grey16
from worldtune.media.looks import Looks, is_plain
from worldtune.media.video import VideoInfo, check_video
from worldtune.recipe.schema import VIDEO_SIZES_WH, KeypointControl

COLOUR_STEP = 8
COLOUR_SPREAD = 48
"""Grey levels between the colours of a pixel from which on it is coloured; lossy encoding stays far below."""
COLOUR_SHARE = 0.02
"""Share of coloured pixels in a frame that is grey."""

Clip = Mapping[str, Any]
"""A row of stage ingest's manifest: num_frames, width, height."""


@dataclass(frozen=True, kw_only=True)
class ControlFacts:
    """What is in a control's file."""

    num_frames: int
    width: int | None = None
    height: int | None = None
    """Size of its frames; None where it is no video."""
    empty_frames: int
    """Frames in which it shows nothing: a picture of one level, no object, nobody."""
    num_objects: int | None = None
    """Objects in the clip (seg)."""
    people_per_frame: float | None = None
    """Mean number of people (keypoint)."""
    motion: float | None = None
    """Mean change of luma from a frame to the next one; None where it is no video."""


def expected_size(schema: ControlSchema, width: int, height: int) -> tuple[int, int]:
    """Return the width and height that a kind of control has for a clip of this size."""
    if schema.size == "clip":
        return width, height
    # Imported here: it loads OpenCV, which is slow, and reading a manifest's columns must not need it.
    from worldtune.controls.shrink import SHRINK_RESOLUTION, shrunk_size

    return shrunk_size((width, height), VIDEO_SIZES_WH[SHRINK_RESOLUTION][nearest_aspect_ratio(width, height)])


def misplacement(schema: ControlSchema, num_frames: int, size_wh: tuple[int, int] | None, clip: Clip) -> str:
    """Say how a control does not lie on its clip, frame by frame and pixel by pixel; empty where it does.

    Args:
        schema: the kind of control.
        num_frames: frames of the control.
        size_wh: its width and height; None where it is no video.
        clip: the clip.
    """
    if num_frames != clip["num_frames"]:
        return f"it has {num_frames} frames, the clip has {clip['num_frames']}; make it again"
    expected = expected_size(schema, clip["width"], clip["height"])
    if size_wh is not None and size_wh != expected:
        found = f"it is {size_wh[0]}x{size_wh[1]}"
        if schema.size == "clip":
            return f"{found}, the clip is {expected[0]}x{expected[1]}; make it again"
        return f"{found}; expected {expected[0]}x{expected[1]} for this clip; make it again"
    return ""


def check_control(kind: str, path: Path, clip: Clip) -> ControlFacts:
    """Read a control's file whole and check it against its schema and its clip.

    Args:
        kind: a key of FILE_CONTROLS.
        path: the file.
        clip: the clip it belongs to.

    Raises:
        WorldtuneError: it is damaged, is something else, or does not lie on the clip; the message says what to do.
    """
    schema = FILE_CONTROLS[kind]
    if schema.is_video:
        facts = _video_facts(schema, path, clip)
    else:
        facts = _segmentation_facts(path, clip) if kind == "seg" else _keypoint_facts(path)
    size_wh = None if facts.width is None or facts.height is None else (facts.width, facts.height)
    problem = misplacement(schema, facts.num_frames, size_wh, clip)
    if problem:
        raise WorldtuneError(problem)
    return facts


def check_lossless(kind: str, path: Path, clip: Clip) -> None:
    """Read the lossless file beside a control whole and check it against its clip.

    Args:
        kind: the control's kind.
        path: the lossless file.
        clip: the clip it belongs to.

    Raises:
        WorldtuneError: it is damaged or does not lie on the clip.
    """
    num_frames, size_wh = 0, None
    for frame in iterate_grey16(path):
        num_frames, size_wh = num_frames + 1, (frame.shape[1], frame.shape[0])
    problem = misplacement(FILE_CONTROLS[kind], num_frames, size_wh, clip)
    if problem:
        raise WorldtuneError(f"its lossless file: {problem}")


def _video_facts(schema: ControlSchema, path: Path, clip: Clip) -> ControlFacts:
    empty, looks = 0, Looks()

    def watch(number: int, num_frames: int, frame: av.VideoFrame) -> None:
        nonlocal empty
        empty += is_plain(frame)
        looks.see(number, num_frames, frame)
        # All frames of a file are made alike.
        if number in (0, num_frames // 2, num_frames - 1):
            _check_colours(schema, number, frame.to_ndarray(format="rgb24"))

    info = check_video(path, watch)
    _check_video_form(info)
    motion = float(looks.facts()["motion"])
    return ControlFacts(
        num_frames=info.num_frames, width=info.width, height=info.height, empty_frames=empty, motion=motion
    )


def _check_video_form(info: VideoInfo) -> None:
    if info.variable_frame_rate:
        raise WorldtuneError("its frames last for different times; encode it with the video's rate")
    if info.rotation_degrees:
        raise WorldtuneError(f"it is turned by {info.rotation_degrees} degrees when it is shown; encode it upright")


def _check_colours(schema: ControlSchema, number: int, pixels: np.ndarray) -> None:
    """Check a frame, uint8 [H, W, 3], against the colours that the schema admits."""
    if schema.grey:
        some = pixels[::COLOUR_STEP, ::COLOUR_STEP].astype(np.int16)
        coloured = float((some.max(axis=2) - some.min(axis=2) > COLOUR_SPREAD).mean())
        if coloured > COLOUR_SHARE:
            raise WorldtuneError(
                f"frame {number} is coloured ({coloured:.0%} of it); expected grey ({schema.sense}). Write its values, "
                "not a colour map"
            )
    if schema.levels and not np.isin(pixels, schema.levels).all():
        levels = " or ".join(map(str, schema.levels))
        raise WorldtuneError(f"frame {number} has other values than {levels}; make it again")


def _segmentation_facts(path: Path, clip: Clip) -> ControlFacts:
    """Check a list of {"phrase", "segmentation_mask_rle": {"data": {"size", "counts"}, "mask_shape": (T, H, W)}}."""
    objects = read_pickle(path, MAX_CONTROL_BYTES)
    height, width, num_frames = clip["height"], clip["width"], clip["num_frames"]
    if not isinstance(objects, list):
        raise WorldtuneError("expected a list of objects")
    # A frame's change in the number of masks that reach into it.
    changes = np.zeros(num_frames + 1, np.int64)
    for number, thing in enumerate(objects):
        runs = _mask_runs(number, thing, (num_frames, height, width))
        ends = np.cumsum(runs)
        shown = runs[1::2] > 0
        first, last = (ends[0::2][: shown.size])[shown], ends[1::2][shown] - 1
        np.add.at(changes, first // (height * width), 1)
        np.add.at(changes, last // (height * width) + 1, -1)
    empty = int((np.cumsum(changes[:-1]) == 0).sum())
    return ControlFacts(num_frames=int(num_frames), empty_frames=empty, num_objects=len(objects))


def _mask_runs(number: int, thing: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the run lengths (int64) of an object's mask, which must be [T, H, W] of the clip."""
    try:
        phrase, mask = thing["phrase"], thing["segmentation_mask_rle"]
        stated, size = whole_numbers(mask["mask_shape"]), whole_numbers(mask["data"]["size"])
        counts = mask["data"]["counts"]
    except (TypeError, KeyError, IndexError) as error:
        raise WorldtuneError(f"object {number} is no phrase with a mask ({error!r})") from error
    if not isinstance(phrase, str) or not isinstance(counts, bytes | str):
        raise WorldtuneError(f"object {number} is no phrase with a mask")
    pixels = shape[0] * shape[1] * shape[2]
    if stated != shape or size != (pixels, 1):
        raise WorldtuneError(f"object {number} has a mask of {stated}, size {size}; expected {shape} and {(pixels, 1)}")
    runs = decode_runs(counts)
    if int(runs.sum()) != pixels:
        raise WorldtuneError(f"the mask of object {number} does not cover the clip")
    return runs


def _keypoint_facts(path: Path) -> ControlFacts:
    """Check {frame: [person, ...]} as drawing does at the recipes' usual confidence."""
    # Imported here for the same reason.
    from worldtune.controls.keypoint import people_points

    frames = read_pickle(path, MAX_CONTROL_BYTES)
    if not isinstance(frames, dict) or not all(isinstance(frame, int) for frame in frames):
        raise WorldtuneError("expected a table of frame numbers")
    numbers = sorted(frames)
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise WorldtuneError("its frame numbers have gaps; give an entry for every frame")
    counts = []
    for number in numbers:
        try:
            people = people_points(frames[number], KeypointControl().confidence_min)
            if not all(np.isfinite(points[:, 2]).all() for points in people):
                raise WorldtuneError("a confidence is no number; expected 0 to 1")
            counts.append(len(people))
        except WorldtuneError as error:
            raise WorldtuneError(f"frame {number}: {error}") from error
    return ControlFacts(
        num_frames=len(numbers),
        empty_frames=counts.count(0),
        people_per_frame=round(sum(counts) / max(len(counts), 1), 3),
    )
