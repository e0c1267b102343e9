"""Structured captions: the JSON object that describes a video in the Cosmos3 SFT data, and how it becomes text.

The schema is permissive: each field may be left out or null, and unknown ones are kept. What is there must have its
type. A caption stays the object that was read, since the order of its keys is part of the text that a model sees.
"""

import json
import math
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from worldtune.common.errors import WorldtuneError

MEDIA_FIELDS = ("resolution", "aspect_ratio", "duration", "fps")
"""Fields that describe the file of the video; they are measured, never asked of a model."""
REQUIRED = ("temporal_caption",)
"""Fields without which an answer of a captioner is no caption."""
MAX_SHOWN_PROBLEMS = 3
_DECODER = json.JSONDecoder(parse_constant=lambda name: _refuse_constant(name))


class Part(BaseModel):
    """Base of the schema: unknown fields are kept, values are not converted."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, use_attribute_docstrings=True)


class Subject(Part):
    """A person, animal or thing."""

    description: str | None = None
    appearance_details: str | None = None
    relationship: str | None = None
    location: str | None = None
    relative_size: str | None = None
    orientation: str | None = None
    pose: str | None = None
    action: str | None = None
    state_changes: str | None = None
    clothing: str | None = None
    expression: str | None = None
    gender: str | None = None
    age: str | None = None
    skin_tone_and_texture: str | None = None
    facial_features: str | None = None
    number_of_subjects: int | None = None
    number_of_arms: int | None = None
    number_of_legs: int | None = None


class Lighting(Part):
    """How the scene is lit."""

    conditions: str | None = None
    direction: str | None = None
    shadows: str | None = None
    illumination_effect: str | None = None


class Aesthetics(Part):
    """How the picture is composed."""

    composition: str | None = None
    color_scheme: str | None = None
    mood_atmosphere: str | None = None
    patterns: str | None = None


class Cinematography(Part):
    """What the camera does."""

    camera_motion: str | None = None
    framing: str | None = None
    camera_angle: str | None = None
    depth_of_field: str | None = None
    focus: str | None = None
    lens_focal_length: str | None = None


class Action(Part):
    """What happens in a span of time."""

    time: str | None = None
    """Span as M:SS-M:SS."""
    description: str | None = None


class TextElement(Part):
    """Writing or a sign in the picture."""

    text: str | None = None
    category: str | None = None
    appearance: str | None = None
    spatial_temporal: str | None = None
    context: str | None = None


class Segment(Part):
    """A span of the video between changes."""

    segment_index: int | None = None
    time_range: str | None = None
    description: str | None = None
    key_changes: str | None = None
    camera: str | None = None


class Resolution(Part):
    """Size of the source video in pixels."""

    H: int | None = None
    W: int | None = None


class StructuredCaption(Part):
    """The whole caption."""

    subjects: list[Subject] | None = None
    background_setting: str | None = None
    lighting: Lighting | None = None
    aesthetics: Aesthetics | None = None
    cinematography: Cinematography | None = None
    style_medium: str | None = None
    artistic_style: str | None = None
    context: str | None = None
    actions: list[Action] | None = None
    text_and_signage_elements: list[TextElement] | None = None
    segments: list[Segment] | None = None
    transitions: list[str] | None = None
    temporal_caption: str | None = None
    """The video in one paragraph, in the order of time."""
    audio_description: str | None = None
    resolution: Resolution | None = None
    aspect_ratio: str | None = None
    """Width and height without their common divisors, as "16,9"."""
    duration: str | None = None
    """Whole seconds, as "17s"."""
    fps: int | None = None
    """Whole frames a second."""


def check_caption(value: Any) -> dict[str, Any]:
    """Return `value` as it is if it is a structured caption.

    Raises:
        WorldtuneError: it is none; the message names the fields.
    """
    try:
        StructuredCaption.model_validate(value)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])) or 'the caption'}: {item['msg']}" for item in error.errors()]
        left_out = len(problems) - MAX_SHOWN_PROBLEMS
        shown = "; ".join(problems[:MAX_SHOWN_PROBLEMS]) + (f"; and {left_out} more" if left_out > 0 else "")
        raise WorldtuneError(f"it is no structured caption: {shown}.") from error
    return dict(value)


def parse_answer(text: str) -> dict[str, Any]:
    """Return the structured caption in a model's answer, its keys in the answer's order.

    What surrounds the object, such as a code fence or a model's thoughts, is passed over. Fields of the file
    (MEDIA_FIELDS) are removed, since a model can only guess them.

    Raises:
        WorldtuneError: there is no JSON object, it breaks the schema, or a field of REQUIRED is missing or empty.
    """
    body = text.rpartition("</think>")[2]
    start = body.find("{")
    if start < 0:
        raise WorldtuneError("it has no JSON object.")
    try:
        value, _ = _DECODER.raw_decode(body, start)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise WorldtuneError(f"it is no valid JSON: {error}.") from error
    caption = check_caption({key: part for key, part in value.items() if key not in MEDIA_FIELDS})
    empty = [name for name in REQUIRED if not (caption.get(name) or "").strip()]
    if empty:
        raise WorldtuneError(f"it lacks {', '.join(empty)}.")
    return caption


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def add_media_fields(
    caption: dict[str, Any], *, width: int, height: int, num_frames: int, fps: float
) -> dict[str, Any]:
    """Return the caption with the fields of the source video at its end.

    Args:
        caption: a structured caption.
        width: pixels of a row.
        height: rows of a frame.
        num_frames: frames of the video.
        fps: frames a second.
    """
    divisor = math.gcd(width, height)
    media = {
        "resolution": {"H": height, "W": width},
        "aspect_ratio": f"{width // divisor},{height // divisor}",
        "duration": f"{round(num_frames / fps)}s",
        "fps": round(fps),
    }
    return {key: part for key, part in caption.items() if key not in media} | media


def caption_text(caption: dict[str, Any] | str) -> str:
    """Return the text that a tokenizer gets: an object as one line of JSON in the order of its keys.

    A text that stands in the place of the object is taken as it is, without the white space around it.
    """
    return caption.strip() if isinstance(caption, str) else json.dumps(caption, ensure_ascii=False)


def answer_schema() -> dict[str, Any]:
    """Return the JSON schema that a server may hold a model's answer to: the fields without those of the file.

    Unknown fields, which a reader accepts, are not asked for.
    """
    schema = _without_extras(StructuredCaption.model_json_schema())
    for name in MEDIA_FIELDS:
        del schema["properties"][name]
    del schema["$defs"]["Resolution"]
    schema["required"] = list(REQUIRED)
    schema["properties"] |= {name: {"type": "string"} for name in REQUIRED}
    return schema


def _without_extras(node: Any) -> Any:
    """Return a schema in which objects are closed, without the words that only people read."""
    if isinstance(node, list):
        return [_without_extras(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _without_extras(item) for key, item in node.items() if key not in ("default", "description")}
    if "properties" in node:
        closed["properties"] = {name: _without_extras(item) for name, item in node["properties"].items()}
        closed["additionalProperties"] = False
    return closed
