"""What config/config.yaml may say of a dataset's captioner, and the prompts that it has without a word of yours."""

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from worldtune.common.files import digest

PROMPT_VERSION = 1
"""Raised when a prompt below changes."""
DENSE_PROMPT = (
    "Describe this video in one paragraph of plain English, between 80 and 200 words. Say who or what is seen, how it "
    "looks, where it is, what happens in the order of time, how the light is, and what the camera does. Describe only "
    "what can be seen. Do not speak of frames, of the video as such, or of yourself, and do not guess names. Answer "
    "with the paragraph alone."
)
STRUCTURED_PROMPT = (
    "Describe this video as one JSON object. Describe only what can be seen; leave out a key about which nothing can "
    "be said. All values are English texts unless another type is given. Keys:\n"
    "subjects: list of objects, one for each person, animal or thing that matters, with the keys description, "
    "appearance_details, relationship, location, relative_size, orientation, pose, action, state_changes, clothing, "
    "expression, gender, age, skin_tone_and_texture, facial_features, number_of_subjects (integer), number_of_arms "
    "(integer), number_of_legs (integer)\n"
    "background_setting: where it happens\n"
    "lighting: object with the keys conditions, direction, shadows, illumination_effect\n"
    "aesthetics: object with the keys composition, color_scheme, mood_atmosphere, patterns\n"
    "cinematography: object with the keys camera_motion, framing, camera_angle, depth_of_field, focus, "
    "lens_focal_length\n"
    "style_medium, artistic_style, context: texts\n"
    "actions: list of objects with the keys time (as M:SS-M:SS) and description\n"
    "text_and_signage_elements: list of objects with the keys text, category, appearance, spatial_temporal, context\n"
    "segments: list of objects with the keys segment_index (integer), time_range, description, key_changes, camera\n"
    "transitions: list of texts\n"
    "temporal_caption: the whole video in one paragraph of 80 to 200 words, in the order of time; it must be there\n"
    "audio_description: leave it out\n"
    "Answer with the JSON object alone."
)

RESULT_KEYS = ("model", "format", "prompt", "only_missing", "num_frames", "max_frame_pixels", "max_new_tokens", "tries")
"""Keys whose value can change a caption; the others say where and how fast it is made."""


class CaptionerConfig(BaseModel):
    """How captions are made from videos."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    model: str
    """Vision-language model: a folder below checkpoints/ that holds a Qwen3-VL, such as Qwen/Qwen3-VL-8B-Instruct; or,
    with `server`, the name that the server knows its model by."""
    server: str = ""
    """Address of an OpenAI-compatible server (vLLM), such as http://localhost:8000/v1; empty runs the model here.
    Another address makes no caption again, another model does."""
    format: Literal["dense", "structured"] = "dense"
    """A paragraph; or the JSON object of the Cosmos3 SFT data, whose temporal_caption is the paragraph."""
    prompt: str = ""
    """What is asked about each video; empty asks the prompt of the format."""
    only_missing: bool = True
    """Whether captions beside the videos or in the list are kept, and only the others are made."""
    num_frames: PositiveInt = 16
    """Frames of each clip that the model sees, at equal distances from the first to the last."""
    max_frame_pixels: PositiveInt = Field(default=768 * 32 * 32, ge=32 * 32)
    """Larger frames are made smaller; 1024 pixels are a token of Qwen3-VL for two frames."""
    max_new_tokens: PositiveInt = 2048
    """Longer answers are cut off: a paragraph after its last whole sentence, a JSON object is none then."""
    tries: PositiveInt = 3
    """Answers that are asked for until one is a caption. The first is the likeliest, the others are drawn."""
    batch_size: PositiveInt = 4
    """Clips that go through the model at once (without `server`)."""
    sends: Literal["frames", "video"] = "frames"
    """What a server gets of a clip: its sampled frames as pictures, or the whole file, of which it samples itself."""
    concurrency: PositiveInt = 16
    """Requests that a job has under way at once (`server`)."""
    timeout_s: PositiveFloat = 600.0
    """Seconds to wait for an answer (`server`)."""
    retries: NonNegativeInt = 5
    """How often a request is sent again where there is no answer or an error of the server (`server`)."""
    api_key_env: str = ""
    """Environment variable that holds the server's key; empty sends none."""

    @field_validator("model")
    @classmethod
    def _named(cls, model: str) -> str:
        if not model or any(part in ("", ".", "..") for part in model.split("/")):
            raise ValueError(f"{model!r} is no name of a model, such as Qwen/Qwen3-VL-8B-Instruct")
        return model

    @field_validator("server")
    @classmethod
    def _address(cls, server: str) -> str:
        if server and not server.startswith(("http://", "https://")):
            raise ValueError(f"{server!r} is no address, such as http://localhost:8000/v1")
        return server

    @model_validator(mode="after")
    def _keys_of_kind(self) -> Self:
        of_server = {"sends", "concurrency", "timeout_s", "retries", "api_key_env"}
        foreign = sorted(self.model_fields_set & ({"batch_size"} if self.server else of_server))
        if foreign:
            needs = "no server" if self.server else "a server"
            raise ValueError(f"{', '.join(foreign)} belongs to a captioner with {needs}")
        return self

    @property
    def question(self) -> str:
        """What is asked about each video."""
        return self.prompt or {"dense": DENSE_PROMPT, "structured": STRUCTURED_PROMPT}[self.format]

    def result_values(self) -> dict[str, Any]:
        """Return what can change a caption, and whether there is one: what the rule that makes captions depends on."""
        values = self.model_dump(mode="json", include=set(RESULT_KEYS))
        values |= {"prompt_version": PROMPT_VERSION, "where": "server" if self.server else "checkpoint"}
        # A server samples frames of a whole video by itself.
        return values | ({"sends": self.sends} if self.server else {})

    def clip_values(self) -> dict[str, Any]:
        """Return what a caption that was made depends on."""
        return {key: value for key, value in self.result_values().items() if key not in ("only_missing", "tries")}

    def prompt_name(self) -> str:
        """Return the name of what is asked: the version of the built-in prompt, or a digest of yours."""
        return f"custom-{digest(self.prompt, 12)}" if self.prompt else f"{self.format}-{PROMPT_VERSION}"
