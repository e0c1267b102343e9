"""The schema of every kind of control: what its file is, which values it has, and how it lies on its clip.

This is the one place that says so. The checks of given files and of finished datasets go by it, the names of folders
and files come from it, and config/README.md prints it (spec/transfer1-training.md 5.6 to 5.11, 6.7).
T frames, H height, W width.
"""

from dataclasses import dataclass
from typing import Literal

KEYPOINT_BODY_ROWS = (133, 91)
"""Rows that body-keypoints may have in a file: with the hands, or without."""
KEYPOINT_HAND_ROWS = 42
"""Rows of hand-keypoints: 21 of the left hand, 21 of the right one."""
KEYPOINT_LARGEST = 10.0
"""Coordinates are parts of the frame's width and height; a confident one that is further out is no such part."""

Origin = Literal["computed", "given", "in training"]
SizeRule = Literal["clip", "shrunk"]


@dataclass(frozen=True, kw_only=True)
class ControlSchema:
    """One kind of control. The fields with a Literal or a tuple are what checks go by; the texts are for people."""

    kind: str
    origin: Origin
    """Where it comes from: a stage computes it from the video, it is given beside the video (or made there by an
    annotator), or each training sample computes it from its frames, so that there is no file."""
    suffix: str | None
    """End of the file's name; None where there is no file."""
    size: SizeRule = "clip"
    """Width and height: the clip's own, or the clip's after it was shrunk as training shrinks large frames."""
    levels: tuple[int, ...] = ()
    """The only values that pixels may have; empty where any is allowed."""
    grey: bool = False
    """Whether the three colours of a pixel are equal."""
    container: str
    dtype: str
    value_range: str
    sense: str
    """What a large and a small value mean."""
    invalid: str
    """What stands where nothing is known."""

    @property
    def has_file(self) -> bool:
        """Whether there is a file for each clip."""
        return self.suffix is not None

    @property
    def is_video(self) -> bool:
        """Whether the file is a video."""
        return self.suffix in (".mp4", ".mkv")

    @property
    def num_frames(self) -> str:
        """The rule for the number of frames, in words."""
        if not self.has_file:
            return "those of the sample"
        return (
            "exactly the clip's; numbers of frames may begin anywhere"
            if self.kind == "keypoint"
            else ("exactly the clip's")
        )

    @property
    def alignment(self) -> str:
        """The rule for its place on the clip, in words."""
        if not self.has_file:
            return "by construction"
        if self.kind == "keypoint":
            return "entry k is frame k; places are parts of the clip's width and height"
        if self.kind == "seg":
            return "frame k on frame k, mask_shape the clip's (T, H, W)"
        wide = "the clip's width and height"
        if self.size == "shrunk":
            wide += ", or what they become where a larger clip is shrunk into 1280x704 (or its like)"
        return f"frame k on frame k by number, constant rate, upright, {wide}"


_PIXELS = "uint8 [T, H, W, 3]"

CONTROLS: dict[str, ControlSchema] = {
    schema.kind: schema
    for schema in (
        ControlSchema(
            kind="edge",
            origin="computed",
            suffix=".mkv",
            size="shrunk",
            levels=(0, 255),
            grey=True,
            container="Matroska, FFV1, lossless, grey",
            dtype="uint8 [T, h, w]",
            value_range="0 or 255",
            sense="255 is an edge (Canny at thresholds 100 and 200)",
            invalid="none; 0 is no edge",
        ),
        ControlSchema(
            kind="vis",
            origin="in training",
            suffix=None,
            container="no file",
            dtype=_PIXELS,
            value_range="0 to 255",
            sense="the video's own colours, blurred",
            invalid="none",
        ),
        ControlSchema(
            kind="depth",
            origin="given",
            suffix=".mp4",
            grey=True,
            container="MP4; any codec that ffmpeg decodes, 8 bits, H.264 where it is made here",
            dtype=_PIXELS + ", three equal colours",
            value_range="0 to 255",
            sense="near is bright: inverse depth, 255 the nearest and 0 the farthest within its scale (a clip's or a "
            "dataset's), without a unit",
            invalid="0, as the farthest",
        ),
        ControlSchema(
            kind="seg",
            origin="given",
            suffix=".pickle",
            container='pickle of a list: {"phrase": str, "segmentation_mask_rle": {"data": {"size": [T*H*W, 1], '
            '"counts": COCO\'s compressed RLE}, "mask_shape": (T, H, W)}}',
            dtype="bytes or str, a mask for each object, flattened in the order (T, H, W)",
            value_range="0 or 1",
            sense="1 is the object; training paints smaller objects over larger ones",
            invalid="0 in every mask is painted black; a list without objects is a black clip",
        ),
        ControlSchema(
            kind="keypoint",
            origin="given",
            suffix=".pickle",
            container='pickle of {frame: [person, ...]}, a person {"body-keypoints": [N, 3], "hand-keypoints": '
            "[M, 3], ...}",
            dtype=f"float16 or float32, N = {' or '.join(map(str, KEYPOINT_BODY_ROWS))} in COCO-WholeBody's order, "
            f"M = {KEYPOINT_HAND_ROWS}",
            value_range="x and y: 0 to 1 of width and height (a place out of the picture may lie outside, a confident "
            f"one up to {KEYPOINT_LARGEST:g}); confidence: 0 to 1",
            sense="confidence from control.keypoint.confidence_min on is drawn",
            invalid="confidence 0, at any place; an empty list where nobody is seen",
        ),
        ControlSchema(
            kind="upscale",
            origin="in training",
            suffix=None,
            container="no file",
            dtype=_PIXELS,
            value_range="0 to 255",
            sense="the video's own colours at a lower resolution",
            invalid="none",
        ),
        ControlSchema(
            kind="hdmap",
            origin="given",
            suffix=".mp4",
            container="MP4; any codec that ffmpeg decodes, 8 bits",
            dtype=_PIXELS,
            value_range="0 to 255",
            sense="colours as given: a colour for each kind of line and box",
            invalid="black, where nothing is mapped",
        ),
        ControlSchema(
            kind="lidar",
            origin="given",
            suffix=".mp4",
            container="MP4; any codec that ffmpeg decodes, 8 bits",
            dtype=_PIXELS,
            value_range="0 to 255",
            sense="colours as given: the points' distance",
            invalid="black, where no point lies",
        ),
    )
}
"""By kind."""

FILE_CONTROLS: dict[str, ControlSchema] = {kind: schema for kind, schema in CONTROLS.items() if schema.has_file}
"""The kinds that have a file for each clip."""
