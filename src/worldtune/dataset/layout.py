"""Where the files of a source video lie: beside it, or in a folder of each kind as the original has it.

Keys are paths below the folder of the videos. In the original's layout (spec/transfer1-training.md 5.1, 5.2) that is
`videos/`, and the other folders are its neighbours: ../metas, ../t5_xxl, ../depth and so on.
"""

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Layout = Literal["beside", "original"]
ViewText = Literal["alone", "before"]

TEXT_FOLDER = "t5_xxl"
META_FOLDER = "metas"
PREFIX_FOLDER = "cache"
"""Folder of the views' own embeddings in the original's layout."""
PART_NUMBER = re.compile(r"_[0-9]$")
"""End of a clip's name that its caption's name may lack (5.2)."""
GIVEN_SUFFIXES = (".pickle", ".pkl", ".safetensors")
"""Suffixes of a given embedding; the first that is there is taken."""


def given_key(key: str, folder: str, suffix: str, layout: Layout) -> str:
    """Return the key of a file that belongs to a video.

    Args:
        key: the video's.
        folder: of the kind of file, such as "depth".
        suffix: of the file.
        layout: the dataset's.
    """
    stem = posixpath.splitext(key)[0]
    if layout == "original":
        return f"../{folder}/{stem}{suffix}"
    parent, _, name = stem.rpartition("/")
    return posixpath.join(parent, folder, name + suffix)


def given_path(source: Path, key: str) -> Path:
    """Return the path of a key; the folder of the videos may be a link to elsewhere, its neighbours are not there."""
    return Path(os.path.normpath(source / key))


def names_of_texts(key: str, layout: Layout) -> tuple[str, ...]:
    """Return the videos' keys whose captions and embeddings may be those of a video, the best first."""
    stem, suffix = posixpath.splitext(key)
    if layout == "original" and PART_NUMBER.search(stem):
        return key, PART_NUMBER.sub("", stem) + suffix
    return (key,)


def caption_stems(key: str, layout: Layout) -> tuple[str, ...]:
    """Return the keys, without suffixes, of the files that may hold a video's caption, the best first."""
    if layout == "original":
        return tuple(given_key(name, META_FOLDER, "", layout) for name in names_of_texts(key, layout))
    return (posixpath.splitext(key)[0],)


def text_keys(key: str, layout: Layout) -> list[str]:
    """Return the keys of the files that may hold a video's own embedding, the best first."""
    names = names_of_texts(key, layout)
    return [given_key(name, TEXT_FOLDER, suffix, layout) for name in names for suffix in GIVEN_SUFFIXES]


def prefix_keys(view: str, layout: Layout) -> list[str]:
    """Return the keys of the files that may hold the embedding of a view, the best first."""
    folder = f"../{PREFIX_FOLDER}" if layout == "original" else TEXT_FOLDER
    return [f"{folder}/prefix_{view}{suffix}" for suffix in GIVEN_SUFFIXES]


def text_parts(
    key: str, view: str | None, views: Mapping[str, str], view_text: ViewText, layout: Layout
) -> list[list[str]]:
    """Return the parts of a video's embedding in their order: for each the keys of the files that may hold it (5.2).

    Args:
        key: the video's.
        view: its view; None in a dataset of one.
        views: the dataset's, the main one first.
        view_text: the dataset's.
        layout: the dataset's.
    """
    if view is None:
        return [text_keys(key, layout)]
    if view_text == "before":
        return [prefix_keys(view, layout), text_keys(key, layout)]
    return [text_keys(key, layout) if view == next(iter(views)) else prefix_keys(view, layout)]
