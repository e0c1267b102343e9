"""Why clips are not used or are remarked, and what to do about each reason.

A reason is "label: the clip's own words"; reasons are counted by their labels. A clip may have several.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

REASON_SEPARATOR = " | "

MENDS: dict[str, str] = {
    "empty video": "Fetch or render the video again; the file has nothing in it.",
    "truncated video": "Fetch the video again; its end is missing.",
    "unreadable video": "Put the video there if it does not exist; else encode it again (H.264 in MP4), or remove it.",
    "too short": "Give a longer video, or lower `min_frames`; a recipe wants `data.num_frames` in any case.",
    "time range outside the video": "Mend start_s and end_s in the list of captions.",
    "short remainder": "Lower `cut.min_s`, if clips as short are of use; there is nothing to mend.",
    "cannot be cut": "Encode the video again (H.264 in MP4), or remove it; what is wrong stands after the colon.",
    "no video": "Put the video beside its caption, or remove the caption.",
    "no view": "Move the video into the folder of one of the dataset's `views`.",
    "decoder died": "Run the stage again; if it dies again, encode the video anew or remove it.",
    "download failed": "`make retry DATASET=...` asks for it again.",
    "unreadable parquet file": "The repository's file is damaged or holds no videos; tell its author, or name a "
    "`folder` without it.",
    "no caption": "Write NAME.txt beside NAME.mp4, or a line of the list of captions; where a captioner gave none, run "
    "it again.",
    "no structured caption": "Run the captioner again, take another model, or ask for dense captions.",
    "caption unreadable": 'Save the caption as UTF-8 text, or as JSON with a text "caption".',
    "text embedding unusable": "Give the embedding again, as `layout` says; what is wrong stands after the colon.",
    "no text embedding": "Give the embedding of the video, or set `text` to made.",
    "text embedding out of date": "Run stage t5 again.",
    "text embedding too long": "Run stage t5 again, or raise `text_max_tokens` as far as the recipe admits.",
    "KIND unusable": "Make the control again as the section Controls of config/README.md says; what is wrong stands "
    "after the colon.",
    "KIND not made": "What the network could not do stands after the colon; give the control, or remove the clip.",
    "KIND died": "Run the stage again; if it dies again, look at the clip and its control.",
    "KIND out of date": "Run the stage of the control again, since the video has changed.",
    "KIND misplaced": "Delete the control in the dataset's folder and run its stage again.",
    "file gone": "Run the stage that makes it again (`--forcerun STAGE`); it makes only what is missing.",
    "file changed": "Delete the file, then run the stage that makes it again (`--forcerun STAGE`): it is not what the "
    "stage made.",
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
}
"""What to do, by label; KIND stands for the kind of a control."""


def label_of(reason: str) -> str:
    """Return the words that a reason is counted by."""
    return reason.partition(":")[0]


def mend_of(label: str, controls: Iterable[str]) -> str:
    """Return what to do about a label; empty where nothing is known."""
    for kind in controls:
        label = label.replace(f"{kind} ", "KIND ", 1) if label.startswith(f"{kind} ") else label
    return MENDS.get(label, "")


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
