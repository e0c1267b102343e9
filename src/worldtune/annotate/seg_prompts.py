"""What a person says is to be followed in a video: boxes and points in a JSON file beside it."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from worldtune.annotate.objects import Candidate
from worldtune.common.errors import WorldtuneError

MAX_BYTES = 1 << 20
"""Largest file that is read."""

Pixel = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class PromptPoint(BaseModel):
    """A place on an object or beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    x: Pixel
    y: Pixel
    label: Literal[0, 1] = 1
    """1 lies on the object, 0 beside it."""


class PromptObject(BaseModel):
    """One object: a box around it, points, or both, in one frame."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    phrase: str = Field(min_length=1)
    frame: NonNegativeInt = 0
    box: Annotated[list[Pixel], Field(min_length=4, max_length=4)] | None = None
    """Left, top, right and bottom edge."""
    points: list[PromptPoint] = []

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if self.box is not None and (self.box[2] <= self.box[0] or self.box[3] <= self.box[1]):
            raise ValueError(f"box {self.box} is left, top, right, bottom; the right one must be the larger")
        if self.box is None and not any(point.label for point in self.points):
            raise ValueError("give a box, or a point that lies on the object")
        return self


class Prompts(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    objects: list[PromptObject] = Field(min_length=1)


def read_prompts(path: Path, num_frames: int, height: int, width: int) -> dict[int, list[Candidate]]:
    """Return the objects of a prompt file by frame, as candidates that are certain.

    Args:
        path: a JSON file, {"objects": [{"phrase", "frame", "box": [left, top, right, bottom], "points": [{"x", "y",
            "label"}]}]}, in pixels of the video.
        num_frames: frames of the clip.
        height: rows of a frame.
        width: pixels of a row.

    Raises:
        WorldtuneError: the file cannot be read, has another form, or names a place outside the clip; the message names
            the key.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise WorldtuneError(f"{path.name} cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise WorldtuneError(f"{path.name} is larger than {MAX_BYTES} bytes")
    try:
        prompts = Prompts.model_validate_json(data)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(str(part) for part in detail["loc"]) or "the file"
        raise WorldtuneError(f"{path.name}: {key}: {detail['msg']}") from error
    candidates: dict[int, list[Candidate]] = {}
    for number, thing in enumerate(prompts.objects):
        places = [(f"points.{index}", point.x, point.y) for index, point in enumerate(thing.points)]
        places += [("box", thing.box[2], thing.box[3])] if thing.box else []
        for key, x, y in places:
            if x > width or y > height:
                raise WorldtuneError(f"{path.name}: objects.{number}.{key}: ({x}, {y}) is outside of {width}x{height}")
        if thing.frame >= num_frames:
            raise WorldtuneError(
                f"{path.name}: objects.{number}.frame: {thing.frame}; the clip has frames 0 to {num_frames - 1}"
            )
        candidates.setdefault(thing.frame, []).append(
            Candidate(
                phrase=thing.phrase,
                score=1.0,
                box=None if thing.box is None else (thing.box[0], thing.box[1], thing.box[2], thing.box[3]),
                points=tuple((point.x, point.y) for point in thing.points),
                labels=tuple(point.label for point in thing.points),
            )
        )
    return candidates
