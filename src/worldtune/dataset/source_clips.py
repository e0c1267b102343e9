"""What a dataset's source is made of: clips, and the facts about their files that tell whether they changed."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class SourceClip:
    """One clip of the source, or a caption that has no video."""

    key: str
    """Path of the video below the source folder, or of the caption where that is alone."""
    start_s: float | None = None
    end_s: float | None = None
    size: int | None = None
    mtime_ns: int | None = None
    caption: str | None = None
    """The caption where a list or the clip's view gives it."""
    caption_key: str | None = None
    """The file beside the video that holds the caption."""
    problem: str = ""
    """Why the clip cannot be used whatever is in its files."""

    @property
    def has_video(self) -> bool:
        """Whether the key names a video, there or not."""
        return self.key != self.caption_key


def size_and_time(file: Path | os.DirEntry[str]) -> tuple[int | None, int | None]:
    """Return the size of a file in bytes and its time in nanoseconds; None where it is no file."""
    try:
        status = file.stat()
    except OSError:
        # A link to nothing: the job that reads the file will say so.
        return None, None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (None, None)
