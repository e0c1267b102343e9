"""What is known of a clip beyond its row of clips.parquet: looks, caption, controls, copies, and remarks for people.

Nothing of it decides whether a clip is used or is part of the dataset's digest.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from worldtune.common.words import count_of
from worldtune.dataset.clips import clip_name
from worldtune.dataset.lookalikes import find_lookalikes
from worldtune.media.looks import FINGERPRINT_BITS

DARK = 24.0
"""Mean luma below which a clip is nearly black; black is 16 in video range."""
STILL = 0.02
"""Mean change of luma from frame to frame below which nothing moves; a camera at rest has more noise."""
MOVING = 0.5
"""The same from which on something surely moves."""
EMPTY_SHARE = 0.5
"""Share of a control's frames that show nothing from which on it is remarked."""

Row = dict[str, Any]

COLUMNS: dict[str, pa.DataType] = {
    "remarks": pa.string(),
    "seconds": pa.float64(),
    "brightness": pa.float64(),
    "motion": pa.float64(),
    "fingerprint": pa.string(),
    "caption": pa.string(),
    "num_words": pa.int64(),
    "caption_cut": pa.bool_(),
    "looks_like": pa.string(),
    "differing_bits": pa.int64(),
}
"""Columns of validation/clips.parquet after those of clips.parquet; those of the controls follow.

remarks: joined by REASON_SEPARATOR. looks_like: clip id of the usable clip that looks most like it, differing_bits: of
the FINGERPRINT_BITS of their fingerprints; none where only parts of the same video look alike.
"""
CONTROL_FACTS: dict[str, dict[str, pa.DataType]] = {
    "seg": {"seg_num_objects": pa.int64()},
    "keypoint": {"keypoint_people_per_frame": pa.float64()},
}


def detail_columns(controls: Sequence[str]) -> dict[str, pa.DataType]:
    """Return the columns of the details of a dataset with these controls."""
    columns = dict(COLUMNS)
    for kind in controls:
        columns |= {f"{kind}_empty_frames": pa.int64(), **CONTROL_FACTS.get(kind, {})}
    return columns


def clip_details(
    row: Row, video: Mapping[str, Any], text: Mapping[str, Any], caption: str | None, controls: Mapping[str, Row]
) -> Row:
    """Return a clip's details; those that depend on other clips are set by `find_alike`.

    Args:
        row: its row of clips.parquet.
        video: its row of stage ingest; empty where there is none.
        text: its row of stage t5.
        caption: its caption; None where it cannot be read.
        controls: by kind, its row of stage controls.
    """
    details: Row = dict.fromkeys(detail_columns(list(controls)))
    details |= {key: video.get(key) for key in ("brightness", "motion", "fingerprint")}
    if row["num_frames"] and row["fps"]:
        details["seconds"] = row["num_frames"] / row["fps"]
    if caption is not None:
        details |= {"caption": caption, "num_words": len(caption.split())}
    details["caption_cut"] = text.get("truncated")
    remarks = []
    if details["caption_cut"]:
        remarks.append(f"caption cut: it is longer than {text['num_tokens']} tokens")
    if details["brightness"] is not None and details["brightness"] < DARK:
        remarks.append(f"nearly black: mean brightness {details['brightness']:g} of 255")
    if details["motion"] is not None and details["motion"] < STILL:
        remarks.append(f"nothing moves: mean change {details['motion']:g} of 255 from frame to frame")
    for kind, control in controls.items():
        empty = details[f"{kind}_empty_frames"] = control.get("empty_frames")
        if kind == "seg":
            details["seg_num_objects"] = control.get("num_objects")
        if kind == "keypoint":
            details["keypoint_people_per_frame"] = control.get("people_per_frame")
        if empty and control.get("num_frames") and empty >= EMPTY_SHARE * control["num_frames"]:
            remarks.append(f"{kind} mostly empty: {empty} of {control['num_frames']} frames show nothing")
        # Streets and boxes of other kinds do stand still at a red light.
        elif kind == "depth" and _stands_still(control.get("motion"), details["motion"]):
            remarks.append(f"{kind} stands still: all its frames are alike, but the video moves")
    details["remarks"] = remarks
    return details


def _stands_still(control: float | None, video: float | None) -> bool:
    """Return whether a control does not move where its video does; both are mean changes of luma."""
    return control is not None and video is not None and control < STILL and video >= MOVING


@dataclass(frozen=True)
class Alike:
    """Groups of usable clips that are equal or look alike; keys of the clips' sources, for people."""

    copies: list[list[Row]] = field(default_factory=list)
    """Rows with the same video, byte by byte."""
    similar: list[list[Row]] = field(default_factory=list)
    """Rows whose videos look alike and are not all the same."""


def find_alike(rows: Iterable[Row], details: Mapping[str, Row]) -> Alike:
    """Find usable clips that are equal or look alike, and remark it in their details.

    Clips of different cameras are not compared: those of one scene may well look alike. So may parts of one video,
    which lie on one side of the held-out split: where a group has nothing else, nothing is said of it.
    """
    alike = Alike()
    by_view: dict[str | None, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["status"] == "ok":
            by_view[row.get("view")][row["video_sha256"]].append(row)
    for contents in by_view.values():
        for group in contents.values():
            if len(group) > 1:
                alike.copies.append(group)
                for row, other in zip(group, [*group[1:], group[0]], strict=True):
                    _remark(row, other, details, 0, f"copy: the same video as {name_of(other)}")
        alike.similar.extend(_similar(contents, details))
    return alike


def _similar(contents: Mapping[str, list[Row]], details: Mapping[str, Row]) -> list[list[Row]]:
    known = [group for group in contents.values() if details[group[0]["clip_id"]]["fingerprint"]]
    found = find_lookalikes([details[group[0]["clip_id"]]["fingerprint"] for group in known])
    members: dict[int, list[int]] = defaultdict(list)
    for number, nearest in enumerate(found.nearest):
        if nearest >= 0:
            members[int(found.groups[number])].append(number)
    similar = []
    for numbers in members.values():
        rows = [row for number in numbers for row in known[number]]
        if len({row["source_key"] for row in rows}) == 1:
            continue
        similar.append(rows)
        for number in numbers:
            other, distance = known[found.nearest[number]][0], int(found.distances[number])
            words = f"looks alike: {name_of(other)}, {distance} of {FINGERPRINT_BITS} bits differ"
            for row in known[number]:
                _remark(row, other, details, distance, words)
    return similar


def name_of(row: Row) -> str:
    """Return the name of a row's clip for people, as clips.clip_name has it."""
    return clip_name(row["source_key"], row["start_s"], row["end_s"])


def _remark(row: Row, other: Row, details: Mapping[str, Row], distance: int, words: str) -> None:
    mine = details[row["clip_id"]]
    if mine["looks_like"] is None:
        mine |= {"looks_like": other["clip_id"], "differing_bits": distance}
    mine["remarks"].append(words)


def mark_leaks(alike: Alike, details: Mapping[str, Row]) -> int:
    """Remark the held-out clips that have a twin in training, and return how many there are."""
    leaks = 0
    for group in (*alike.copies, *alike.similar):
        trained = [name_of(row) for row in group if row["split"] == "train"]
        for row in group if trained else []:
            remarks = details[row["clip_id"]]["remarks"]
            if row["split"] == "held_out" and not any(text.startswith("leak:") for text in remarks):
                remarks.append(f"leak: held out, but {trained[0]} is trained on")
                leaks += 1
    return leaks


STATISTICS: dict[str, str] = {
    "num_frames": "frames",
    "seconds": "seconds",
    "fps": "frames a second",
    "width": "pixels of a row",
    "height": "rows of a frame",
    "num_words": "words of the caption",
    "num_tokens": "tokens of the caption, after the cut",
    "brightness": "mean brightness, 0 to 255",
    "motion": "mean change of brightness from frame to frame",
    "seg_num_objects": "objects (seg)",
    "keypoint_people_per_frame": "people in a frame (keypoint)",
}
"""Title of each number that is summed up."""
WITHOUT_TOTAL = frozenset({"fps", "width", "height", "brightness", "motion", "keypoint_people_per_frame"})
"""Numbers whose sum says nothing."""


def statistics(rows: Sequence[Row]) -> list[Row]:
    """Sum up the numbers of the usable clips.

    Args:
        rows: rows with their details.

    Returns:
        A row for each number: key, title, clips, smallest, median, mean, largest, total (None where that says nothing).
    """
    usable = [row for row in rows if row["status"] == "ok"]
    empties = [key for key in (usable[0] if usable else {}) if key.endswith("_empty_frames")]
    titles = STATISTICS | {key: f"frames that show nothing ({key.removesuffix('_empty_frames')})" for key in empties}
    summed = []
    for key, title in titles.items():
        values = np.array([row[key] for row in usable if row.get(key) is not None], np.float64)
        if values.size:
            numbers = (values.min(), np.median(values), values.mean(), values.max(), values.sum())
            names = ("smallest", "median", "mean", "largest", "total")
            rounded: Row = {name: round(float(number), 3) for name, number in zip(names, numbers, strict=True)}
            if key in WITHOUT_TOTAL:
                rounded["total"] = None
            summed.append({"key": key, "title": title, "clips": int(values.size), **rounded})
    return summed


def shares_of_empty_frames(rows: Sequence[Row], controls: Sequence[str]) -> list[str]:
    """Say of each control in how many clips it shows mostly nothing."""
    said = []
    for kind in controls:
        key = f"{kind} mostly empty:"
        clips = [row for row in rows if row["status"] == "ok" and key in row["remarks"]]
        if clips:
            said.append(
                f"{kind} shows nothing in half or more of the frames of {count_of(len(clips), 'clip')}, such as "
                f"{clips[0]['source_key']}"
            )
    return said
