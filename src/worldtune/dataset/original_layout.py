"""A validated dataset written as Cosmos-Transfer1 reads one (spec/transfer1-training.md 5.1, 5.2), to compare with it.

    metas/NAME.txt  videos/NAME.mp4  t5_xxl/NAME.pickle  depth/NAME.mp4  seg/NAME.pickle ...      clips of one view
    videos/VIEW/NAME.mp4  hdmap/VIEW/NAME.mp4  t5_xxl/VIEW/NAME.pkl  cache/prefix_VIEW.pkl        clips of several

A dataset of kind folder with `layout: original` reads what is written here.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, copy_file, write_text
from worldtune.dataset.clips import COMPUTED_CONTROLS, CONTROL_SUFFIXES, Clip, Dataset, scene_key
from worldtune.dataset.layout import META_FOLDER, PART_NUMBER, PREFIX_FOLDER, TEXT_FOLDER
from worldtune.dataset.text import NESTED_KEYS, read_t5_tokens, write_t5

NESTED_CONTROLS = frozenset({"hdmap", "lidar"})
"""Controls whose loader, for one view, takes embeddings from nested tables in files .pkl."""


def clip_names(clips: tuple[Clip, ...], views: tuple[str, ...]) -> dict[str, str]:
    """Return the name of each clip by its id: its source's path with _ for /, and its time range where it has one.

    Times are written in full, so that no two parts of a video share a name.

    The original looks for the caption of NAME_0 under NAME, so such a name gets an end that is no digit.

    Raises:
        WorldtuneError: two clips get the same name.
    """
    names: dict[str, str] = {}
    taken: dict[tuple[str | None, str], Clip] = {}
    for clip in clips:
        name = Path(scene_key(clip.source_key, views)).with_suffix("").as_posix().strip("./").replace("/", "_")
        if clip.start_s is not None and clip.end_s is not None:
            name += f"_{_seconds(clip.start_s)}-{_seconds(clip.end_s)}s"
        if PART_NUMBER.search(name):
            name += "_clip"
        other = taken.setdefault((clip.view, name), clip)
        if other is not clip:
            raise WorldtuneError(
                f"{clip.source_key} and {other.source_key} would both be called {name}. Rename one of the videos."
            )
        names[clip.clip_id] = name
    return names


def _seconds(value: float) -> str:
    """Return the shortest decimal that is this number, without an exponent."""
    return np.format_float_positional(value, trim="-")


def write_original_layout(dataset: Dataset, target: Path) -> int:
    """Write the usable clips of a dataset into a folder.

    Every file is a copy: a tool that writes into the folder must not reach the dataset's own files. Copies take no room
    where the file system can share blocks until they are written.

    Args:
        dataset: a validated dataset.
        target: a folder that does not exist or is empty.

    Returns:
        Number of clips written.

    Raises:
        WorldtuneError: the folder is not empty, names collide, or views cannot be expressed in that layout.
    """
    if target.exists() and any(target.iterdir()):
        raise WorldtuneError(f"{target} is not empty. Give a new folder.")
    names = clip_names(dataset.clips, dataset.views)
    if dataset.views:
        _write_prefixes(dataset, target)
    for clip in dataset.clips:
        place = Path(clip.view or "", names[clip.clip_id])
        copy_file(clip.video_path(dataset.root), _file(target, "videos", place, ".mp4"))
        for kind in dataset.controls:
            if kind not in COMPUTED_CONTROLS:
                suffix = CONTROL_SUFFIXES[kind]
                copy_file(clip.control_path(dataset.root, kind), _file(target, kind, place, suffix))
        caption = clip.caption(dataset.root)
        if caption:
            write_text(_file(target, META_FOLDER, place, ".txt"), caption + "\n")
        _write_text_files(dataset, _tokens(dataset, clip), _file(target, TEXT_FOLDER, place, ".pickle"))
    return len(dataset.clips)


def _file(target: Path, folder: str, place: Path, suffix: str) -> Path:
    # Not with_suffix, which takes a dot in the name for the beginning of one.
    return target / folder / place.parent / f"{place.name}{suffix}"


def _tokens(dataset: Dataset, clip: Clip) -> np.ndarray:
    tokens = read_t5_tokens(clip.t5_path(dataset.root), dataset.text_max_tokens, dataset.text_channels)
    return tokens.astype(np.float16)


def _write_text_files(dataset: Dataset, tokens: np.ndarray, path: Path) -> None:
    """Write an embedding (float16 [n, C]) in the forms that the loaders of the dataset's controls take."""
    nested = path.parent / f"{path.name.removesuffix('.pickle')}.pkl"
    if dataset.views:
        _dump([tokens], nested)
        return
    if NESTED_CONTROLS.intersection(dataset.controls):
        value: Any = [tokens]
        for key in reversed(NESTED_KEYS):
            value = {key: value}
        _dump(value, nested)
    if not NESTED_CONTROLS.issuperset(dataset.controls):
        write_t5(path, tokens)


def _write_prefixes(dataset: Dataset, target: Path) -> None:
    """Write the embedding that all clips of a view share, for each view but the main one."""
    for view in dataset.views[1:]:
        clips = [clip for clip in dataset.clips if clip.view == view]
        shared = _tokens(dataset, clips[0])
        for clip in clips[1:]:
            if not np.array_equal(_tokens(dataset, clip), shared):
                raise WorldtuneError(
                    f"{clip.source_key} has another text than {clips[0].source_key}, but the original has one text for "
                    f"all clips of a view other than the main one ({dataset.views[0]}). Give the view's clips one "
                    "caption (views in the configuration)."
                )
        _dump(shared, target / PREFIX_FOLDER / f"prefix_{view}.pkl")


def _dump(value: Any, path: Path) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(value, file, protocol=4)
