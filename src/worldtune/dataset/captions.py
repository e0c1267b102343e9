"""Stage captions: the caption of each clip becomes metas/<clip_id>.txt, and .json with where it came from."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from worldtune.common.files import write_json, write_text
from worldtune.dataset.caption_text import CaptionText, read_caption
from worldtune.dataset.clips import caption_path, clip_id
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.ledger import open_ledger
from worldtune.dataset.listing import Listing, list_source
from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, retire_manifests, write_manifest
from worldtune.dataset.source_clips import SourceClip
from worldtune.dataset.work import Outcome, Task, do_tasks

VERSION = 1

STAGE = "captions"
MAKING_STAGE = "make_captions"
"""The stage that stands in the place of this one where a dataset has a captioner."""

CaptionJob = tuple[Path, Listing, SourceClip, CaptionText | None]

COLUMNS: dict[str, pa.DataType] = {
    **CLIP_COLUMNS,
    "caption_sha256": pa.string(),
    "num_characters": pa.int64(),
}
"""Columns of the manifest."""


def captions(name: str, config: DatasetConfig, shard: str, *, datasets: Path = Path("datasets")) -> Path:
    """Read the captions of a shard and write its manifest.

    Args:
        name: the dataset's name.
        config: the dataset's configuration.
        shard: four digits.
        datasets: folder of all datasets.

    Returns:
        The manifest's path. It has a row for each clip of the listing, with the reason where there is no caption, and
        one for each caption that has no video.

    Raises:
        WorldtuneError: the source folder does not exist, or this kind of dataset cannot be read.
    """
    root = datasets / name
    listing = list_source(name, config, datasets)
    path = manifest_path(root, STAGE, shard)
    label = f"{STAGE} {name} {shard}"
    with open_ledger(root, STAGE, shard) as ledger:
        retire_manifests(root, MAKING_STAGE)
        # Files this small are written faster than a process starts.
        tasks = [caption_task(root, listing, clip) for clip in listing.clips(shard)]
        rows = do_tasks(ledger, tasks, write_caption, write_caption, label=label, processes=1)
        write_manifest(path, rows, COLUMNS)
    return path


def caption_task(root: Path, listing: Listing, clip: SourceClip) -> Task[CaptionJob]:
    """Return the work of taking over what is given as the caption of a clip, which `write_caption` does."""
    found = read_caption(listing.source, clip)
    inputs = {
        "caption_sha256": found.content_sha256 if found else None,
        "problem": _problem(listing, clip, found),
        "version": VERSION,
    }
    identifier = clip_id(clip.key, clip.start_s, clip.end_s)
    return Task(clip_id=identifier, inputs=inputs, argument=(root, listing, clip, found))


def _problem(listing: Listing, clip: SourceClip, found: CaptionText | None) -> str:
    """Return why a clip has no caption to use, or an empty text."""
    if not clip.has_video:
        return "no video: there is a caption, but no video beside it"
    if found is None:
        return "no caption: neither a .txt nor a .json with its name is beside the video"
    if found.text == "":
        return "no caption: it is empty"
    return found.problem


def write_caption(argument: CaptionJob) -> Outcome:
    """Write the files of a clip's given caption, or remove them where it cannot be used, and return the clip's row."""
    root, listing, clip, found = argument
    identifier = clip_id(clip.key, clip.start_s, clip.end_s)
    problem = _problem(listing, clip, found)
    row: dict[str, Any] = {
        "clip_id": identifier,
        "source_key": clip.key,
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "status": "unusable" if problem else "ok",
        "reason": problem,
        "caption_sha256": None,
        "num_characters": None,
    }
    text_path = caption_path(root, identifier)
    facts_path = text_path.with_suffix(".json")
    if problem or found is None or found.text is None:
        text_path.unlink(missing_ok=True)
        facts_path.unlink(missing_ok=True)
        return Outcome(row=row)
    write_text(text_path, found.text + "\n")
    facts = {"caption": found.text, "source_key": clip.key, "start_s": clip.start_s, "end_s": clip.end_s}
    write_json(facts_path, facts)
    row |= {"caption_sha256": found.content_sha256, "num_characters": len(found.text)}
    return Outcome(row=row, outputs=(text_path, facts_path))
