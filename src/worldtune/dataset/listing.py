"""What a dataset's source holds, listed when the workflow is parsed and again when a job starts.

Names, sizes and times of the videos, and hashes of the captions: each shard's job records its slice, so that one edited
caption or one added file starts one job again. Nothing is decoded here.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.caption_text import read_caption
from worldtune.dataset.clips import (
    COMPUTED_CONTROLS,
    CONTROL_SUFFIXES,
    scene_key,
    shard_names,
    shard_of,
    view_of,
)
from worldtune.dataset.config import DatasetConfig, missing_folder, source_folder
from worldtune.dataset.download import METADATA, listed_clips
from worldtune.dataset.fetched import read_fetched
from worldtune.dataset.folder_listing import check_name, list_folder
from worldtune.dataset.layout import Layout, ViewText, given_key, given_path, text_parts
from worldtune.dataset.prompts import find_prompts, possible_shards, prompts_key
from worldtune.dataset.scenes import scene_names
from worldtune.dataset.source_clips import SourceClip, size_and_time
from worldtune.dataset.spans import read_spans

VideoRow = list[Any]
"""[key, size, mtime_ns, start_s, end_s]; size and time are None where there is no file yet, or none at all. Where the
video's place alone makes it unusable, the reason follows."""
CaptionRow = list[Any]
"""[key, start_s, end_s, sha256 of the caption, or None where there is none]."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The clips of a dataset's source by shard."""

    source: Path
    shards: dict[str, tuple[SourceClip, ...]]
    """Sorted by key and time within each shard."""
    from_config: bool
    """Whether the list was made from the configuration alone; the files may not be there yet."""
    layout: Layout = "beside"
    """Where what belongs to the videos lies."""
    refine: Callable[[str, tuple[SourceClip, ...]], tuple[SourceClip, ...]] | None = None
    """Makes of a shard's clips those that an earlier stage found; that stage may still work on other shards."""
    _captions: dict[str, list[CaptionRow]] = field(default_factory=dict, repr=False, compare=False)

    def clips(self, shard: str) -> tuple[SourceClip, ...]:
        """Return the clips of a shard.

        Raises:
            WorldtuneError: the dataset has no such shard.
        """
        if shard not in self.shards:
            raise WorldtuneError(f"there is no shard {shard!r}; shards are {shard_range(len(self.shards))}.")
        found = self.shards[shard]
        return found if self.refine is None else self.refine(shard, found)

    def videos(self, shard: str) -> list[VideoRow]:
        """Return what the job that reads the videos of a shard depends on."""
        return [
            [clip.key, clip.size, clip.mtime_ns, clip.start_s, clip.end_s, *([clip.problem] if clip.problem else [])]
            for clip in self.clips(shard)
            if clip.has_video
        ]

    def captions(self, shard: str) -> list[CaptionRow]:
        """Return what the job that reads the captions of a shard depends on; reads the caption files once."""
        if shard not in self._captions:
            rows = []
            for clip in self.clips(shard):
                not_there_yet = self.from_config and clip.caption is None
                found = None if not_there_yet else read_caption(self.source, clip)
                rows.append([clip.key, clip.start_s, clip.end_s, found.content_sha256 if found else None])
            self._captions[shard] = rows
        return self._captions[shard]

    def controls(self, shard: str, kind: str) -> list[VideoRow]:
        """Return the given control files of a shard as [key, size, mtime_ns]; empty for a control that is computed."""
        if kind in COMPUTED_CONTROLS or self.from_config:
            return []
        rows = []
        for key in sorted({clip.key for clip in self.clips(shard) if clip.has_video}):
            rows.append(self._file(control_key(key, kind, self.layout)))
        return rows

    def prompts(self, shard: str) -> list[VideoRow]:
        """Return the prompt files beside the videos of a shard as [key, size, mtime_ns], those that are there.

        Where the videos are known only once they are fetched, a file is among those of each shard that its video may be
        in.
        """
        keys = {prompts_key(clip.key) for clip in self.clips(shard) if clip.has_video}
        keys |= {key for key, shards in self._prompts_of_unknown.items() if shard in shards}
        rows = [[key, *size_and_time(self.source / key)] for key in sorted(keys)]
        return [row for row in rows if row[1] is not None]

    @functools.cached_property
    def _prompts_of_unknown(self) -> dict[str, frozenset[str]]:
        """The prompt files below the source by key, each with its possible shards; none where videos are listed."""
        if not self.from_config or any(self.shards.values()):
            return {}
        found = {key: possible_shards(key, len(self.shards)) for key in find_prompts(self.source)}
        for key in found:
            check_name(self.source, key)
        return found

    def texts(self, shard: str, views: Mapping[str, str], view_text: ViewText) -> list[list[VideoRow]]:
        """Return the given embeddings of each clip of a shard: the files [key, size, mtime_ns] in their order.

        Args:
            shard: four digits.
            views: the dataset's.
            view_text: the dataset's.
        """
        return [self.text_files(clip, views, view_text) for clip in self.clips(shard) if clip.has_video]

    def text_files(self, clip: SourceClip, views: Mapping[str, str], view_text: ViewText) -> list[VideoRow]:
        """Return the files of a clip's given embedding; size and time are None where one is missing."""
        view = view_of(clip.key, views) if views else None
        if views and view is None:
            return []
        rows = []
        for keys in text_parts(clip.key, view, views, view_text, self.layout):
            there = (key for key in keys if given_path(self.source, key).is_file())
            rows.append(self._file(next(there, keys[0])))
        return rows

    def _file(self, key: str) -> VideoRow:
        return [key, *size_and_time(given_path(self.source, key))]


def shard_range(num_shards: int) -> str:
    """Return the names of a dataset's shards as a text."""
    names = shard_names(num_shards)
    return names[0] if num_shards == 1 else f"{names[0]} to {names[-1]}"


def control_key(key: str, kind: str, layout: Layout) -> str:
    """Return the key of the given control of a video."""
    return given_key(key, kind, CONTROL_SUFFIXES[kind], layout)


@functools.cache
def list_dataset(name: str, config: DatasetConfig, datasets: Path = Path("datasets")) -> Listing:
    """List a dataset's source; listed once a process.

    A folder that does not exist lists as empty, so that the graph can be looked at before the data are there.

    Raises:
        WorldtuneError: the list of captions is wrong, or a name is no UTF-8.
    """
    source = source_folder(name, config, datasets)
    if config.kind == "folder":
        clips = list_folder(source, Path(config.captions) if config.captions else None, config.layout)
    elif config.kind == "synthetic":
        stems = scene_names(config.num_clips or 0)
        if config.views:
            # The main camera's caption tells the scene; the others have what their view says.
            main, *others = config.views
            clips = [SourceClip(key=f"{main}/{stem}.mp4", caption_key=f"{main}/{stem}.txt") for stem in stems]
            clips += [SourceClip(key=f"{view}/{stem}.mp4") for view in others for stem in stems]
        else:
            clips = [SourceClip(key=f"{stem}.mp4", caption_key=f"{stem}.txt") for stem in stems]
    else:
        clips = []
    if config.views:
        clips = [_of_view(clip, config.views) for clip in clips]
    shards: dict[str, list[SourceClip]] = {shard: [] for shard in shard_names(config.num_shards)}
    for clip in sorted(clips, key=lambda clip: (clip.key, clip.start_s or 0.0, clip.end_s or 0.0)):
        shards[shard_of(scene_key(clip.key, config.views), config.num_shards)].append(clip)
    return Listing(
        source=source,
        shards={shard: tuple(clips) for shard, clips in shards.items()},
        from_config=config.kind != "folder",
        layout=config.layout,
    )


def _of_view(clip: SourceClip, views: Mapping[str, str]) -> SourceClip:
    """Give a clip without caption that of its view, and one outside of the views the reason why it is not used."""
    view = view_of(clip.key, views)
    if view is None:
        return replace(clip, problem=f"no view: it lies in none of the folders {', '.join(views)}")
    has_own = clip.caption_key is not None or clip.caption
    return clip if has_own or not views[view].strip() else replace(clip, caption=views[view])


def list_source(name: str, config: DatasetConfig, datasets: Path) -> Listing:
    """Return the listing of a dataset whose source must be there, of videos that are cut their parts.

    Arguments as those of `list_dataset`.

    Raises:
        WorldtuneError: the source folder or its metadata do not exist, or the metadata are wrong.
    """
    whole = list_uncut_source(name, config, datasets)
    if config.cut is None:
        return whole

    def parts(shard: str, clips: tuple[SourceClip, ...]) -> tuple[SourceClip, ...]:
        spans = read_spans(datasets / name, shard)
        found = clips if whole.refine is None else whole.refine(shard, clips)
        # A list may name a part that was found too: it is one clip, with the list's caption.
        listed = {(clip.key, clip.start_s, clip.end_s) for clip in found}
        # A video that could not be read has no parts; its row is in the table of stage cuts.
        return tuple(
            part
            for clip in found
            for part in (
                [
                    replace(clip, start_s=start, end_s=end)
                    for start, end in spans[clip.key]
                    if (clip.key, start, end) not in listed
                ]
                if clip.key in spans and clip.start_s is None
                else [clip]
            )
        )

    return replace(whole, refine=parts, _captions={})


def list_uncut_source(name: str, config: DatasetConfig, datasets: Path) -> Listing:
    """Return the listing of a dataset whose source must be there, with whole videos; see `list_source`."""
    if config.kind == "hdvila":
        return _list_downloads(source_folder(name, config, datasets), config)
    if config.kind == "huggingface":
        return _list_fetched(name, config, datasets)
    listing = list_dataset(name, config, datasets)
    if missing_folder(name, config):
        raise WorldtuneError(missing_folder(name, config))
    return listing


def _list_fetched(name: str, config: DatasetConfig, datasets: Path) -> Listing:
    """Return the videos that the table of each shard's downloads names, also those that could not be had."""
    source = source_folder(name, config, datasets)

    def fetched(shard: str, _: tuple[SourceClip, ...]) -> tuple[SourceClip, ...]:
        clips = []
        for row in read_fetched(datasets / name, shard):
            key, caption = row["source_key"], row["caption"]
            size, mtime_ns = size_and_time(source / key)
            clips.append(SourceClip(key=key, size=size, mtime_ns=mtime_ns, caption=caption, problem=row["reason"]))
        return tuple(sorted(clips, key=lambda clip: clip.key))

    empty: dict[str, tuple[SourceClip, ...]] = {shard: () for shard in shard_names(config.num_shards)}
    return Listing(source=source, shards=empty, from_config=True, refine=fetched)


def _list_downloads(source: Path, config: DatasetConfig) -> Listing:
    """Return the clips that the metadata name; a video that could not be downloaded has no file."""
    shards: dict[str, list[SourceClip]] = {shard: [] for shard in shard_names(config.num_shards)}
    for clip in sorted(listed_clips(source / METADATA, config.max_clips or 0), key=lambda clip: clip.key):
        size, mtime_ns = size_and_time(source / clip.key)
        shards[shard_of(clip.key, config.num_shards)].append(
            SourceClip(
                key=clip.key,
                start_s=clip.start_s,
                end_s=clip.end_s,
                size=size,
                mtime_ns=mtime_ns,
                caption=clip.caption,
            )
        )
    return Listing(source=source, shards={shard: tuple(clips) for shard, clips in shards.items()}, from_config=True)
