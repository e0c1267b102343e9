"""What a folder of videos holds: the videos and their captions, and captions that have no video."""

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.caption_list import read_caption_list
from worldtune.dataset.clips import CONTROL_SUFFIXES, VIDEO_SUFFIXES
from worldtune.dataset.layout import META_FOLDER, Layout, caption_stems, given_path
from worldtune.dataset.prompts import PROMPTS_SUFFIX
from worldtune.dataset.source_clips import SourceClip, size_and_time

CAPTION_SUFFIXES = (".txt", ".json")
"""Suffixes of a caption beside its video; the first that is there is taken."""


def list_folder(source: Path, caption_list: Path | None, layout: Layout) -> list[SourceClip]:
    """Return the clips of a folder of videos, and the captions there that belong to none, in no order.

    Args:
        source: the folder; one that does not exist has none.
        caption_list: the list of captions, where the configuration names one.
        layout: where the captions of the videos lie.

    Raises:
        WorldtuneError: the list is wrong, or a name is no UTF-8.
    """
    if not source.is_dir():
        return []
    videos: dict[str, tuple[int | None, int | None]] = {}
    captions: set[str] = set()
    for key, entry in _walk_source(source, layout):
        suffix = posixpath.splitext(key)[1].lower()
        if suffix in VIDEO_SUFFIXES:
            videos[key] = size_and_time(entry)
        elif suffix in CAPTION_SUFFIXES:
            captions.add(key)
        else:
            continue
        check_name(source, key)
    clips = []
    listed = read_caption_list(source, caption_list) if caption_list else []
    for clip in listed:
        size, mtime_ns = videos.get(clip.key, (None, None))
        clips.append(SourceClip(**{**vars(clip), "size": size, "mtime_ns": mtime_ns}))
    in_list = {clip.key for clip in listed}
    stems = {stem for key in (*videos, *in_list) for stem in caption_stems(key, layout)}
    for key, (size, mtime_ns) in videos.items():
        if key not in in_list:
            candidates = (stem + suffix for stem in caption_stems(key, layout) for suffix in CAPTION_SUFFIXES)
            beside = next((candidate for candidate in candidates if candidate in captions), None)
            clips.append(SourceClip(key=key, size=size, mtime_ns=mtime_ns, caption_key=beside))
    video_stems = {posixpath.splitext(key)[0] for key in (*videos, *in_list)}
    ours = None if caption_list is None else os.path.abspath(caption_list)
    for key in captions:
        prompts = key.endswith(PROMPTS_SUFFIX) and key.removesuffix(PROMPTS_SUFFIX) in video_stems
        is_list = str(given_path(source.absolute(), key)) == ours
        if posixpath.splitext(key)[0] not in stems and not prompts and not is_list:
            clips.append(SourceClip(key=key, caption_key=key))
    return clips


def _walk_source(source: Path, layout: Layout) -> Iterator[tuple[str, os.DirEntry[str]]]:
    yield from _walk(str(source), "", set())
    captions = given_path(source, f"../{META_FOLDER}")
    if layout == "original" and captions.is_dir():
        yield from _walk(str(captions), f"../{META_FOLDER}/", set())


def _walk(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files below a folder with their keys; links to folders are followed, but none twice."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if entry.name not in CONTROL_SUFFIXES:
                    folders.append(entry.name)
            else:
                yield prefix + entry.name, entry
    for name in sorted(folders):
        yield from _walk(os.path.join(folder, name), f"{prefix}{name}/", seen)


def check_name(source: Path, key: str) -> None:
    """Refuse the name of a file below a source that is no UTF-8, since it could not be written down.

    Raises:
        WorldtuneError: the name is no UTF-8.
    """
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise WorldtuneError(f"{source} has a file whose name is no UTF-8: {key!a}. Rename it.") from error
