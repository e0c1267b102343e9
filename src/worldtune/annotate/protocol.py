"""What a network that annotates clips is to the stage that runs it."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worldtune.checkpoint.catalogue import FILE_LIST
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest, read_json, sha256_file

logger = logging.getLogger(__name__)


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


class NetworkFailedError(WorldtuneError):
    """A network failed over a clip for a reason that may pass, such as memory that others held."""


class ClipAnnotator(Protocol):
    """A loaded network."""

    def annotate(self, clip: ClipToAnnotate, target: Path) -> None:
        """Write the control of a whole clip to `target`, whole or not at all.

        Raises:
            NetworkFailedError: the network failed over this clip, and may not the next time.
            WorldtuneError: this clip cannot be annotated; the message says why.
        """
        ...


@contextlib.contextmanager
def full_memory_may_pass() -> Iterator[None]:
    """Turn a GPU memory that does not suffice, which others may have held, into a NetworkFailedError."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        # Its numbers differ from run to run, and reasons go into files that have equal bytes for equal content.
        logger.warning("%s", error)
        raise NetworkFailedError("the GPU's memory did not suffice") from error


def folder_sha256(folder: Path) -> str:
    """Return a digest of the files of a network's folder, from its list of hashes where there is one.

    Raises:
        WorldtuneError: the folder is not there or empty.
    """
    if (folder / FILE_LIST).exists():
        return digest(read_json(folder / FILE_LIST))
    fetch = f"Fetch it: `snakemake {folder}/{FILE_LIST}`."
    if not folder.is_dir():
        raise WorldtuneError(f"{folder} does not exist; a network is expected there. {fetch}")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise WorldtuneError(f"{folder} is empty; a network is expected there. {fetch}")
    return digest({path.name: sha256_file(path) for path in files})


def choose_device(device: str) -> str:
    """Return "cuda" or "cpu" for "auto", and any other name as it is."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
