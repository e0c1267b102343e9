"""What the overview of a dataset shows: its figures and tables; notebooks/dataset_overview.ipynb calls them.

A dataset that failed its validation has an overview too, so that its owner can see why: validation/clips.csv is written
in any case.
"""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.common.words import count_of
from worldtune.dataset.clips import CONTROL_SUFFIXES, caption_path, video_path
from worldtune.dataset.config import DatasetConfig, load_datasets
from worldtune.dataset.reasons import REASON_SEPARATOR
from worldtune.evaluate.control_pictures import ClipPicture, clip_pictures, legend_html
from worldtune.evaluate.figures import BLUE, GREY, ORANGE, RED, STYLE, data_url, note
from worldtune.recipe.project import config_path

VERSION = 2
"""Raised when a change of the overview should make the existing ones anew."""

SPLITS = {"train": ("train", BLUE), "held_out": ("held out", ORANGE)}
"""Title and colour of each split."""
FEWEST_FOR_HISTOGRAM = 10
"""Usable clips of which the distribution of lengths is drawn; fewer are told in a sentence."""
SHOWN_COPIES = 12
THUMBNAIL_WIDTH = 420
"""Pixels; a page of 720p frames would be too large to send around."""
JPEG_QUALITY = 88


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """Everything that is known of one dataset."""

    root: Path
    """datasets/<name>."""
    name: str
    summary: dict[str, Any]
    """dataset.json; empty where the dataset is not fit to train on."""
    clips: pd.DataFrame
    """One row a clip, as in clips.parquet."""
    controls: tuple[str, ...]
    """Kinds of control that each clip must have."""
    config: DatasetConfig | None
    """The dataset as config/config.yaml has it now; None where it is not there."""

    @property
    def usable(self) -> pd.DataFrame:
        """Return the clips that can be used."""
        return self.clips[self.clips["status"] == "ok"]

    @property
    def left_out(self) -> pd.DataFrame:
        """Return the clips that cannot be used."""
        return self.clips[self.clips["status"] != "ok"]


def load_record(root: Path, config_root: Path | None = None) -> DatasetRecord:
    """Read what validation left of a dataset.

    Args:
        root: datasets/<name>; with dataset.json and clips.parquet where it is fit, else with validation/clips.csv.
        config_root: root of the repository; None leaves the dataset's configuration out.

    Raises:
        WorldtuneError: there is no table of clips, it cannot be read, or the configuration is wrong.
    """
    fit = (root / "dataset.json").is_file()
    path = root / "clips.parquet" if fit else root / "validation" / "clips.csv"
    try:
        clips = pd.read_parquet(path) if fit else pd.read_csv(path, dtype={"clip_id": str, "reason": str})
    except (OSError, ValueError) as error:
        raise WorldtuneError(f"{path} cannot be read ({error}). Validate the dataset again.") from error
    missing = sorted({"clip_id", "source_key", "status", "reason", "split", "num_frames", "fps"} - set(clips.columns))
    if missing:
        raise WorldtuneError(f"{path} lacks the columns {', '.join(missing)}. Validate the dataset again.")
    clips["reason"] = clips["reason"].fillna("")
    return DatasetRecord(
        root=root,
        name=root.name,
        summary=read_json(root / "dataset.json") if fit else {},
        clips=clips.assign(seconds=clips["num_frames"] / clips["fps"]),
        controls=tuple(kind for kind in CONTROL_SUFFIXES if f"{kind}_sha256" in clips),
        config=_config(root.name, config_root),
    )


def _config(name: str, config_root: Path | None) -> DatasetConfig | None:
    path = None if config_root is None else config_root / config_path()
    return load_datasets(path).get(name) if path and path.is_file() else None


def verdict(record: DatasetRecord) -> str:
    """Return the title and one sentence on whether the dataset is fit to train on, in Markdown."""
    usable = len(record.usable)
    counts = record.usable["split"].value_counts()
    if record.summary:
        text = (
            f"Fit to train on: {usable} of {count_of(len(record.clips), 'clip')} can be used, "
            f"{counts.get('train', 0)} to train on and {counts.get('held_out', 0)} held out."
        )
    else:
        needed = f" At least {record.config.min_clips} are needed (min_clips)." if record.config else ""
        text = (
            f"**Not fit to train on.** {usable} of {count_of(len(record.clips), 'clip')} can be used.{needed} "
            "What speaks against the others is below."
        )
    return f"# Dataset {record.name}\n\n{text}"


def summary_table(record: DatasetRecord) -> pd.DataFrame:
    """Return the dataset in a few lines."""
    usable, text = record.usable, record.summary.get("text", {})
    rows = {
        "usable clips": f"{len(usable)} of {len(record.clips)}",
        "sources": str(record.clips["source_key"].nunique()),
        "usable length": _duration(float(usable["seconds"].sum())) if len(usable) else "none",
        "controls": ", ".join(record.controls) or "none",
    }
    if text:
        rows["text encoder"] = f"{text['encoder']}, at most {text['max_tokens']} tokens"
        rows["digest"] = record.summary["digest"][:16]
    return pd.DataFrame({"": rows})


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def reason_table(clips: pd.DataFrame) -> pd.DataFrame:
    """Return why clips cannot be used, the most frequent reason first, with the words of one clip.

    A clip with several reasons counts for each of them. What stands before a colon is the reason; what follows is the
    clip's own.
    """
    rows = clips[clips["status"] != "ok"]
    single = rows.assign(words=rows["reason"].str.split(REASON_SEPARATOR, regex=False)).explode("words")
    single = single.assign(reason=single["words"].str.partition(":")[0]) if len(single) else single
    grouped = single.groupby("reason", sort=True)
    table = grouped.agg(clips=("clip_id", "size"), example=("source_key", "first"), in_its_words=("words", "first"))
    return table.sort_values("clips", ascending=False, kind="stable")


def plot_reasons(record: DatasetRecord, limit: int = 12) -> Figure:
    """Draw how many clips can be used, and how many each of the `limit` most frequent reasons takes away."""
    table = reason_table(record.clips).head(limit)
    labels = ["usable", *table.index]
    counts = [len(record.usable), *table["clips"]]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(11, 0.7 + 0.34 * len(labels)))
        bars = axes.barh(range(len(labels)), counts, color=[BLUE, *[RED] * len(table)], height=0.62)
        axes.bar_label(bars, padding=4, color="#3e4c59")
        axes.set_yticks(range(len(labels)), [_shorten(label) for label in labels])
        axes.invert_yaxis()
        axes.set_xlim(0, max(counts) * 1.08 + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="y")
        axes.set(title="Clips", xlabel="number of clips")
    return figure


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def lengths_sentence(record: DatasetRecord) -> str:
    """Return the lengths of a few usable clips and of their captions in words."""
    usable = record.usable
    tokens = usable["num_tokens"].dropna() if "num_tokens" in usable else pd.Series(dtype=float)
    parts = [
        f"{_span(usable['num_frames'], '.0f')} frames",
        f"{_span(usable['seconds'], '.2f')} seconds",
        *([f"captions of {_span(tokens, '.0f')} tokens, after the cut"] if len(tokens) else []),
    ]
    limits = (
        f" At least {record.config.min_frames} frames are needed (min_frames), and captions are cut to "
        f"{record.config.text_max_tokens} tokens (text_max_tokens)."
        if record.config
        else ""
    )
    return f"{count_of(len(usable), 'usable clip')}: {'; '.join(parts)}.{limits}"


def _span(values: pd.Series, style: str) -> str:
    low, high = format(values.min(), style), format(values.max(), style)
    return low if low == high else f"{low} to {high}"


def plot_lengths(record: DatasetRecord) -> Figure:
    """Draw how frames, seconds and caption tokens of the usable clips are distributed, by split."""
    panels = (
        ("num_frames", "Length in frames", "frames"),
        ("seconds", "Length in seconds", "seconds"),
        ("num_tokens", "Captions", "tokens, after the cut"),
    )
    limits = (
        {"num_frames": record.config.min_frames, "num_tokens": record.config.text_max_tokens} if record.config else {}
    )
    usable = record.usable
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, 3, figsize=(11, 2.7))
        for axes, (column, title, unit) in zip(grid, panels, strict=True):
            values = usable[column].dropna().astype(float) if column in usable else pd.Series(dtype=float)
            axes.set(title=title, xlabel=unit)
            if values.empty:
                axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", color=GREY)
                axes.set(xticks=[], yticks=[])
                continue
            edges = _edges(values, whole=column != "seconds")
            parts = [usable.loc[usable["split"] == split, column].dropna().astype(float) for split in SPLITS]
            axes.hist(
                parts,
                bins=list(edges),
                stacked=True,
                color=[colour for _, colour in SPLITS.values()],
                label=[label for label, _ in SPLITS.values()],
                edgecolor="white",
                linewidth=0.6,
            )
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if column != "seconds":
                axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
            limit = limits.get(column)
            # Where all clips lie far from the limit, a line there would squeeze them into one bar.
            if limit is not None and edges[0] * 0.5 <= limit <= edges[-1] * 1.5:
                axes.axvline(limit, color=GREY, linestyle="--", linewidth=1, label=f"limit {limit}")
        grid[0].set_ylabel("usable clips")
        handles, labels = grid[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles[: len(SPLITS)], labels[: len(SPLITS)], loc="outside upper right", ncols=len(SPLITS))
    return figure


def _edges(values: pd.Series, *, whole: bool, most: int = 24) -> np.ndarray:
    """Return the edges of a histogram's bars; around whole numbers where there are few."""
    low, high = float(values.min()), float(values.max())
    if whole:
        step = max(1, int(np.ceil((high - low + 1) / most)))
        return (
            np.arange(low - 0.5, high + step + 0.5, step)
            if high > low
            else np.array([low - 1.5, *(low + np.array([-0.5, 0.5, 1.5]))])
        )
    if high - low < 1e-6:
        return np.array([low * 0.8, low * 0.95, low * 1.05, low * 1.2])
    return np.linspace(low, high, most + 1)


def size_table(record: DatasetRecord) -> pd.DataFrame:
    """Return the usable clips by size and rate, each split in a column of its own."""
    usable = record.usable
    table = usable.assign(
        size=usable["width"].astype("Int64").astype(str) + "x" + usable["height"].astype("Int64").astype(str),
        fps=usable["fps"].round(3),
    )
    counted = table.pivot_table(index=["size", "fps"], columns="split", values="clip_id", aggfunc="count", fill_value=0)
    counted.columns.name = None
    counted = counted.reindex(columns=list(SPLITS), fill_value=0).rename(
        columns={key: SPLITS[key][0] for key in SPLITS}
    )
    lengths = table.groupby(["size", "fps"])
    return counted.assign(
        fewest_frames=lengths["num_frames"].min().astype(int),
        most_frames=lengths["num_frames"].max().astype(int),
        seconds=lengths["seconds"].sum().round(1),
    )


def split_table(record: DatasetRecord) -> pd.DataFrame:
    """Return for each split its clips, sources, length and tokens."""
    grouped = record.usable.groupby("split")
    table = pd.DataFrame(
        {
            "clips": grouped.size(),
            "share": [f"{share:.1%}" for share in grouped.size() / max(len(record.usable), 1)],
            "sources": grouped["source_key"].nunique(),
            "total length": [_duration(seconds) for seconds in grouped["seconds"].sum()],
            "mean tokens": grouped["num_tokens"].mean().round(1),
        }
    )
    return table.rename(index={key: label for key, (label, _) in SPLITS.items()})


def remarks(record: DatasetRecord) -> list[str]:
    """Return what a person should know of the usable clips: copies, leaks between the splits, cut captions."""
    usable, found = record.usable, []
    for column, what in (("video_sha256", "video"), ("caption_sha256", "caption")):
        known = usable.dropna(subset=[column]) if column in usable else usable.iloc[:0]
        groups = [group for _, group in known.groupby(column) if len(group) > 1]
        if not groups:
            continue
        are = "is" if len(groups) == 1 else "are"
        where = " (see the table of copies)" if what == "video" else ""
        found.append(f"{count_of(len(groups), what)} {are} there more than once{where}")
        leaks = sum(group["split"].nunique() > 1 for group in groups)
        if leaks and what == "video":
            found.append(
                f"{leaks} of them {'is' if leaks == 1 else 'are'} both trained on and held out, so the held-out loss "
                "flatters: remove the copies"
            )
    split_sources = usable.groupby("source_key")["split"].nunique()
    shared = sorted(split_sources[split_sources > 1].index)
    if shared:
        found.append(
            f"{count_of(len(shared), 'source video')} with clips in both splits, such as {shared[0]}: "
            "neighbouring clips look alike"
        )
    if record.config is not None and "num_tokens" in usable:
        full = int((usable["num_tokens"] == record.config.text_max_tokens).sum())
        if full:
            found.append(
                f"{count_of(full, 'caption')} of the greatest length, {record.config.text_max_tokens} tokens: "
                "longer ones were cut to it"
            )
    return found


def copy_table(record: DatasetRecord) -> pd.DataFrame:
    """Return the usable clips whose video is there more than once, copies next to one another."""
    known = record.usable.dropna(subset=["video_sha256"]) if "video_sha256" in record.usable else record.usable.iloc[:0]
    copies = known[known.duplicated("video_sha256", keep=False)].sort_values(["video_sha256", "clip_id"])
    table = copies[["clip_id", "source_key", "start_s", "end_s", "split"]].head(SHOWN_COPIES)
    return table.assign(split=_split_titles(table)).dropna(axis="columns", how="all").reset_index(drop=True)


def caption_table(record: DatasetRecord, limit: int = 24) -> pd.DataFrame:
    """Return up to `limit` usable clips with their captions, evenly out of all."""
    chosen = _evenly(record.usable, limit)
    captions = [read_caption(record.root, clip_id) for clip_id in chosen["clip_id"]]
    table = chosen[["clip_id", "split", "source_key", "num_tokens"]].assign(
        split=_split_titles(chosen), num_tokens=chosen["num_tokens"].astype("Int64").astype(str), caption=captions
    )
    return table.reset_index(drop=True)


def left_out_table(record: DatasetRecord, limit: int = 40) -> pd.DataFrame:
    """Return up to `limit` clips that cannot be used, with all that speaks against each."""
    table = record.left_out[["clip_id", "source_key", "start_s", "end_s", "reason"]].head(limit)
    return table.dropna(axis="columns", how="all").reset_index(drop=True)


def _split_titles(table: pd.DataFrame) -> list[str]:
    return [SPLITS[split][0] if split in SPLITS else "" for split in table["split"]]


def _evenly(table: pd.DataFrame, limit: int) -> pd.DataFrame:
    if len(table) <= limit:
        return table
    return table.iloc[np.linspace(0, len(table) - 1, limit).round().astype(int)]


def read_caption(root: Path, clip_id: str) -> str:
    """Return a clip's caption; empty where its file is gone."""
    path = caption_path(root, clip_id)
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def clip_gallery(record: DatasetRecord, clips: pd.DataFrame, limit: int = 6) -> str:
    """Return HTML with the middle frame of clips and of their controls side by side, and their captions.

    Args:
        record: the dataset.
        clips: rows of its clips; `limit` of them are shown, evenly out of all. Those without a video are passed over.
        limit: most clips shown.
    """
    with_video = [path.is_file() for path in (video_path(record.root, clip_id) for clip_id in clips["clip_id"])]
    chosen = _evenly(clips[with_video], limit)
    if chosen.empty:
        return note("No video of these clips is in the dataset's folder.")
    return "\n".join(_clip_figure(record, row) for row in chosen.to_dict("records"))


def _clip_figure(record: DatasetRecord, row: dict[Any, Any]) -> str:
    clip_id = str(row["clip_id"])
    num_frames = None if pd.isna(row["num_frames"]) else int(row["num_frames"])
    cells = [_picture_cell(picture) for picture in clip_pictures(record.root, clip_id, record.controls, num_frames)]
    facts = [SPLITS[row["split"]][0] if row["split"] in SPLITS else "left out", str(row["source_key"])]
    words = [read_caption(record.root, clip_id), f"Left out: {row['reason']}" if row["reason"] else ""]
    return (
        f"<figure><figcaption><b>{html.escape(clip_id)}</b> <em>{html.escape(', '.join(facts))}</em><br>"
        f"{'<br>'.join(html.escape(text) for text in words if text)}</figcaption>"
        f"<div class='cells'>{''.join(cells)}</div></figure>"
    )


def _picture_cell(picture: ClipPicture) -> str:
    title = html.escape(picture.title)
    if picture.pixels is None:
        return f"<div class='cell'><span>{title}</span>{note(picture.problem)}</div>"
    content = io.BytesIO()
    picture.small(THUMBNAIL_WIDTH).save(content, "JPEG", quality=JPEG_QUALITY)
    image = f"<img src='{data_url(content.getvalue(), 'image/jpeg')}' alt='{title}'>"
    return f"<div class='cell'><span>{title}</span>{image}{legend_html(picture.legend)}</div>"


def notes(texts: Sequence[str]) -> str:
    """Return HTML of a list of remarks."""
    return "<ul>" + "".join(f"<li>{html.escape(text)}.</li>" for text in texts) + "</ul>" if texts else ""
