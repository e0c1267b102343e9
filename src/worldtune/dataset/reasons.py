"""Why clips are not used or are remarked, and what to do about each reason.

A reason is "label: the clip's own words"; reasons are counted by their labels. A clip may have several. The label also
tells a failure that may pass, which `make retry` tries again, from one that would only happen again.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from worldtune.dataset.advice import force_command, rule_of

REASON_SEPARATOR = " | "

MENDS: dict[str, str] = {
    "empty video": "Fetch or render the video again; the file has nothing in it.",
    "truncated video": "Fetch the video again; its end is missing.",
    "unreadable video": "Encode it again (H.264 in MP4), or remove it.",
    "too short": "Give a longer video, or lower `min_frames`; a recipe wants `data.num_frames` in any case.",
    "time range outside the video": "Mend start_s and end_s in the list of captions.",
    "short remainder": "Lower `cut.min_s`, if clips as short are of use; there is nothing to mend.",
    "cannot be cut": "Encode the video again (H.264 in MP4), or remove it; what is wrong stands after the colon.",
    "no video": "Put the video where its caption lies, or where the list of captions names it; or remove the caption.",
    "no view": "Move the video into the folder of one of the dataset's `views`.",
    "decoder died": "`make retry DATASET=...` tries again; if it dies again, encode the video anew or remove it.",
    "download failed": "`make retry DATASET=...` asks for it again.",
    "not in the repository": "Tell the repository's author; its metadata name a file that it does not have.",
    "unreadable parquet file": "The repository's file is damaged or holds no videos; tell its author, or name a "
    "`folder` without it.",
    "no caption": "Write NAME.txt beside NAME.mp4, or a line of the list of captions; where a captioner gave none, "
    f"mend what stands after the colon, then {force_command('...', 'make_captions')}; or raise `captioner.tries`, or "
    "take another model.",
    "no structured caption": "Raise `captioner.tries`, take another model, or ask for dense captions.",
    "no answer": "`make retry DATASET=...` asks the captioner again.",
    "caption unreadable": 'Save the caption as UTF-8 text, or as JSON with a text "caption".',
    "text embedding unusable": "Give the embedding again, as `layout` says; what is wrong stands after the colon.",
    "no text embedding": "Give the embedding of the video, or set `text` to made.",
    "text embedding out of date": f"Make it anew: {force_command('...', 't5')}.",
    "text embedding too long": f"Make it anew ({force_command('...', 't5')}), or raise `text_max_tokens` as far as "
    "the recipe admits.",
    "KIND unusable": "Make the control again as the section Controls of config/README.md says; what is wrong stands "
    "after the colon.",
    "KIND not made": "What the network could not do stands after the colon; give the control, or remove the clip.",
    "KIND died": "`make retry DATASET=...` tries again; if it dies again, look at the clip and its control.",
    "KIND out of date": "The video has changed since; the command in the clip's own words makes it anew.",
    "KIND misplaced": f"Delete the control in the dataset's folder, then {force_command('...', 'controls')}, or "
    "`--forcerun annotate` where a network makes it.",
    "file gone": "The command in the clip's own words makes it again, and only what is missing.",
    "file changed": "Delete the file, which is not what its stage made; then the command in the clip's own words makes "
    "it again.",
    "view missing": "Give the scene's video in each view's folder, or remove the scene.",
    "view unusable": "Mend the view that is named; the others wait for it.",
    "views differ": "Give the views of a scene the same number of frames, size and rate.",
    "caption cut": "Shorten the caption, or raise `text_max_tokens`; what follows the limit is not learnt.",
    "copy": "Remove one of the files; a copy counts twice in training.",
    "looks alike": "Remove one of the two if it is a copy; leave both if they only look alike.",
    "leak": "Remove one of the two: the held-out loss is flattered by what was trained on.",
    "nearly black": "Look at the video; remove it if it shows nothing.",
    "nothing moves": "Look at the video; a still picture teaches no motion.",
    "KIND mostly empty": "Look at the control beside its video; remove clips in which there is nothing to follow.",
    "KIND stands still": "Make the control from all frames of the video; it repeats one of them.",
}
"""What to do, by label; KIND stands for the kind of a control."""
PASSING: dict[str, frozenset[str]] = {
    "decoder died": frozenset({"cuts", "ingest"}),
    "download failed": frozenset({"fetch_videos"}),
    "no answer": frozenset({"make_captions"}),
    "KIND died": frozenset({"controls", "annotate"}),
}
"""Labels of the failures that may pass, with the rules that can fail so; later ones may repeat the reason."""


def label_of(reason: str) -> str:
    """Return the words that a reason is counted by."""
    return reason.partition(":")[0]


def mend_of(label: str, controls: Iterable[str]) -> str:
    """Return what to do about a label; empty where nothing is known."""
    return MENDS.get(_of_any_kind(label, controls), "")


def may_pass(reason: str, controls: Iterable[str], stage: str | None = None) -> bool:
    """Return whether what a reason tells of may not happen again when it is tried again.

    Args:
        reason: of a clip.
        controls: the kinds of control that the dataset has.
        stage: whose failure it must be; None asks for that of any.
    """
    rules = PASSING.get(_of_any_kind(label_of(reason), controls), frozenset())
    return bool(rules) if stage is None else rule_of(stage) in rules


def _of_any_kind(label: str, controls: Iterable[str]) -> str:
    for kind in controls:
        label = label.replace(f"{kind} ", "KIND ", 1) if label.startswith(f"{kind} ") else label
    return label


def split_reasons(text: str | None) -> list[str]:
    """Return the single reasons or remarks of a row."""
    return text.split(REASON_SEPARATOR) if text else []


def count_reasons(rows: Iterable[dict[str, Any]], column: str = "reason") -> list[tuple[str, int, str]]:
    """Return (label, number of clips, one clip's own words), the most frequent first."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for row in rows:
        reasons = split_reasons(row[column])
        for reason in reasons:
            examples.setdefault(label_of(reason), f"{row['source_key']}: {reason}")
        counts.update({label_of(reason) for reason in reasons})
    return sorted(
        ((label, count, examples[label]) for label, count in counts.items()), key=lambda item: (-item[1], item)
    )


def refuse(row: dict[str, Any], reason: str) -> None:
    """Add a reason to a clip's row, which makes it unusable."""
    row["reason"] = REASON_SEPARATOR.join(filter(None, (row["reason"], reason)))
    row["status"] = "unusable"
