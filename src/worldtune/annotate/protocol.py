"""What a network that annotates clips is to the stage that runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class ClipToAnnotate:
    """A clip as an annotator sees it."""

    clip_id: str
    video: Path
    """The clip's file; `worldtune.media.video.iterate_frames` reads it."""
    num_frames: int
    width: int
    height: int
    fps: float
    caption: str | None
    """The clip's caption, where the annotator's configuration reads captions."""
    prompts: Path | None = None
    """A file beside the clip's video that tells what to look for, where the annotator reads such files."""


class ClipAnnotator(Protocol):
    """A loaded network."""

    def annotate(self, clip: ClipToAnnotate, target: Path) -> None:
        """Write the control of a whole clip to `target`, whole or not at all.

        Raises:
            WorldtuneError: this clip cannot be annotated; the message says why.
        """
        ...


def choose_device(device: str) -> str:
    """Return "cuda" or "cpu" for "auto", and any other name as it is."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
