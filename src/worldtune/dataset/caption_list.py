"""The list of captions of a folder of videos, .csv, .jsonl or .parquet, which may divide them into clips."""

import math
import posixpath
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.common.words import shown
from worldtune.dataset.records import read_records
from worldtune.dataset.source_clips import SourceClip

LIST_COLUMNS = frozenset({"video", "caption", "start_s", "end_s"})


def read_caption_list(source: Path, path: Path) -> list[SourceClip]:
    """Return the clips that a list of captions names, in its order; whether their videos exist is not looked at.

    Args:
        source: folder of the videos.
        path: a table with the columns video (path below `source`), caption and, of parts of a video, start_s and end_s.

    Raises:
        WorldtuneError: the list cannot be read, or a row is wrong; the message names it.
    """
    clips: dict[tuple[str, float | None, float | None], str] = {}
    found = []
    what = "the dataset's list of captions"
    for place, record in read_records(path, LIST_COLUMNS, what=what, others_are_errors=True):
        where = f"{path}, {place}"
        video, caption = record.get("video"), record.get("caption")
        if not isinstance(video, str) or not video.strip():
            raise WorldtuneError(f"{where}: video is {shown(video)}; expected a path below {source}.")
        if caption is not None and not isinstance(caption, str):
            raise WorldtuneError(f"{where}: caption is {shown(caption)}; expected a text.")
        key = posixpath.normpath(video.strip())
        if posixpath.isabs(key) or key.split("/")[0] == ".." or not key.isprintable():
            raise WorldtuneError(f"{where}: video {shown(video)} is no path below {source}.")
        start_s, end_s = _seconds(record.get("start_s"), where), _seconds(record.get("end_s"), where)
        if (start_s is None) != (end_s is None) or (start_s is not None and end_s is not None and end_s <= start_s):
            raise WorldtuneError(
                f"{where}: start_s {start_s} and end_s {end_s}; expected both, the end after the start."
            )
        if (key, start_s, end_s) in clips:
            raise WorldtuneError(f"{where}: the same clip as in {clips[key, start_s, end_s]}. Remove one.")
        clips[key, start_s, end_s] = place
        found.append(SourceClip(key=key, start_s=start_s, end_s=end_s, caption=caption or ""))
    return found


def _seconds(value: object, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        seconds = float(value)
    # OverflowError: JSON knows whole numbers of any size.
    except (ValueError, OverflowError) as error:
        raise WorldtuneError(f"{where}: {shown(value)} is no time in seconds.") from error
    if not math.isfinite(seconds) or seconds < 0:
        raise WorldtuneError(f"{where}: {shown(value)} is no time in seconds.")
    return seconds
