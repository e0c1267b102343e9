"""Stage validate: the shards' manifests become one table of clips, and a verdict whether it is fit to train on.

`dataset.json` and `clips.parquet` are written only if it is, and have equal bytes for equal content; `dataset.json`, on
which training depends, for equal usable clips. The page and the table for people, validation/index.html and
validation/clips.csv, are written in any case, as is the one line of validation/summary.txt.
"""

import csv
import html
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, digest, write_json, write_text
from worldtune.common.words import count_of
from worldtune.dataset.captions import COLUMNS as CAPTION_COLUMNS
from worldtune.dataset.captions import STAGE as CAPTION_STAGE
from worldtune.dataset.clips import (
    DATASET_FORMAT,
    SUMMARY,
    caption_path,
    clip_columns,
    clip_id,
    control_path,
    rows_digest,
    scene_key,
    shard_names,
    t5_path,
    video_path,
    view_of,
)
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.controls import COLUMNS as CONTROL_COLUMNS
from worldtune.dataset.controls import control_stage
from worldtune.dataset.download import COLUMNS as HDVILA_COLUMNS
from worldtune.dataset.download import STAGE as FETCH_STAGE
from worldtune.dataset.fetched import COLUMNS as REPOSITORY_COLUMNS
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.ingest import STAGE as INGEST_STAGE
from worldtune.dataset.manifest import Columns, manifest_path, read_manifest, write_manifest
from worldtune.dataset.spans import COLUMNS as CUT_COLUMNS
from worldtune.dataset.spans import STAGE as CUT_STAGE
from worldtune.dataset.t5 import COLUMNS as T5_COLUMNS
from worldtune.dataset.t5 import STAGE as T5_STAGE

VERSION = 3

FETCH_COLUMNS: dict[str, Columns] = {"hdvila": HDVILA_COLUMNS, "huggingface": REPOSITORY_COLUMNS}
"""Columns of stage fetch_videos, by the kinds of dataset that have it."""
SPLIT_DIGITS = 16
REASON_SEPARATOR = " | "
STYLE = """<style>
body { font-family: sans-serif; margin: 2em }
table { border-collapse: collapse }
td, th { border: 1px solid #bbb; padding: 0.2em 0.6em; text-align: left }
</style>
"""
SHOWN_REASONS = 5
SHOWN_CLIPS = 500
"""Clips in each table of the page; all are in clips.csv."""

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def validate(name: str, config: DatasetConfig, *, datasets: Path = Path("datasets")) -> Path:
    """Gather the manifests of a dataset and write its clip table, if it is fit to train on.

    Args:
        name: the dataset's name.
        config: the dataset's configuration.
        datasets: folder of all datasets.

    Returns:
        The path of dataset.json.

    Raises:
        WorldtuneError: a manifest is missing, or the dataset is not fit; the message counts the reasons.
    """
    root = datasets / name
    tables = {stage: _gather(root, stage, columns, config) for stage, columns in _stages(config).items()}
    if config.cut is not None and FETCH_STAGE in tables:
        # A video that arrived is there as its parts.
        tables[FETCH_STAGE] = {key: row for key, row in tables[FETCH_STAGE].items() if row["status"] != "ok"}
    channels = _channels(name, tables[T5_STAGE].values())
    rows = [_clip_row(root, identifier, tables, config) for identifier in sorted(set().union(*tables.values()))]
    if config.views:
        _join_views(rows, config)
    _draw_splits(rows, config.held_out_fraction)
    remarks = _remarks(rows, tables)
    page = write_pages(root, name, config, rows, remarks)
    summary_line = _summary_line(name, rows, remarks)
    write_text(root / SUMMARY, summary_line + "\n")
    logger.info("%s; all clips: %s", summary_line, page)
    main_view = next(iter(config.views), None)
    counted = [row for row in rows if row.get("view") == main_view]
    usable = sum(row["status"] == "ok" for row in counted)
    if usable < config.min_clips:
        # A table of another day would let training start.
        (root / "dataset.json").unlink(missing_ok=True)
        raise WorldtuneError(
            f"dataset {name} is not fit to train on: {usable} of {len(counted)} clips can be used, at least "
            f"{config.min_clips} are needed (min_clips).\n{_count_reasons(rows)}\nAll clips: {page}"
        )
    columns = clip_columns(config.controls, has_views=bool(config.views))
    write_manifest(root / "clips.parquet", rows, columns)
    splits = Counter(row["split"] for row in counted if row["status"] == "ok")
    # Nothing of the unusable clips: training stands when only they change. They are in the table, the page and the log.
    summary = {
        "format": DATASET_FORMAT,
        "name": name,
        "digest": rows_digest(rows),
        "num_clips": usable,
        "controls": list(config.controls),
        "text": {"encoder": config.text_encoder, "channels": channels, "max_tokens": config.text_max_tokens},
        "splits": {"train": splits["train"], "held_out": splits["held_out"]},
    }
    if config.views:
        summary["views"] = list(config.views)
    write_json(root / "dataset.json", summary)
    return root / "dataset.json"


def _stages(config: DatasetConfig) -> dict[str, Columns]:
    return {
        INGEST_STAGE: INGEST_COLUMNS,
        CAPTION_STAGE: CAPTION_COLUMNS,
        T5_STAGE: T5_COLUMNS,
        **{control_stage(kind): CONTROL_COLUMNS for kind in config.controls},
        **({FETCH_STAGE: FETCH_COLUMNS[config.kind]} if config.kind in FETCH_COLUMNS else {}),
        **({CUT_STAGE: CUT_COLUMNS} if config.cut is not None else {}),
    }


def _gather(root: Path, stage: str, columns: Columns, config: DatasetConfig) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for shard in shard_names(config.num_shards):
        for row in read_manifest(manifest_path(root, stage, shard), columns):
            rows[row["clip_id"]] = row
    return rows


def _channels(name: str, rows: Iterable[Row]) -> int:
    """Return the width of the text embeddings, 0 where there is none."""
    widths = {row["channels"] for row in rows if row["status"] == "ok"}
    if len(widths) > 1:
        raise WorldtuneError(f"dataset {name} has text embeddings of the widths {sorted(widths)}. Run stage t5 again.")
    return int(widths.pop()) if widths else 0


def _clip_row(root: Path, identifier: str, tables: Mapping[str, Mapping[str, Row]], config: DatasetConfig) -> Row:
    """Return the clip's row of clips.parquet, without its split."""
    found = {stage: table.get(identifier) for stage, table in tables.items()}
    first = next(row for row in found.values() if row is not None)
    video, caption, text = (found[stage] or {} for stage in (INGEST_STAGE, CAPTION_STAGE, T5_STAGE))
    controls = {kind: found[control_stage(kind)] or {} for kind in config.controls}
    fetched, cut = (found.get(stage) or {} for stage in (FETCH_STAGE, CUT_STAGE))
    # What the other stages say of a video that never came follows from that.
    reasons = []
    if fetched.get("reason"):
        reasons = [f"{fetched['reason']}; `make retry DATASET={root.name}` asks for it again"]
    elif cut.get("reason"):
        reasons = [cut["reason"]]
    reasons = reasons or _reasons(root, identifier, video, caption, text, controls, config)
    return {
        "clip_id": identifier,
        "source_key": first["source_key"],
        "start_s": first["start_s"],
        "end_s": first["end_s"],
        "split": None,
        "status": "unusable" if reasons else "ok",
        "reason": REASON_SEPARATOR.join(reasons),
        "num_frames": video.get("num_frames"),
        "width": video.get("width"),
        "height": video.get("height"),
        "fps": video.get("fps"),
        "video_sha256": video.get("video_sha256"),
        "caption_sha256": caption.get("caption_sha256"),
        "num_tokens": text.get("num_tokens"),
        "t5_sha256": text.get("t5_sha256"),
        **{f"{kind}_sha256": row.get("control_sha256") for kind, row in controls.items()},
    }


def _reasons(
    root: Path,
    identifier: str,
    video: Row,
    caption: Row,
    text: Row,
    controls: Mapping[str, Row],
    config: DatasetConfig,
) -> list[str]:
    """Return everything that speaks against a clip; the words before a colon are what reasons are counted by."""
    reasons = [row["reason"] for row in (video, caption, text, *controls.values()) if row.get("status") == "unusable"]
    if reasons:
        return reasons
    if not video:
        return ["no video: no stage has read one"]
    if not caption:
        return ["no caption: no stage has read one"]
    if text.get("caption_sha256") != caption["caption_sha256"]:
        reasons.append("text embedding out of date: it is not of this caption; run stage t5 again")
    elif not 1 <= text["num_tokens"] <= config.text_max_tokens:
        reasons.append(f"text embedding too long: {text['num_tokens']} tokens; at most {config.text_max_tokens}")
    if video["num_frames"] < config.min_frames:
        reasons.append(f"too short: {video['num_frames']} frames; at least {config.min_frames} are needed")
    for kind, row in controls.items():
        if row.get("video_sha256") != video["video_sha256"] or row["num_frames"] != video["num_frames"]:
            reasons.append(f"{kind} out of date: it is not of this video; run stage controls again")
    paths = [video_path(root, identifier), caption_path(root, identifier), t5_path(root, identifier)]
    paths += [control_path(root, identifier, kind) for kind in controls]
    gone = [path.relative_to(root).as_posix() for path in paths if not path.is_file()]
    if gone:
        reasons.append(f"file gone: {', '.join(gone)}; force the stages of the clip's shard")
    return reasons


def _join_views(rows: Iterable[Row], config: DatasetConfig) -> None:
    """Set view and scene of each row; a scene is used if each of its views is there, usable and like the main one."""
    scenes: dict[str, dict[str, Row]] = defaultdict(dict)
    main = next(iter(config.views))
    for row in rows:
        row["view"], row["scene"] = view_of(row["source_key"], config.views), None
        # A clip outside of the views' folders carries that reason from its first stage on.
        if row["view"] is None:
            continue
        name = scene_key(row["source_key"], config.views)
        row["scene"] = clip_id(f"{main}/{name}", row["start_s"], row["end_s"])
        scenes[row["scene"]][row["view"]] = row
    for views in scenes.values():
        reason = _view_problem(views, config)
        for row in views.values():
            if reason:
                _refuse(row, reason)


def _view_problem(views: Mapping[str, Row], config: DatasetConfig) -> str:
    """Say what keeps the views of a scene from being used together; empty where nothing does."""
    missing = [view for view in config.views if view not in views]
    if missing:
        return f"view missing: {', '.join(missing)}"
    unusable = [view for view, row in views.items() if row["status"] != "ok"]
    if unusable:
        return f"view unusable: {', '.join(sorted(unusable))}"
    facts = {(row["num_frames"], row["width"], row["height"], row["fps"]) for row in views.values()}
    if len(facts) > 1:
        listed = "; ".join(
            f"{frames} frames of {width}x{height} at {fps:g}" for frames, width, height, fps in sorted(facts)
        )
        return f"views differ: {listed}"
    return ""


def _refuse(row: Row, reason: str) -> None:
    row["reason"] = REASON_SEPARATOR.join(filter(None, (row["reason"], reason)))
    row["status"] = "unusable"


def held_out_draw(identifier: str) -> float:
    """Return a number from 0 to 1 that a clip's id decides; clips below the held-out fraction are held out."""
    return int(digest({"held_out": identifier}, SPLIT_DIGITS), 16) / 16**SPLIT_DIGITS


def _draw_splits(rows: Iterable[Row], fraction: float) -> None:
    """Set the split of each usable clip; both splits get at least one if there are two clips. Views stay together."""
    units: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            units[row.get("scene") or row["clip_id"]].append(row)
    drawn = sorted(units, key=held_out_draw)
    splits = {unit: "held_out" if held_out_draw(unit) < fraction else "train" for unit in drawn}
    if drawn:
        splits[drawn[0]] = "held_out"
    if len(drawn) > 1:
        splits[drawn[-1]] = "train"
    for unit, members in units.items():
        for row in members:
            row["split"] = splits[unit]


def _remarks(rows: Iterable[Row], tables: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Return what a person should know and what does not make a dataset unfit."""
    remarks = []
    truncated = [row["source_key"] for row in tables[T5_STAGE].values() if row["truncated"]]
    if truncated:
        are = (
            "is longer than text_max_tokens and was"
            if len(truncated) == 1
            else "are longer than text_max_tokens and were"
        )
        remarks.append(f"{count_of(len(truncated), 'caption')} {are} cut: {_some(truncated)}")
    by_content = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            by_content[row["video_sha256"]].append(row)
    equal = [group for group in by_content.values() if len(group) > 1]
    if equal:
        keys = [_some([row["source_key"] for row in group], " = ") for group in equal]
        are = "is" if len(equal) == 1 else "are"
        remarks.append(f"{count_of(len(equal), 'video')} {are} there more than once: {_some(keys)}")
        leaks = sum(len({row["split"] for row in group}) > 1 for group in equal)
        if leaks:
            remarks.append(f"{leaks} of them are both trained on and held out; remove the copies")
    return remarks


def _summary_line(name: str, rows: Sequence[Row], remarks: Sequence[str]) -> str:
    """Say how many clips can be used, what keeps the others from it and what a person should know."""
    left_out = [f"{row['source_key']}: {row['reason']}" for row in rows if row["status"] != "ok"]
    usable = f"{len(rows) - len(left_out)} of {count_of(len(rows), 'clip')} usable"
    why = f" ({_some(left_out, '; ')})" if left_out else ""
    return "; ".join([f"{name}: {usable}{why}", *remarks])


def _some(names: list[str], separator: str = ", ") -> str:
    shown = separator.join(sorted(names)[:SHOWN_REASONS])
    return shown if len(names) <= SHOWN_REASONS else f"{shown}{separator}..."


def _reason_counts(rows: Iterable[Row]) -> list[tuple[str, int, str]]:
    """Return (what is counted, number of clips, one clip's own words), the most frequent first."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for row in rows:
        for reason in row["reason"].split(REASON_SEPARATOR) if row["status"] != "ok" else []:
            label = reason.partition(":")[0]
            counts[label] += 1
            examples.setdefault(label, f"{row['source_key']}: {reason}")
    return sorted(
        ((label, count, examples[label]) for label, count in counts.items()), key=lambda item: (-item[1], item)
    )


def _count_reasons(rows: Iterable[Row]) -> str:
    counts = _reason_counts(rows)
    lines = [
        f"  {count_of(count, 'clip')}: {label} (for example {example})"
        for label, count, example in counts[:SHOWN_REASONS]
    ]
    if len(counts) > SHOWN_REASONS:
        lines.append(f"  and {len(counts) - SHOWN_REASONS} other reasons")
    return "\n".join(lines) or "  There is no clip at all: put videos into the source folder."


def write_pages(root: Path, name: str, config: DatasetConfig, rows: list[Row], remarks: list[str]) -> Path:
    """Write validation/index.html and validation/clips.csv for people, and return the path of the page."""
    columns = list(clip_columns(config.controls, has_views=bool(config.views)))
    with atomic_path(root / "validation" / "clips.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    usable = [row for row in rows if row["status"] == "ok"]
    unusable = [row for row in rows if row["status"] != "ok"]
    splits = Counter(row["split"] for row in usable)
    sizes = Counter((row["width"], row["height"], round(row["fps"], 3)) for row in usable)
    parts = [
        f"<h1>Dataset {html.escape(name)}</h1>",
        f"<p>{count_of(len(usable), 'clip')} can be used ({splits['train']} to train on, {splits['held_out']} held "
        f"out), {len(unusable)} cannot. At least {config.min_clips} are needed. "
        'All clips: <a href="clips.csv">clips.csv</a>.</p>',
        *(f"<p>{html.escape(remark)}.</p>" for remark in remarks),
        "<h2>Why clips cannot be used</h2>",
        _table(("reason", "clips", "example"), _reason_counts(rows)),
        "<h2>Sizes and rates</h2>",
        _table(
            ("width", "height", "frames a second", "clips"),
            [(*size, count) for size, count in sorted(sizes.items())],
        ),
        "<h2>Clips that cannot be used</h2>",
        _clip_table(unusable, ("source_key", "start_s", "end_s", "reason", "clip_id")),
        "<h2>Clips that can be used</h2>",
        _clip_table(usable, ("source_key", "start_s", "end_s", "split", "num_frames", "num_tokens", "clip_id")),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>{STYLE}'
    page = root / "validation" / "index.html"
    write_text(page, head + "\n".join(parts) + "</html>\n")
    return page


def _clip_table(rows: list[Row], columns: tuple[str, ...]) -> str:
    table = _table(columns, [tuple(row[column] for column in columns) for row in rows[:SHOWN_CLIPS]])
    left_out = len(rows) - SHOWN_CLIPS
    return table + (f"<p>and {left_out} more in clips.csv.</p>" if left_out > 0 else "")


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    for row in rows:
        lines.append("".join(f"<td>{html.escape('' if cell is None else str(cell))}</td>" for cell in row))
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
