"""Remarks on clips that are like others: the names that people read, and parts of one video."""

from worldtune.dataset.details import find_alike, mark_leaks
from worldtune.dataset.remarks import dataset_remarks
from worldtune.media.looks import FINGERPRINT_BITS

DIGITS = FINGERPRINT_BITS // 4
FLAT, OTHER = "0" * DIGITS, "f" * DIGITS


def row(name: str, key: str, start_s: float | None = None, end_s: float | None = None, split: str = "train") -> dict:
    return {
        **{"clip_id": name, "source_key": key, "start_s": start_s, "end_s": end_s, "split": split},
        **{"status": "ok", "video_sha256": name},
    }


def remarks_of(rows: list[dict], fingerprints: dict[str, str]) -> tuple[dict[str, list[str]], list[str]]:
    """The remarks on each clip, and on all together."""
    details = {
        name: {"fingerprint": code, "looks_like": None, "differing_bits": None, "remarks": []}
        for name, code in fingerprints.items()
    }
    alike = find_alike(rows, details)
    leaks = mark_leaks(alike, details)
    table = [{**row, "caption_cut": False} for row in rows]
    return {name: facts["remarks"] for name, facts in details.items()}, dataset_remarks(table, alike, leaks, [])


def test_nothing_is_said_of_parts_of_one_video_that_look_alike():
    rows = [row("a", "long.mp4", 0.0, 2.5), row("b", "long.mp4", 2.5, 5.0), row("c", "other.mp4")]
    assert remarks_of(rows, {"a": FLAT, "b": FLAT, "c": OTHER}) == ({"a": [], "b": [], "c": []}, [])


def test_parts_that_look_like_another_video_are_named_with_their_times():
    rows = [row("a", "long.mp4", 0.0, 2.5), row("b", "long.mp4", 2.5, 5.0), row("c", "copy.mp4", split="held_out")]
    found, together = remarks_of(rows, {"a": FLAT, "b": OTHER, "c": "1" + FLAT[1:]})
    bits = f"1 of {FINGERPRINT_BITS} bits differ"
    assert found == {
        "a": [f"looks alike: copy.mp4, {bits}"],
        "b": [],
        "c": [
            f"looks alike: long.mp4 0 to 2.5 s, {bits}",
            "leak: held out, but long.mp4 0 to 2.5 s is trained on",
        ],
    }
    assert together == [
        "1 group of clips looks alike: copy.mp4 ~ long.mp4 0 to 2.5 s",
        "1 held-out clip is like one that is trained on; remove the copies",
    ]
