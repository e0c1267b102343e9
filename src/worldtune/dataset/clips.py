"""The table of a dataset's clips: how a clip is named, where its files lie, and the reader that training uses.

A dataset is a folder `datasets/<name>/` whose file stems are clip ids:

    dataset.json  clips.parquet        written by validation, only when the dataset is fit
    videos/<clip_id>.mp4               metas/<clip_id>.txt and .json      t5_xxl/<clip_id>.pickle
    edge/<clip_id>.mkv                 depth/<clip_id>.mp4                seg/<clip_id>.pickle ...
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest, read_json
from worldtune.common.words import shown
from worldtune.formats.controls import CONTROLS, FILE_CONTROLS

CLIP_ID_LENGTH = 16
DATASET_FORMAT = 1
SUMMARY = "validation/summary.txt"
"""One line on what can be used, which the workflow shows on the terminal; below the dataset's folder."""

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"})
"""Suffixes of what is taken for a source video."""
CONTROL_SUFFIXES: dict[str, str] = {kind: schema.suffix or "" for kind, schema in FILE_CONTROLS.items()}
"""Kinds of control that have a file for each clip, and the file's suffix."""
LOSSLESS_SUFFIXES: dict[str, str] = {"depth": ".mkv"}
"""Kinds of control that may have a second file for each clip, without loss, and that file's suffix."""
COMPUTED_CONTROLS = frozenset(kind for kind, schema in FILE_CONTROLS.items() if schema.origin == "computed")
"""Controls of CONTROL_SUFFIXES that are made from the video; the others are given."""
COMPUTED_IN_TRAINING = frozenset(CONTROLS.keys() - FILE_CONTROLS.keys())
"""Kinds of control that have no files, since each sample computes them from its frames."""

Split = Literal["train", "held_out"]
TextStore = Literal["pickle", "safetensors"]
TEXT_SUFFIXES: dict[TextStore, str] = {"pickle": ".pickle", "safetensors": ".safetensors"}


def clip_id(key: str, start_s: float | None = None, end_s: float | None = None) -> str:
    """Return the name of a clip: 16 hexadecimal digits that depend on its source's key and its time range only."""
    start = None if start_s is None else float(start_s)
    end = None if end_s is None else float(end_s)
    return digest({"key": key, "start_s": start, "end_s": end}, CLIP_ID_LENGTH)


def clip_name(key: str, start_s: float | None, end_s: float | None) -> str:
    """Return a clip's name for people: its source's key, and the seconds where it is a part of that."""
    return key if start_s is None or end_s is None else f"{key} {start_s:g} to {end_s:g} s"


def shard_of(key: str, num_shards: int) -> str:
    """Return the shard of a source ("0003"); all clips of one source are in the same shard."""
    return shard_name(int(digest(key), 16) % num_shards)


def view_of(key: str, views: Iterable[str]) -> str | None:
    """Return the view folder that a key lies in; None where it lies in none of `views`."""
    folder, slash, _ = key.partition("/")
    return folder if slash and folder in set(views) else None


def scene_key(key: str, views: Iterable[str]) -> str:
    """Return a key without its view folder, which is the same for all views of a scene.

    A key outside of the view folders stays as it is.
    """
    return key if view_of(key, views) is None else key.partition("/")[2]


def shard_name(number: int) -> str:
    """Return the name of a shard."""
    return f"{number:04d}"


def shard_names(num_shards: int) -> list[str]:
    """Return the names of all shards of a dataset."""
    return [shard_name(number) for number in range(num_shards)]


def video_path(root: Path, clip: str) -> Path:
    """Return where a clip's video lies."""
    return root / "videos" / f"{clip}.mp4"


def caption_path(root: Path, clip: str) -> Path:
    """Return where a clip's caption lies."""
    return root / "metas" / f"{clip}.txt"


def t5_path(root: Path, clip: str, store: TextStore = "pickle") -> Path:
    """Return where the embedding of a clip's text lies in a dataset of this `text_store`."""
    return root / "t5_xxl" / f"{clip}{TEXT_SUFFIXES[store]}"


def control_path(root: Path, clip: str, kind: str) -> Path:
    """Return where a clip's control of one kind lies.

    Raises:
        WorldtuneError: that kind has no files.
    """
    if kind not in CONTROL_SUFFIXES:
        raise WorldtuneError(f"there are no files of the control {kind!r}; expected one of {sorted(CONTROL_SUFFIXES)}.")
    return root / kind / f"{clip}{CONTROL_SUFFIXES[kind]}"


def lossless_path(root: Path, clip: str, kind: str) -> Path:
    """Return where the lossless file beside a clip's control lies; only a kind of LOSSLESS_SUFFIXES has one."""
    return root / kind / f"{clip}{LOSSLESS_SUFFIXES[kind]}"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A row of clips.parquet."""

    clip_id: str
    source_key: str
    """Path below the source folder, or URL."""
    start_s: float | None
    """Start of the clip in its source; None where the clip is the whole source."""
    end_s: float | None
    """End of the clip in its source."""
    split: Split | None
    """None for a clip that cannot be used."""
    status: Literal["ok", "unusable"]
    reason: str
    """Why the clip cannot be used; empty where it can."""
    num_frames: int | None
    width: int | None
    height: int | None
    fps: float | None
    video_sha256: str | None
    caption_sha256: str | None
    num_tokens: int | None
    """Tokens of the caption's embedding."""
    t5_sha256: str | None
    control_sha256: Mapping[str, str | None] = field(default_factory=dict)
    """By kind of control."""
    view: str | None = None
    """The camera, in a dataset of several views."""
    scene: str | None = None
    """Clip id of the main view at the same place and time, in a dataset of several views."""

    def video_path(self, root: Path) -> Path:
        """Return where the video lies below the dataset's folder."""
        return video_path(root, self.clip_id)

    def caption_path(self, root: Path) -> Path:
        """Return where the caption lies below the dataset's folder."""
        return caption_path(root, self.clip_id)

    def caption(self, root: Path) -> str:
        """Return the caption; empty where the clip has none, as with given embeddings."""
        path = self.caption_path(root)
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""

    def t5_path(self, root: Path) -> Path:
        """Return where the text's embedding lies below the dataset's folder, in whichever format."""
        other = t5_path(root, self.clip_id, "safetensors")
        return other if other.is_file() else t5_path(root, self.clip_id)

    def control_path(self, root: Path, kind: str) -> Path:
        """Return where the control of one kind lies below the dataset's folder."""
        return control_path(root, self.clip_id, kind)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A validated dataset."""

    root: Path
    name: str
    digest: str
    """Digest of the usable rows of the clip table."""
    controls: tuple[str, ...]
    """Kinds of control that every clip has a file of."""
    text_encoder: str
    text_channels: int
    """Channels of the embeddings."""
    text_max_tokens: int
    """Largest number of tokens of an embedding."""
    clips: tuple[Clip, ...]
    """Usable clips, sorted by id."""
    unusable: tuple[Clip, ...]
    """Clips that cannot be used, with the reason in each."""
    views: tuple[str, ...] = ()
    """Cameras of each scene, the main one first; empty for clips of one view."""

    def split(self, name: Split) -> tuple[Clip, ...]:
        """Return the usable clips of one split, sorted by id; of several views the main one's."""
        main = self.views[0] if self.views else None
        return tuple(clip for clip in self.clips if clip.split == name and clip.view == main)

    @functools.cached_property
    def scenes(self) -> dict[str, dict[str, Clip]]:
        """The clips of each usable scene by its main view's clip id, then by view; empty for clips of one view."""
        scenes: dict[str, dict[str, Clip]] = {}
        for clip in self.clips:
            if clip.scene is not None and clip.view is not None:
                scenes.setdefault(clip.scene, {})[clip.view] = clip
        return scenes


COLUMNS: dict[str, pa.DataType] = {
    "clip_id": pa.string(),
    "source_key": pa.string(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "split": pa.string(),
    "status": pa.string(),
    "reason": pa.string(),
    "num_frames": pa.int64(),
    "width": pa.int64(),
    "height": pa.int64(),
    "fps": pa.float64(),
    "video_sha256": pa.string(),
    "caption_sha256": pa.string(),
    "num_tokens": pa.int64(),
    "t5_sha256": pa.string(),
}
"""Columns of clips.parquet; one `<kind>_sha256` for each control follows, then VIEW_COLUMNS where there are views."""
VIEW_COLUMNS: dict[str, pa.DataType] = {"view": pa.string(), "scene": pa.string()}


def clip_columns(controls: tuple[str, ...], *, has_views: bool = False) -> dict[str, pa.DataType]:
    """Return the columns of clips.parquet for a dataset with these controls."""
    return {**COLUMNS, **{f"{kind}_sha256": pa.string() for kind in controls}, **(VIEW_COLUMNS if has_views else {})}


def rows_digest(rows: list[dict[str, Any]]) -> str:
    """Return the digest of the clips that can be used: the identity of a training run depends on nothing else."""
    return digest([row for row in rows if row["status"] == "ok"])


def load_dataset(root: Path) -> Dataset:
    """Read a validated dataset: `dataset.json` and `clips.parquet` below `root`.

    Raises:
        WorldtuneError: a file is missing, damaged, of another format, or the two do not belong together.
    """
    root = Path(root)
    summary = read_json(root / "dataset.json")
    table_path = root / "clips.parquet"
    if not isinstance(summary, dict) or summary.get("format") != DATASET_FORMAT:
        raise WorldtuneError(f"{root / 'dataset.json'} is no dataset of format {DATASET_FORMAT}. Validate it again.")
    try:
        controls = tuple(str(kind) for kind in summary["controls"])
        text = summary["text"]
        views = tuple(str(view) for view in summary.get("views", ()))
        rows = read_rows(table_path, clip_columns(controls, has_views=bool(views)))
        if rows_digest(rows) != summary["digest"]:
            raise WorldtuneError(
                f"{table_path} does not belong to {root / 'dataset.json'}. Validate the dataset again."
            )
        clips = tuple(_clip(row, controls) for row in rows)
        return Dataset(
            root=root,
            name=str(summary["name"]),
            digest=str(summary["digest"]),
            controls=controls,
            text_encoder=str(text["encoder"]),
            text_channels=int(text["channels"]),
            text_max_tokens=int(text["max_tokens"]),
            clips=tuple(clip for clip in clips if clip.status == "ok"),
            unusable=tuple(clip for clip in clips if clip.status != "ok"),
            views=views,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorldtuneError(f"{root / 'dataset.json'}: {error!r}. Validate the dataset again.") from error


def read_rows(path: Path, columns: Mapping[str, pa.DataType]) -> list[dict[str, Any]]:
    """Return the rows of a parquet file that has exactly these columns.

    Raises:
        WorldtuneError: the file is missing, no parquet file, or has other columns.
    """
    expected = pa.schema(list(columns.items()))
    try:
        table = pq.read_table(path)
        # Names and texts are decoded only here; they may be no UTF-8, which is a ValueError.
        found = ", ".join(table.schema.names)
        rows = list(table.to_pylist()) if table.schema.equals(expected) else None
    except FileNotFoundError as error:
        raise WorldtuneError(f"{path} does not exist. Run the rule that makes it.") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise WorldtuneError(f"{path} cannot be read: {error}. Run the rule that makes it.") from error
    if rows is None:
        raise WorldtuneError(
            f"{path} has the columns {shown(found)}; expected {', '.join(expected.names)} with the types of this "
            "version. Run the rule that makes it again."
        )
    return rows


def _clip(row: dict[str, Any], controls: tuple[str, ...]) -> Clip:
    facts = {name: row[name] for name in COLUMNS}
    # A clip id names files: one that is no clip id could name any file.
    if len(facts["clip_id"]) != CLIP_ID_LENGTH or not set(facts["clip_id"]) <= set("0123456789abcdef"):
        raise ValueError(f"{facts['clip_id']!r} is no clip id")
    hashes = {kind: row[f"{kind}_sha256"] for kind in controls}
    return Clip(**facts, control_sha256=hashes, view=row.get("view"), scene=row.get("scene"))
