"""Files beside videos that tell which objects are to be segmented: where they lie, in which shards their videos are."""

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

from worldtune.dataset.clips import VIDEO_SUFFIXES, shard_of

PROMPTS_SUFFIX = ".seg.json"
"""End of the name of such a file; it is no caption."""


def prompts_key(key: str) -> str:
    """Return where a video's prompts for segmentation lie: NAME.seg.json beside the video."""
    return posixpath.splitext(key)[0] + PROMPTS_SUFFIX


def find_prompts(source: Path) -> Iterator[str]:
    """Yield the keys of the prompt files below a folder, which may not be there yet."""
    for folder, _, names in os.walk(source):
        for name in names:
            if name.endswith(PROMPTS_SUFFIX):
                yield (Path(folder) / name).relative_to(source).as_posix()


def possible_shards(key: str, num_shards: int) -> frozenset[str]:
    """Return the shards that the video of a prompt file may be in where the name of the video is not known yet.

    A video that comes in a parquet file is in that file's shard, and lies in a folder with that file's name.
    """
    stem = key.removesuffix(PROMPTS_SUFFIX)
    suffixes = {variant for suffix in VIDEO_SUFFIXES for variant in (suffix, suffix.upper())}
    names = [*(stem + suffix for suffix in suffixes), posixpath.dirname(stem) + ".parquet"]
    return frozenset(shard_of(name, num_shards) for name in names)
