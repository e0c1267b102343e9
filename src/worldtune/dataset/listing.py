"""What a dataset's source holds, listed when the workflow is parsed and again when a job starts.

Names, sizes and times of the videos, and hashes of the captions: each shard's job records its slice, so that one edited
caption or one added file starts one job again. Nothing is decoded here.
"""

import functools
import hashlib
import json
import math
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.common.words import shown
from worldtune.dataset.clips import (
    COMPUTED_CONTROLS,
    CONTROL_SUFFIXES,
    VIDEO_SUFFIXES,
    scene_key,
    shard_names,
    shard_of,
    view_of,
)
from worldtune.dataset.config import DatasetConfig, missing_folder, source_folder
from worldtune.dataset.download import METADATA, listed_clips
from worldtune.dataset.fetched import read_fetched
from worldtune.dataset.layout import META_FOLDER, Layout, ViewText, caption_stems, given_key, given_path, text_parts
from worldtune.dataset.prompts import PROMPTS_SUFFIX, find_prompts, possible_shards, prompts_key
from worldtune.dataset.records import read_records
from worldtune.dataset.scenes import scene_names
from worldtune.dataset.spans import read_spans

CAPTION_SUFFIXES = (".txt", ".json")
"""Suffixes of a caption beside its video; the first that is there is taken."""
MAX_CAPTION_BYTES = 1 << 20
LIST_COLUMNS = frozenset({"video", "caption", "start_s", "end_s"})

VideoRow = list[Any]
"""[key, size, mtime_ns, start_s, end_s]; size and time are None where there is no file yet, or none at all. Where the
video's place alone makes it unusable, the reason follows."""
CaptionRow = list[Any]
"""[key, start_s, end_s, sha256 of the caption, or None where there is none]."""


@dataclass(frozen=True, kw_only=True)
class CaptionText:
    """What was read as a caption."""

    text: str | None
    """The caption without the white space around it, its lines ended by \\n; None where it cannot be read."""
    problem: str = ""
    """Why it cannot be read."""
    content_sha256: str
    """SHA-256 of the text, or of the file's bytes where those are no text."""


@dataclass(frozen=True, kw_only=True)
class SourceClip:
    """One clip of the source, or a caption that has no video."""

    key: str
    """Path of the video below the source folder, or of the caption where that is alone."""
    start_s: float | None = None
    end_s: float | None = None
    size: int | None = None
    mtime_ns: int | None = None
    caption: str | None = None
    """The caption where a list or the clip's view gives it."""
    caption_key: str | None = None
    """The file beside the video that holds the caption."""
    problem: str = ""
    """Why the clip cannot be used whatever is in its files."""

    @property
    def has_video(self) -> bool:
        """Whether the key names a video, there or not."""
        return self.key != self.caption_key


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
        rows = [[key, *_size_and_time(_status(self.source / key))] for key in sorted(keys)]
        return [row for row in rows if row[1] is not None]

    @functools.cached_property
    def _prompts_of_unknown(self) -> dict[str, frozenset[str]]:
        """The prompt files below the source by key, each with its possible shards; none where videos are listed."""
        if not self.from_config or any(self.shards.values()):
            return {}
        found = {key: possible_shards(key, len(self.shards)) for key in find_prompts(self.source)}
        for key in found:
            _check_name(self.source, key)
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
        return [key, *_size_and_time(_status(given_path(self.source, key)))]


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
        clips = _list_folder(source, Path(config.captions) if config.captions else None, config.layout)
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
            size, mtime_ns = _size_and_time(_status(source / key))
            clips.append(SourceClip(key=key, size=size, mtime_ns=mtime_ns, caption=caption, problem=row["reason"]))
        return tuple(sorted(clips, key=lambda clip: clip.key))

    empty: dict[str, tuple[SourceClip, ...]] = {shard: () for shard in shard_names(config.num_shards)}
    return Listing(source=source, shards=empty, from_config=True, refine=fetched)


def _list_downloads(source: Path, config: DatasetConfig) -> Listing:
    """Return the clips that the metadata name; a video that could not be downloaded has no file."""
    shards: dict[str, list[SourceClip]] = {shard: [] for shard in shard_names(config.num_shards)}
    for clip in sorted(listed_clips(source / METADATA, config.max_clips or 0), key=lambda clip: clip.key):
        size, mtime_ns = _size_and_time(_status(source / clip.key))
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


def _walk_source(source: Path, layout: Layout) -> Iterator[tuple[str, os.DirEntry[str]]]:
    yield from _walk(str(source), "", set())
    captions = given_path(source, f"../{META_FOLDER}")
    if layout == "original" and captions.is_dir():
        yield from _walk(str(captions), f"../{META_FOLDER}/", set())


def _list_folder(source: Path, caption_list: Path | None, layout: Layout) -> list[SourceClip]:
    if not source.is_dir():
        return []
    videos: dict[str, tuple[int | None, int | None]] = {}
    captions: set[str] = set()
    for key, entry in _walk_source(source, layout):
        suffix = posixpath.splitext(key)[1].lower()
        if suffix in VIDEO_SUFFIXES:
            videos[key] = _size_and_time(_status(entry))
        elif suffix in CAPTION_SUFFIXES:
            captions.add(key)
        else:
            continue
        _check_name(source, key)
    clips = []
    listed = _read_list(source, caption_list) if caption_list else []
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


def _status(file: Path | os.DirEntry[str]) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        # A link to nothing: the job that reads the file will say so.
        return None


def _size_and_time(status: os.stat_result | None) -> tuple[int | None, int | None]:
    if status is None or not stat.S_ISREG(status.st_mode):
        return None, None
    return status.st_size, status.st_mtime_ns


def _check_name(source: Path, key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise WorldtuneError(f"{source} has a file whose name is no UTF-8: {key!a}. Rename it.") from error


def read_caption(source: Path, clip: SourceClip) -> CaptionText | None:
    """Return the caption of a clip, from the list or from the file beside its video; None where there is neither."""
    if clip.caption is not None:
        return _caption_text(clip.caption)
    if clip.caption_key is None:
        return None
    path = given_path(source, clip.caption_key)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        return CaptionText(text=None, problem=f"caption unreadable: {error.strerror}", content_sha256="unreadable")
    try:
        if len(data) > MAX_CAPTION_BYTES:
            raise ValueError(f"it is larger than {MAX_CAPTION_BYTES} bytes")
        text = data.decode("utf-8-sig")
        if clip.caption_key.endswith(".json"):
            record = json.loads(text)
            if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
                raise ValueError('it has no text "caption"')
            text = record["caption"]
        return _caption_text(text)
    # RecursionError: JSON may be nested without end.
    except (ValueError, RecursionError) as error:
        problem = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        return CaptionText(
            text=None, problem=f"caption unreadable: {problem}", content_sha256=hashlib.sha256(data).hexdigest()
        )


def _caption_text(text: str) -> CaptionText:
    # Files are read with their line ends as \n: the hash must be of what readers of the dataset's own file get.
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    try:
        return CaptionText(text=text, content_sha256=hashlib.sha256(text.encode()).hexdigest())
    except UnicodeEncodeError:
        # JSON can spell half a character.
        raw = text.encode("utf-8", errors="surrogatepass")
        return CaptionText(
            text=None, problem="caption unreadable: it is no Unicode", content_sha256=hashlib.sha256(raw).hexdigest()
        )


def _read_list(source: Path, path: Path) -> list[SourceClip]:
    clips: dict[tuple[str, float | None, float | None], str] = {}
    found = []
    what = "the dataset's list of captions"
    for place, record in read_records(path, LIST_COLUMNS, what=what, others_are_errors=True):
        where = f"{path}, {place}"
        video, caption = record.get("video"), record.get("caption")
        if not isinstance(video, str) or not video.strip():
            raise WorldtuneError(f"{where}: video is {shown(video)}; expected a path below {source}.")
        if caption is not None and not isinstance(caption, str):
            raise WorldtuneError(f"{where}: caption is {shown(caption)}; expected a text.")
        key = posixpath.normpath(video.strip())
        if posixpath.isabs(key) or key.split("/")[0] == ".." or not key.isprintable():
            raise WorldtuneError(f"{where}: video {shown(video)} is no path below {source}.")
        start_s, end_s = _seconds(record.get("start_s"), where), _seconds(record.get("end_s"), where)
        if (start_s is None) != (end_s is None) or (start_s is not None and end_s is not None and end_s <= start_s):
            raise WorldtuneError(
                f"{where}: start_s {start_s} and end_s {end_s}; expected both, the end after the start."
            )
        if (key, start_s, end_s) in clips:
            raise WorldtuneError(f"{where}: the same clip as in {clips[key, start_s, end_s]}. Remove one.")
        clips[key, start_s, end_s] = place
        found.append(SourceClip(key=key, start_s=start_s, end_s=end_s, caption=caption or ""))
    return found


def _seconds(value: object, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        seconds = float(value)
    # OverflowError: JSON knows whole numbers of any size.
    except (ValueError, OverflowError) as error:
        raise WorldtuneError(f"{where}: {shown(value)} is no time in seconds.") from error
    if not math.isfinite(seconds) or seconds < 0:
        raise WorldtuneError(f"{where}: {shown(value)} is no time in seconds.")
    return seconds
