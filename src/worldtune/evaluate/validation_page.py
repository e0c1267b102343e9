"""The page of a validated dataset: validation/index.html, with its pictures beside it in validation/thumbnails/.

It is written whether the dataset is fit or not, loads nothing from elsewhere, and can be sent around as a folder.
"""

import html
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, read_json, write_json, write_text
from worldtune.common.progress import progress
from worldtune.common.words import count_of
from worldtune.dataset.clips import video_path
from worldtune.dataset.details import STATISTICS
from worldtune.dataset.reasons import count_reasons, label_of, mend_of, split_reasons
from worldtune.dataset.validate import FILE_ADVICE, PAGE, Validation
from worldtune.evaluate.control_pictures import ClipPicture, clip_pictures, legend_html, source_picture
from worldtune.evaluate.histogram import histogram

SHOWN_FLAGGED = 400
"""Clips with a reason or remark that have pictures, as many of each label as of any other; the others are rows."""
SHOWN_PLAIN = 60
"""Clips without one that have pictures."""
SHOWN_ROWS = 500
"""Clips without pictures that are rows of the page; all are in clips.csv."""
THUMBNAIL_WIDTH = 360
JPEG_QUALITY = 82
SPLITS = {"train": "#2b6cb0", "held_out": "#c8691c"}
HISTOGRAMS = ("num_frames", "seconds", "num_words", "num_tokens", "brightness", "motion")
"""Figures that come first; those of the controls follow."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2933; max-width: 1240px; margin: 2em auto; padding: 0 1.2em }
h1 { margin-bottom: .2em } h2 { margin: 1.8em 0 .5em; font-size: 1.25em }
.verdict { font-size: 1.1em; padding: .6em .9em; border-left: 5px solid #2f855a; background: #f0f7f3 }
.verdict.unfit { border-color: #b83232; background: #fbf1f1 }
table { border-collapse: collapse; font-size: .92em } td, th { text-align: left; padding: .25em .9em .25em 0;
  border-bottom: 1px solid #e4e8ec; vertical-align: top } th { color: #5a6570; font-weight: 600 }
td.number, th.number { text-align: right }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 12px }
svg text { font-size: 10.5px; fill: #5a6570 } svg .title { font-weight: 600; fill: #1f2933 }
svg line { stroke: #b8c0c8 }
.filters { position: sticky; top: 0; background: #fff; padding: .6em 0; border-bottom: 1px solid #e4e8ec; z-index: 1 }
.filters select, .filters input { font: inherit; margin-right: 1em; max-width: 22em }
article { padding: .9em 0; border-bottom: 1px solid #e4e8ec } article h3 { margin: 0; font-size: 1em }
article p { margin: .25em 0; overflow-wrap: anywhere } .facts { color: #5a6570; font-size: .9em }
.reason, .remark { display: inline-block; border-radius: 3px; padding: 0 .45em; margin: .1em .4em .1em 0;
  font-size: .9em }
.reason { background: #f9e3e3; color: #8a1f1f } .remark { background: #fdf0dc; color: #7a4b0c }
.pictures { display: flex; flex-wrap: wrap; gap: 10px; margin-top: .5em }
.picture { flex: 1 1 200px; max-width: 300px; font-size: .82em; color: #5a6570; overflow-wrap: anywhere }
.picture img { display: block; width: 100%; background: #000 }
.picture .none { background: #eef1f4; padding: .8em }
.key { margin-right: .8em; white-space: nowrap }
.key i { display: inline-block; width: 9px; height: 9px; margin-right: 4px }
[hidden] { display: none }
"""
SCRIPT = """
const label = document.getElementById('label'), split = document.getElementById('split');
const words = document.getElementById('words'), shown = document.getElementById('shown');
function filter() {
  let count = 0;
  for (const clip of document.querySelectorAll('[data-labels]')) {
    const fits = (!label.value || clip.dataset.labels.split('|').includes(label.value))
      && (!split.value || clip.dataset.split === split.value)
      && clip.dataset.words.includes(words.value.toLowerCase());
    clip.hidden = !fits;
    count += fits;
  }
  shown.textContent = count;
}
for (const control of [label, split, words]) control.addEventListener('input', filter);
for (const link of document.querySelectorAll('a[data-filter]')) {
  link.addEventListener('click', () => { label.value = link.dataset.filter; filter(); });
}
filter();
"""

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Thumbnail:
    """A picture of the page."""

    name: str
    """Of its file in validation/thumbnails/."""
    title: str
    legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    problem: str = ""
    """Why there is no such file; empty where it is there."""


def write_page(found: Validation, *, threads: int = 1) -> Path:
    """Write the page of a validation and its pictures, and return the page's path.

    Pictures of clips that are as they were are kept.

    Args:
        found: what was found out about the dataset.
        threads: clips whose pictures are drawn at once.
    """
    chosen = _chosen(found)
    thumbnails = _draw(found, chosen, threads)
    flagged = [row for row in chosen if _labels(row)]
    plain = [row for row in chosen if not _labels(row)]
    shown = {row["clip_id"] for row in chosen}
    others = sorted(
        (row for row in found.table if row["clip_id"] not in shown), key=lambda row: (not _labels(row), _place(row))
    )
    parts = [
        _head(found),
        _reason_section("Why clips cannot be used", found, "reason"),
        _reason_section("What to look at", found, "remarks"),
        _figures(found),
        _statistics_table(found),
        _size_table(found.table),
        _filters(found),
        "<h2>Clips with a reason or a remark</h2>" if flagged else "",
        *(_article(row, thumbnails[row["clip_id"]]) for row in flagged),
        "<h2>Clips</h2>" if plain else "",
        *(_article(row, thumbnails[row["clip_id"]]) for row in plain),
        _rows_table(others),
    ]
    title = html.escape(f"Dataset {found.name}")
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    page = found.root / PAGE
    write_text(page, f"{head}</head><body>\n" + "\n".join(parts) + f"<script>{SCRIPT}</script></body></html>\n")
    return page


def _labels(row: Row) -> list[str]:
    return sorted({label_of(text) for key in ("reason", "remarks") for text in split_reasons(row[key])})


def _place(row: Row) -> tuple[Any, ...]:
    """Return what clips are sorted by: the views of a scene, and clips that look alike, stand together."""
    own = row.get("scene") or row["clip_id"]
    twin = own if row.get("scene") else min(own, row["looks_like"] or own)
    return (twin, own, row["source_key"], row["start_s"] or 0.0)


def _chosen(found: Validation) -> list[Row]:
    """Return the clips that have pictures: of each label some, then some without any."""
    by_label: dict[str, list[Row]] = {}
    plain: list[Row] = []
    for row in sorted(found.table, key=_place):
        labels = _labels(row)
        # Where there is no video there is nothing to draw.
        if not video_path(found.root, row["clip_id"]).is_file() and _source(found, row) is None:
            continue
        if not labels and len(plain) < SHOWN_PLAIN:
            plain.append(row)
        for label in labels:
            by_label.setdefault(label, []).append(row)
    share = SHOWN_FLAGGED // max(len(by_label), 1)
    flagged = {row["clip_id"]: row for rows in by_label.values() for row in rows[:share]}
    return [*sorted(flagged.values(), key=_place), *plain]


def _source(found: Validation, row: Row) -> Path | None:
    """Return the source of a clip that is the whole of it and was not made; None where there is none."""
    path = found.source / row["source_key"]
    return path if row["start_s"] is None and row["video_sha256"] is None and path.is_file() else None


def _draw(found: Validation, chosen: Sequence[Row], threads: int) -> dict[str, list[_Thumbnail]]:
    """Draw the pictures of clips that are not there yet, remove those that are no longer shown."""
    folder = found.root / "validation" / "thumbnails"
    record_path = folder / "pictures.json"
    try:
        record = read_json(record_path) if record_path.exists() else {}
    except WorldtuneError as error:
        logger.warning("%s All pictures are drawn again.", error)
        record = {}
    kinds = found.config.controls

    def work(row: Row) -> list[_Thumbnail]:
        source = _source(found, row)
        if source is not None:
            return [_save(source_picture(source, found.source), folder, f"{row['clip_id']}-source.jpg")]
        names = _names(row, kinds)
        # What lies there may not be what the hashes say.
        known = not any(f"file {what}" in row["reason"] for what in FILE_ADVICE)
        if known and all(name in record and _is_there(record[name], folder / name) for name in names):
            return [_kept(name, record[name]) for name in names]
        pictures = clip_pictures(found.root, row["clip_id"], kinds, row["num_frames"])
        return [_save(picture, folder, name) for picture, name in zip(pictures, names, strict=False)]

    with ThreadPoolExecutor(threads) as pool:
        drawn = pool.map(work, chosen)
        by_clip = {row["clip_id"]: done for row, done in zip(progress(chosen, "pictures"), drawn, strict=True)}
    drawn_now = {one.name: one for done in by_clip.values() for one in done}
    write_json(record_path, {name: _record(one) for name, one in drawn_now.items()})
    for path in folder.glob("*.jpg"):
        if path.name not in drawn_now:
            path.unlink()
    return by_clip


def _names(row: Row, kinds: Iterable[str]) -> list[str]:
    """Return the files of a clip's pictures, which are named by content so that an old one is not taken for a new."""
    hashes = {"video": row["video_sha256"], **{kind: row[f"{kind}_sha256"] for kind in kinds}}
    return [f"{row['clip_id']}-{kind}-{(sha256 or 'none')[:8]}.jpg" for kind, sha256 in hashes.items()]


def _record(one: _Thumbnail) -> dict[str, Any]:
    return {"title": one.title, "legend": one.legend, "problem": one.problem}


def _is_there(record: dict[str, Any], path: Path) -> bool:
    return bool(record["problem"]) or path.is_file()


def _kept(name: str, record: dict[str, Any]) -> _Thumbnail:
    legend = tuple((str(phrase), (int(r), int(g), int(b))) for phrase, (r, g, b) in record["legend"])
    return _Thumbnail(name=name, title=str(record["title"]), legend=legend, problem=str(record["problem"]))


def _save(picture: ClipPicture, folder: Path, name: str) -> _Thumbnail:
    path = folder / name
    if picture.pixels is None:
        path.unlink(missing_ok=True)
    else:
        with atomic_path(path) as temporary:
            picture.small(THUMBNAIL_WIDTH).save(temporary, "JPEG", quality=JPEG_QUALITY)
    return _Thumbnail(name=name, title=picture.title, legend=picture.legend, problem=picture.problem)


def _head(found: Validation) -> str:
    main = next(iter(found.config.views), None)
    counted = [row for row in found.rows if row.get("view") == main]
    usable = [row for row in counted if row["status"] == "ok"]
    splits = Counter(row["split"] for row in usable)
    fit = len(usable) >= found.config.min_clips
    what = f"scene of {len(found.config.views)} views" if found.config.views else "clip"
    remarks = "".join(f"<li>{html.escape(remark)}.</li>" for remark in found.remarks)
    return (
        f"<h1>Dataset {html.escape(found.name)}</h1><p class='verdict{'' if fit else ' unfit'}'>"
        f"{'Fit to train on' if fit else 'Not fit to train on'}: {len(usable)} of {_many(len(counted), what)} can be "
        f"used ({splits['train']} to train on, {splits['held_out']} held out). At least "
        f"{found.config.min_clips} are needed.</p><p>All clips: <a href='clips.csv'>clips.csv</a>, <a "
        f"href='clips.parquet'>clips.parquet</a>; sums: <a href='statistics.json'>statistics.json</a>.</p>"
        + (f"<ul>{remarks}</ul>" if remarks else "")
    )


def _many(count: int, what: str) -> str:
    noun, _, rest = what.partition(" ")
    return " ".join(filter(None, (count_of(count, noun), rest)))


def _reason_section(title: str, found: Validation, column: str) -> str:
    counts = count_reasons(found.table, column)
    if not counts:
        return f"<h2>{title}</h2><p>{'Every clip can be used.' if column == 'reason' else 'Nothing.'}</p>"
    rows = []
    for label, count, example in counts:
        text = html.escape(label)
        link = f"<a href='#clips' data-filter='{text}'>{text}</a>"
        mend = re.sub("`(.*?)`", r"<code>\1</code>", html.escape(mend_of(label, found.config.controls)))
        rows.append(
            f"<tr><td>{link}</td><td class='number'>{count}</td><td>{html.escape(example)}</td><td>{mend}</td></tr>"
        )
    titles = f"<th>{column.removesuffix('s')}</th><th class='number'>clips</th><th>for example</th><th>what to do</th>"
    return f"<h2>{title}</h2><table><tr>{titles}</tr>{''.join(rows)}</table>"


def _figures(found: Validation) -> str:
    usable = [row for row in found.table if row["status"] == "ok"]
    titles = {line["key"]: line["title"] for line in found.statistics}
    keys = [*HISTOGRAMS, *(key for key in titles if key not in STATISTICS or key.startswith(("seg_", "keypoint_")))]
    drawn = []
    for key in keys:
        parts = (
            {
                split: [float(row[key]) for row in usable if row["split"] == split and row[key] is not None]
                for split in SPLITS
            }
            if key in titles
            else {}
        )
        if any(parts.values()):
            drawn.append(f"<div>{histogram(titles[key], parts, SPLITS)}</div>")
    if not drawn:
        return ""
    keys_html = "".join(
        f"<span class='key'><i style='background:{colour}'></i>{split.replace('_', ' ')}</span>"
        for split, colour in SPLITS.items()
    )
    return f"<h2>Distributions</h2><p>Of the usable clips. {keys_html}</p><div class='figures'>{''.join(drawn)}</div>"


def _statistics_table(found: Validation) -> str:
    if not found.statistics:
        return ""
    columns = ("clips", "smallest", "median", "mean", "largest", "total")
    head = "<tr><th></th>" + "".join(f"<th class='number'>{column}</th>" for column in columns) + "</tr>"
    lines = "".join(
        f"<tr><td>{html.escape(line['title'])}</td>"
        + "".join(
            f"<td class='number'>{'' if line[column] is None else format(line[column], ',.6g')}</td>"
            for column in columns
        )
        + "</tr>"
        for line in found.statistics
    )
    return f"<h2>Statistics of the usable clips</h2><table>{head}{lines}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.6g}"


def _size_table(table: Iterable[Row]) -> str:
    sizes = Counter((row["width"], row["height"], round(row["fps"], 3)) for row in table if row["status"] == "ok")
    if not sizes:
        return ""
    lines = "".join(
        f"<tr><td>{width}x{height}</td><td class='number'>{fps:g}</td><td class='number'>{count}</td></tr>"
        for (width, height, fps), count in sorted(sizes.items())
    )
    head = "<tr><th>size</th><th class='number'>frames a second</th><th class='number'>clips</th></tr>"
    return f"<h2>Sizes and rates</h2><table>{head}{lines}</table>"


def _filters(found: Validation) -> str:
    labels = sorted({label for row in found.table for label in _labels(row)})
    options = "".join(f"<option>{html.escape(label)}</option>" for label in labels)
    splits = "".join(f"<option value='{split}'>{split.replace('_', ' ')}</option>" for split in SPLITS)
    return (
        "<div class='filters' id='clips'>Show <label>reason or remark <select id='label'><option value=''>any or none"
        f"</option>{options}</select></label><label>split <select id='split'><option value=''>any</option>{splits}"
        "<option value='none'>not used</option></select></label><label>name or caption <input id='words' type='search'>"
        "</label><span id='shown'></span> shown</div>"
    )


def _data(row: Row) -> str:
    """Return the attributes that filters go by."""
    labels = html.escape("|".join(_labels(row)))
    words = html.escape(f"{row['source_key']} {row['clip_id']} {row.get('caption') or ''}".lower())
    return f"data-labels='{labels}' data-split='{row['split'] or 'none'}' data-words='{words}'"


def _split(row: Row) -> str:
    return str(row["split"] or "not used").replace("_", " ")


def _chips(row: Row) -> str:
    return "".join(
        f"<span class='{style}'>{html.escape(text)}</span>"
        for key, style in (("reason", "reason"), ("remarks", "remark"))
        for text in split_reasons(row[key])
    )


def _article(row: Row, thumbnails: Sequence[_Thumbnail]) -> str:
    span = "" if row["start_s"] is None else f", {row['start_s']:g} to {row['end_s']:g} s"
    facts = [
        _split(row),
        *([f"{row['num_frames']} frames, {row['seconds']:.2f} s"] if row["num_frames"] and row["seconds"] else []),
        *([f"{row['width']}x{row['height']}"] if row["width"] else []),
        *([f"{row['num_tokens']} tokens"] if row["num_tokens"] else []),
        row["clip_id"],
    ]
    caption = f"<p>{html.escape(row['caption'])}</p>" if row.get("caption") else ""
    return (
        f"<article {_data(row)}><h3>{html.escape(row['source_key'])}{span}</h3>"
        f"<p class='facts'>{html.escape(' · '.join(facts))}</p>{caption}<p>{_chips(row)}</p>"
        f"<div class='pictures'>{''.join(_picture(one) for one in thumbnails)}</div></article>"
    )


def _picture(one: _Thumbnail) -> str:
    title = html.escape(one.title)
    if one.problem:
        return f"<div class='picture'>{title}<div class='none'>{html.escape(one.problem)}</div></div>"
    image = f"<img src='thumbnails/{html.escape(one.name)}' alt='{title}' loading='lazy'>"
    return f"<div class='picture'>{title}{image}{legend_html(one.legend)}</div>"


def _rows_table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr {_data(row)}><td>{html.escape(row['source_key'])}</td><td>{_split(row)}</td><td>{_chips(row)}</td>"
        f"<td>{row['clip_id']}</td></tr>"
        for row in rows[:SHOWN_ROWS]
    )
    more = f"<p>and {len(rows) - SHOWN_ROWS} more in clips.csv.</p>" if len(rows) > SHOWN_ROWS else ""
    head = "<tr><th>source</th><th>split</th><th>reasons and remarks</th><th>clip</th></tr>"
    return f"<h2>Clips without pictures here</h2><table>{head}{lines}</table>{more}"
