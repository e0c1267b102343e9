from pathlib import Path

from worldtune.dataset.reasons import MENDS, count_reasons, mend_of

CONTROLS = ("edge", "depth")


def test_every_reason_has_a_mend():
    # What the stages' own tests show as reasons.
    labels = ["too short", "edge unusable", "depth out of date", "file changed", "leak", "depth mostly empty"]
    labels += ["short remainder", "cannot be cut", "unreadable parquet file", "not in the repository", "no answer"]
    labels += ["text embedding unusable", "no text embedding"]
    for label in labels:
        assert mend_of(label, CONTROLS), label
    assert mend_of("no such reason", CONTROLS) == ""
    assert mend_of("seg unusable", CONTROLS) == ""


def test_readme_lists_them():
    readme = (Path(__file__).parents[2] / "config/README.md").read_text()
    for label, mend in MENDS.items():
        assert f"| {label} | {mend} |" in readme


def test_a_clip_counts_once_for_each_label():
    rows = [
        {"source_key": "a", "reason": "too short: 3 frames | no caption: none"},
        {"source_key": "b", "reason": "too short: 4 frames"},
        {"source_key": "c", "reason": "file gone: x | file gone: y"},
        {"source_key": "d", "reason": ""},
    ]
    assert count_reasons(rows) == [
        ("too short", 2, "a: too short: 3 frames"),
        ("file gone", 1, "c: file gone: x"),
        ("no caption", 1, "a: no caption: none"),
    ]
