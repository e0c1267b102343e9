"""Stage validate: the shards' manifests become one table of clips, and a verdict whether it is fit to train on.

`dataset.json` and `clips.parquet` are written only if it is, and have equal bytes for equal content; `dataset.json`, on
which training depends, for equal usable clips. What is for people is written in any case, below validation/: the
tables clips.parquet and clips.csv, statistics.json and the one line of summary.txt. The page, index.html, is drawn from
what `examine` returns (evaluate/validation_page.py).
"""

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, digest, write_json, write_text
from worldtune.dataset.advice import force_command, retry_command
from worldtune.dataset.clips import (
    DATASET_FORMAT,
    SUMMARY,
    caption_path,
    clip_columns,
    clip_id,
    control_path,
    lossless_path,
    rows_digest,
    shard_names,
    t5_path,
    video_path,
)
from worldtune.dataset.config import DatasetConfig, source_folder
from worldtune.dataset.control_checks import misplacement
from worldtune.dataset.controls import LOSSLESS_COLUMN, control_stage
from worldtune.dataset.details import (
    clip_details,
    detail_columns,
    find_alike,
    mark_leaks,
    shares_of_empty_frames,
    statistics,
)
from worldtune.dataset.fetched import STAGE as FETCH_STAGE
from worldtune.dataset.ingest import STAGE as INGEST_STAGE
from worldtune.dataset.make_captions import caption_stage
from worldtune.dataset.manifest import Columns, manifest_path, read_manifest, write_manifest
from worldtune.dataset.origin import read_origin
from worldtune.dataset.reasons import REASON_SEPARATOR, may_pass, refuse
from worldtune.dataset.remarks import dataset_remarks, reasons_in_words, summary_line
from worldtune.dataset.spans import STAGE as CUT_STAGE
from worldtune.dataset.stages import dataset_stages
from worldtune.dataset.t5 import STAGE as T5_STAGE
from worldtune.dataset.unclaimed import unclaimed_files
from worldtune.dataset.verification import read_captions, verify_files
from worldtune.dataset.views import join_views
from worldtune.formats.controls import FILE_CONTROLS

VERSION = 6

SPLIT_DIGITS = 16
FILE_ADVICE = {"gone": "", "changed": "it is not what its stage made; delete it, then "}
"""What to do about a file before its stage runs again, by what verify_files says of it."""
PAGE = "validation/index.html"
logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What was found out about a dataset."""

    root: Path
    source: Path
    """Folder of the source videos."""
    name: str
    config: DatasetConfig
    rows: list[Row]
    """The rows of clips.parquet, sorted by clip id."""
    table: list[Row]
    """The same with the clips' details, as in validation/clips.parquet."""
    remarks: list[str]
    """What a person should know and what does not make a dataset unfit."""
    statistics: list[Row]
    channels: int
    """Width of the text embeddings, 0 where there is none."""
    caption_makers: list[str]
    """The models that made captions of usable clips."""


def examine(name: str, config: DatasetConfig, *, datasets: Path = Path("datasets"), threads: int = 1) -> Validation:
    """Gather the manifests of a dataset, check its files against them, and write what is for people.

    Args:
        name: the dataset's name.
        config: the dataset's configuration.
        datasets: folder of all datasets.
        threads: files that are hashed at once.

    Raises:
        WorldtuneError: a manifest is missing, or they contradict each other.
    """
    root = datasets / name
    tables = {stage: _gather(root, stage, columns, config) for stage, columns in dataset_stages(config).items()}
    if config.cut is not None and FETCH_STAGE in tables:
        # A video that arrived is there as its parts.
        tables[FETCH_STAGE] = {key: row for key, row in tables[FETCH_STAGE].items() if row["status"] != "ok"}
    channels = _channels(name, tables[T5_STAGE].values())
    rows = [_clip_row(root, identifier, tables, config) for identifier in sorted(set().union(*tables.values()))]
    captions = _check_files(root, rows, tables, config, threads)
    if config.views:
        join_views(rows, config)
    draw_splits(rows, config.held_out_fraction)
    details = {row["clip_id"]: _details(row, tables, captions, config) for row in rows}
    alike = find_alike(rows, details)
    leaks = mark_leaks(alike, details)
    columns = {**clip_columns(config.controls, has_views=bool(config.views)), **detail_columns(config.controls)}
    table = [row | details[row["clip_id"]] for row in rows]
    for row in table:
        row["remarks"] = REASON_SEPARATOR.join(row["remarks"])
    source = source_folder(name, config, datasets)
    unclaimed = unclaimed_files(source, config, (row["source_key"] for row in rows))
    if unclaimed:
        logger.warning("%s: given files that belong to no video: %s", name, ", ".join(unclaimed))
    found = Validation(
        root=root,
        source=source,
        name=name,
        config=config,
        rows=rows,
        table=table,
        remarks=[
            *dataset_remarks(table, alike, leaks, unclaimed),
            *shares_of_empty_frames(table, config.controls),
        ],
        statistics=statistics(table),
        channels=channels,
        caption_makers=_caption_makers(rows, tables[caption_stage(config)[0]]),
    )
    _write_tables(found, columns)
    return found


def conclude(found: Validation) -> Path:
    """Write the table of a dataset that is fit to train on, and return the path of dataset.json.

    Raises:
        WorldtuneError: it is not fit; the message counts the reasons.
    """
    root, name, config, rows = found.root, found.name, found.config, found.rows
    main_view = next(iter(config.views), None)
    counted = [row for row in rows if row.get("view") == main_view]
    usable = sum(row["status"] == "ok" for row in counted)
    if usable < config.min_clips:
        # A table of another day would let training start.
        (root / "dataset.json").unlink(missing_ok=True)
        raise WorldtuneError(
            f"dataset {name} is not fit to train on: {usable} of {len(counted)} clips can be used, at least "
            f"{config.min_clips} are needed (min_clips).\n{reasons_in_words(rows)}\nAll clips: {root / PAGE}"
        )
    write_manifest(root / "clips.parquet", rows, clip_columns(config.controls, has_views=bool(config.views)))
    splits = Counter(row["split"] for row in counted if row["status"] == "ok")
    # Nothing of the unusable clips: training stands when only they change. They are in the table, the page and the log.
    summary = {
        "format": DATASET_FORMAT,
        "name": name,
        "digest": rows_digest(rows),
        "num_clips": usable,
        "controls": list(config.controls),
        "text": {"encoder": config.text_encoder, "channels": found.channels, "max_tokens": config.text_max_tokens},
        "splits": {"train": splits["train"], "held_out": splits["held_out"]},
    }
    if config.views:
        summary["views"] = list(config.views)
    if origin := read_origin(found.source, config):
        summary["source"] = origin
    if found.caption_makers:
        summary["captions_made_by"] = found.caption_makers
    write_json(root / "dataset.json", summary)
    return root / "dataset.json"


def _caption_makers(rows: Iterable[Row], captions: Mapping[str, Row]) -> list[str]:
    """Return the models that made captions of usable clips."""
    usable = [captions[row["clip_id"]] for row in rows if row["status"] == "ok"]
    return sorted({row["made_by"] for row in usable if row.get("made_by")})


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
        raise WorldtuneError(
            f"dataset {name} has text embeddings of the widths {sorted(widths)}. Make them anew: "
            f"{force_command(name, T5_STAGE)}."
        )
    return int(widths.pop()) if widths else 0


def _clip_row(root: Path, identifier: str, tables: Mapping[str, Mapping[str, Row]], config: DatasetConfig) -> Row:
    """Return the clip's row of clips.parquet, without its split."""
    found = {stage: table.get(identifier) for stage, table in tables.items()}
    first = next(row for row in found.values() if row is not None)
    video, caption, text = (found[stage] or {} for stage in (INGEST_STAGE, caption_stage(config)[0], T5_STAGE))
    controls = {kind: found[control_stage(kind, config)] or {} for kind in config.controls}
    fetched, cut = (found.get(stage) or {} for stage in (FETCH_STAGE, CUT_STAGE))
    # What the other stages say of a video that never came follows from that.
    first_reason = fetched.get("reason") or cut.get("reason")
    reasons = [first_reason] if first_reason else _reasons(root.name, video, caption, text, controls, config)
    hint = f"; {retry_command(root.name)} tries again"
    reasons = [f"{reason}{hint}" if may_pass(reason, config.controls) else reason for reason in reasons]
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
    name: str,
    video: Row,
    caption: Row,
    text: Row,
    controls: Mapping[str, Row],
    config: DatasetConfig,
) -> list[str]:
    """Return everything that speaks against a clip; the words before a colon are what reasons are counted by."""
    # Given embeddings are what training reads; captions beside them are for people.
    told = (video, text) if config.text == "given" else (video, caption, text)
    reasons = [row["reason"] for row in (*told, *controls.values()) if row.get("status") == "unusable"]
    if reasons:
        return reasons
    if not video:
        return ["no video: no stage has read one"]
    if config.text == "given":
        if not text:
            return ["no text embedding: no stage has read one"]
    elif not caption:
        return ["no caption: no stage has read one"]
    elif text.get("caption_sha256") != caption["caption_sha256"]:
        reasons.append(
            f"text embedding out of date: it is not of this caption; {force_command(name, T5_STAGE)} makes it anew"
        )
    if not reasons and not 1 <= text["num_tokens"] <= config.text_max_tokens:
        reasons.append(f"text embedding too long: {text['num_tokens']} tokens; at most {config.text_max_tokens}")
    if video["num_frames"] < config.min_frames:
        reasons.append(f"too short: {video['num_frames']} frames; at least {config.min_frames} are needed")
    for kind, row in controls.items():
        if row.get("video_sha256") != video["video_sha256"]:
            command = force_command(name, control_stage(kind, config))
            reasons.append(f"{kind} out of date: it is not of this video; {command} makes it anew")
            continue
        size_wh = (row["width"], row["height"]) if FILE_CONTROLS[kind].is_video else None
        problem = misplacement(FILE_CONTROLS[kind], row["num_frames"], size_wh, video)
        if problem:
            reasons.append(f"{kind} misplaced: {problem}")
    return reasons


def _check_files(
    root: Path, rows: Iterable[Row], tables: Mapping[str, Mapping[str, Row]], config: DatasetConfig, threads: int
) -> dict[str, str]:
    """Refuse the clips whose files are gone or changed, and return the captions of all clips by clip id."""
    checked = [row for row in rows if row["status"] == "ok"]
    files: dict[str, dict[str, str]] = {}
    for row in checked:
        clip = row["clip_id"]
        hashes = {video_path(root, clip): row["video_sha256"]}
        hashes[t5_path(root, clip, config.text_store)] = row["t5_sha256"]
        for kind in config.controls:
            hashes[control_path(root, clip, kind)] = row[f"{kind}_sha256"]
            lossless = tables[control_stage(kind, config)][clip].get(LOSSLESS_COLUMN)
            if lossless:
                hashes[lossless_path(root, clip, kind)] = lossless
        files[clip] = {path.relative_to(root).as_posix(): sha256 for path, sha256 in hashes.items()}
    expected = {name: sha256 for hashes in files.values() for name, sha256 in hashes.items()}
    problems = verify_files(root, expected, threads=threads)
    captions = read_captions(caption_path(root, row["clip_id"]) for row in rows)
    for row in checked:
        clip = row["clip_id"]
        found = {name: problems[name] for name in files[clip] if name in problems}
        caption = caption_path(root, clip)
        # Where embeddings are given there may be none.
        expected_caption = row["caption_sha256"]
        if expected_caption and caption not in captions:
            found[caption.relative_to(root).as_posix()] = "gone"
        elif expected_caption and captions[caption][1] != expected_caption:
            found[caption.relative_to(root).as_posix()] = "changed"
        for what, advice in FILE_ADVICE.items():
            names = [name for name, problem in found.items() if problem == what]
            if names:
                command = force_command(root.name, *(_maker(name, config) for name in names))
                refuse(row, f"file {what}: {', '.join(names)}; {advice}{command} makes it again")
    return {path.stem: text for path, (text, _) in captions.items()}


def _maker(file: str, config: DatasetConfig) -> str:
    """Return the stage that makes a file, which is named by its path below the dataset's folder."""
    folder = file.partition("/")[0]
    others = {"videos": INGEST_STAGE, "metas": caption_stage(config)[0], "t5_xxl": T5_STAGE}
    return others.get(folder) or control_stage(folder, config)


def _details(
    row: Row, tables: Mapping[str, Mapping[str, Row]], captions: Mapping[str, str], config: DatasetConfig
) -> Row:
    clip = row["clip_id"]
    video, text = tables[INGEST_STAGE].get(clip, {}), tables[T5_STAGE].get(clip, {})
    controls = {kind: tables[control_stage(kind, config)].get(clip, {}) for kind in config.controls}
    return clip_details(row, video, text, captions.get(clip), controls)


def held_out_draw(identifier: str) -> float:
    """Return a number from 0 to 1 that a clip's id decides; clips below the held-out fraction are held out."""
    return int(digest({"held_out": identifier}, SPLIT_DIGITS), 16) / 16**SPLIT_DIGITS


def draw_splits(rows: Iterable[Row], fraction: float) -> None:
    """Set the split of each usable clip of the table; both splits get at least one if there are two clips.

    Views of a scene stay together, and so do parts of a video, which show the same things a moment later. The parts of
    the only video are drawn one by one.
    """
    usable = [row for row in rows if row["status"] == "ok"]
    has_several = len({row["source_key"] for row in usable}) > 1
    units: dict[str, list[Row]] = defaultdict(list)
    for row in usable:
        # The id of a clip that is a whole video.
        video = clip_id(row["source_key"]) if has_several else row["clip_id"]
        units[row.get("scene") or video].append(row)
    drawn = sorted(units, key=held_out_draw)
    splits = {unit: "held_out" if held_out_draw(unit) < fraction else "train" for unit in drawn}
    if drawn:
        splits[drawn[0]] = "held_out"
    if len(drawn) > 1:
        splits[drawn[-1]] = "train"
    for unit, members in units.items():
        for row in members:
            row["split"] = splits[unit]


def _write_tables(found: Validation, columns: Columns) -> None:
    folder = found.root / "validation"
    write_manifest(folder / "clips.parquet", found.table, columns)
    with atomic_path(folder / "clips.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(found.table)
    write_json(folder / "statistics.json", found.statistics)
    line = summary_line(found.name, found.rows, found.remarks)
    write_text(found.root / SUMMARY, line + "\n")
    logger.info("%s; all clips: %s", line, found.root / PAGE)
