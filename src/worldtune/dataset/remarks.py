"""What is said of a whole dataset in a line or a few: its remarks, its summary, the reasons of a failure."""

from collections.abc import Iterable, Sequence
from typing import Any

from worldtune.common.words import count_of
from worldtune.dataset.details import Alike, name_of
from worldtune.dataset.reasons import count_reasons

SHOWN_REASONS = 5

Row = dict[str, Any]


def dataset_remarks(table: Iterable[Row], alike: Alike, leaks: int, unclaimed: list[str]) -> list[str]:
    """Return what a person should know and what does not make a dataset unfit.

    Args:
        table: rows with their details.
        alike: clips that are equal or look alike.
        leaks: held-out clips that have a twin in training.
        unclaimed: given files that belong to no video.
    """
    remarks = []
    cut = [name_of(row) for row in table if row["caption_cut"]]
    if cut:
        are = "is longer than text_max_tokens and was" if len(cut) == 1 else "are longer than text_max_tokens and were"
        remarks.append(f"{count_of(len(cut), 'caption')} {are} cut: {_some(cut)}")
    if alike.copies:
        are = "is" if len(alike.copies) == 1 else "are"
        remarks.append(
            f"{count_of(len(alike.copies), 'video')} {are} there more than once: {_keys(alike.copies, ' = ')}"
        )
    if alike.similar:
        look = "looks" if len(alike.similar) == 1 else "look"
        remarks.append(f"{count_of(len(alike.similar), 'group')} of clips {look} alike: {_keys(alike.similar, ' ~ ')}")
    if leaks:
        are = "is like one that is" if leaks == 1 else "are like some that are"
        remarks.append(f"{count_of(leaks, 'held-out clip')} {are} trained on; remove the copies")
    if unclaimed:
        belong = "belongs" if len(unclaimed) == 1 else "belong"
        remarks.append(f"{count_of(len(unclaimed), 'given file')} {belong} to no video: {_some(unclaimed)}")
    return remarks


def _keys(groups: Iterable[Sequence[Row]], sign: str) -> str:
    return _some([_some([name_of(row) for row in group], sign) for group in groups])


def summary_line(name: str, rows: Sequence[Row], remarks: Sequence[str]) -> str:
    """Say how many clips can be used, what keeps the others from it and what a person should know."""
    left_out = [f"{name_of(row)}: {row['reason']}" for row in rows if row["status"] != "ok"]
    usable = f"{len(rows) - len(left_out)} of {count_of(len(rows), 'clip')} usable"
    why = f" ({_some(left_out, '; ')})" if left_out else ""
    return "; ".join([f"{name}: {usable}{why}", *remarks])


def _some(names: list[str], separator: str = ", ") -> str:
    shown = separator.join(sorted(names)[:SHOWN_REASONS])
    return shown if len(names) <= SHOWN_REASONS else f"{shown}{separator}..."


def reasons_in_words(rows: Iterable[Row]) -> str:
    """Return the most frequent reasons, a line each with one clip's own words."""
    counts = count_reasons(rows)
    lines = [
        f"  {count_of(count, 'clip')}: {label} (for example {example})"
        for label, count, example in counts[:SHOWN_REASONS]
    ]
    if len(counts) > SHOWN_REASONS:
        lines.append(f"  and {len(counts) - SHOWN_REASONS} other reasons")
    return "\n".join(lines) or "  There is no clip at all: put videos into the source folder."
