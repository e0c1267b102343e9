"""Files beside a dataset's videos that belong to none of them, such as the depth of a video that is not there."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from worldtune.dataset.clips import COMPUTED_CONTROLS, CONTROL_SUFFIXES
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.layout import GIVEN_SUFFIXES, TEXT_FOLDER, given_path, prefix_keys, text_keys
from worldtune.dataset.listing import control_key


def unclaimed_files(source: Path, config: DatasetConfig, keys: Iterable[str]) -> list[str]:
    """Return the given controls and embeddings that no video has, as sorted paths below the dataset's `path`.

    Captions and videos are not among them: each has a row of its own.

    Args:
        source: the folder of the videos; there may be none any more.
        config: the dataset's configuration.
        keys: the videos' paths below `source`.
    """
    if config.kind != "folder":
        return []
    given = [kind for kind in config.controls if kind not in COMPUTED_CONTROLS and not config.annotate.find(kind)]
    suffixes: dict[str, tuple[str, ...]] = {kind: (CONTROL_SUFFIXES[kind],) for kind in given}
    keys = list(keys)
    claimed = {control_key(key, kind, config.layout) for key in keys for kind in given}
    if config.text == "given":
        suffixes[TEXT_FOLDER] = GIVEN_SUFFIXES
        claimed |= {name for key in keys for name in text_keys(key, config.layout)}
        claimed |= {name for view in config.views for name in prefix_keys(view, config.layout)}
    roots = [given_path(source, f"../{folder}") for folder in suffixes] if config.layout == "original" else [source]
    found = (key for root in roots for key in _files_of_kinds(source, root, suffixes))
    return sorted(key.removeprefix("../") for key in found if key not in claimed)


def _files_of_kinds(source: Path, root: Path, suffixes: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield the keys below `root` of files that lie in a folder of a kind and have one of its suffixes."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            # A link to a folder above.
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        place = Path(os.path.relpath(folder, source)).as_posix()
        kind = next((part for part in reversed(place.split("/")) if part in suffixes), None)
        if kind is not None:
            yield from (
                f"{place}/{name}" for name in names if name.endswith(suffixes[kind]) and not name.startswith(".")
            )
