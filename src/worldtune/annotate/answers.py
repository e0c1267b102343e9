"""What a vision-language model is asked about a clip, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worldtune.common.errors import WorldtuneError


class RefusedError(WorldtuneError):
    """A clip is refused, and would be again; others may be answered."""


class UnansweredError(WorldtuneError):
    """A clip got no answer this time; the next time it may, and others may now."""


@dataclass(frozen=True, kw_only=True)
class SampledClip:
    """A clip as a model sees it. T sampled frames, H, W."""

    frames: np.ndarray
    """uint8 [T, H, W, 3]."""
    times_s: tuple[float, ...]
    """Seconds of each frame from the clip's start."""
    video: Path
    """The clip's file, for servers that take whole videos."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a model about each clip."""

    prompt: str
    max_new_tokens: int
    """Longer answers are cut off."""
    schema: dict[str, Any] | None = None
    """JSON schema of the answer; None where it is free text."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn: as the published caption script of Cosmos3 does."""

    seed: int
    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer."""

    text: str
    is_whole: bool
    """Whether the model ended it; False where it was cut off."""


class Answerer(Protocol):
    """A model, here or behind a server."""

    def answer(self, clips: Sequence[SampledClip], question: Question, sampling: Sampling | None) -> list[Answer]:
        """Return an answer for each clip; without `sampling` the likeliest token is taken each time.

        Raises:
            RefusedError: a clip gets no answer, whenever it is asked about.
            UnansweredError: a clip got no answer this time.
            WorldtuneError: nothing can be answered.
        """
        ...
