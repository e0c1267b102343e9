"""launch_info.yaml of an attempt: one entry a start, and how much of the starts before it is repeated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from worldtune.common.files import write_text

LAUNCH_INFO = "launch_info.yaml"


def append_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Add an entry to a YAML list in a file, which need not exist; the file stays whole on a full disk."""
    # Not appended in place: a full disk would leave half an entry, and no start after it could read the file.
    entries = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, entries + _text([dict(entry)]))


def note_resume(attempt: Path, *, start_step: int, repeated_steps: int) -> None:
    """Add to the newest start where it began, once that is known.

    Args:
        attempt: the attempt's folder; the lease must be held.
        start_step: completed steps of the checkpoint that it went on from, 0 where there was none.
        repeated_steps: completed steps of earlier starts that came after that checkpoint, and are made again.
    """
    path = attempt / LAUNCH_INFO
    # A loop that no job surrounds has noted no start.
    starts = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else [{}]
    starts[-1] |= {"start_step": start_step, "repeated_steps": repeated_steps}
    write_text(path, _text(starts))


def _text(entries: list[dict[str, Any]]) -> str:
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
