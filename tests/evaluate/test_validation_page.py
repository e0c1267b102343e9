import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_dataset import CONTROLS, MIN_CLIPS, make_dataset
from PIL import Image

from worldtune.dataset.clips import video_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.details import clip_details, find_alike, mark_leaks, statistics
from worldtune.dataset.validate import Validation
from worldtune.evaluate.validation_page import write_page


def validation(folder: Path) -> Validation:
    """What is found out of a made-up dataset; the first clip is also remarked to be dark."""
    options = {"kind": "folder", "path": str(folder / "source"), "num_shards": 1, "controls": CONTROLS}
    rows = pq.read_table(folder / "clips.parquet").to_pylist()
    details = {}
    for row in rows:
        video = {"brightness": 80.0, "motion": 1.0, "fingerprint": None}
        controls = {kind: {"num_frames": 7, "empty_frames": 7 * (kind == "lidar")} for kind in CONTROLS}
        details[row["clip_id"]] = clip_details(row, video, {}, "A <caption>.", controls)
    mark_leaks(find_alike(rows, details), details)
    table = [
        row | details[row["clip_id"]] | {"remarks": " | ".join(details[row["clip_id"]]["remarks"])} for row in rows
    ]
    return Validation(
        root=folder,
        source=folder / "source",
        name="set",
        config=DatasetConfig.model_validate({**options, "min_clips": MIN_CLIPS}),
        rows=rows,
        table=table,
        remarks=["A <remark>"],
        statistics=statistics(table),
        channels=4,
        caption_makers=[],
    )


@pytest.fixture
def found(tmp_path: Path) -> Validation:
    return validation(make_dataset(tmp_path))


class Pictures(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.clips: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if tag == "img":
            self.sources.append(facts["src"] or "")
        if "data-labels" in facts:
            self.clips.append(facts)


def parse(page: Path) -> Pictures:
    parser = Pictures()
    parser.feed(page.read_text())
    return parser


def test_each_clip_is_shown_beside_its_controls(found: Validation) -> None:
    page = write_page(found, threads=2)
    parsed = parse(page)
    # Four usable clips with every control, and one that was left out without its lidar.
    assert len(parsed.sources) == 4 * (1 + len(CONTROLS)) + len(CONTROLS)
    for source in parsed.sources:
        with Image.open(page.parent / source) as picture:
            assert picture.size == (64, 48)
    assert len(parsed.clips) == 6
    text = page.read_text()
    assert "Fit to train on: 4 of 6 clips can be used (3 to train on, 1 held out)" in text
    assert "a &lt;box&gt;" in text
    assert not re.findall(r"https?://|<caption>|<remark>", text)


def test_clips_can_be_filtered_by_their_reasons(found: Validation) -> None:
    page = write_page(found)
    labels = [set((clip["data-labels"] or "").split("|")) for clip in parse(page).clips]
    options = set(re.findall("<option>(.*?)</option>", page.read_text()))
    assert set.union(*labels) == options
    assert {"too short", "lidar unusable", "empty video", "copy", "leak", "lidar mostly empty"} <= options
    assert sum("copy" in some for some in labels) == 2
    assert "Give a longer video, or lower <code>min_frames</code>" in page.read_text()


def test_pictures_are_drawn_once_and_those_of_others_go(found: Validation) -> None:
    first = write_page(found).read_text()
    folder = found.root / "validation/thumbnails"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jpg")}
    (folder / "0123456789abcdef-video-01234567.jpg").touch()
    assert write_page(found).read_text() == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jpg")} == before


def test_a_source_that_became_no_clip_is_shown(found: Validation, tmp_path: Path) -> None:
    (row,) = (row for row in found.table if row["video_sha256"] is None)
    source = found.source / row["source_key"]
    source.parent.mkdir()
    (usable, *_) = (row for row in found.rows if row["status"] == "ok")
    video_path(found.root, usable["clip_id"]).rename(source)
    assert f"thumbnails/{row['clip_id']}-source.jpg" in parse(write_page(found)).sources
    source.write_bytes(b"no video")
    text = write_page(found).read_text()
    assert "clip_9.mp4 cannot be decoded" in text
    assert str(tmp_path) not in text


def test_many_clips_are_rows(found: Validation, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "worldtune.evaluate.validation_page"
    for name, number in {"SHOWN_FLAGGED": 2, "SHOWN_PLAIN": 0, "SHOWN_ROWS": 1}.items():
        monkeypatch.setattr(f"{module}.{name}", number)
    page = write_page(found)
    assert "more in clips.csv" in page.read_text()
    assert len(parse(page).sources) < 4 * (1 + len(CONTROLS))


def test_a_dataset_without_clips_has_a_page(found: Validation) -> None:
    empty = Validation(**{**vars(found), "rows": [], "table": [], "remarks": [], "statistics": []})
    text = write_page(empty).read_text()
    assert "Not fit to train on: 0 of 0 clips" in text
    assert "<svg" not in text


def test_figures_have_a_bar_for_each_part(found: Validation) -> None:
    text = write_page(found).read_text()
    assert text.count("<svg") >= 3
    heights = [float(height) for height in re.findall(r"<rect[^>]* height='([0-9.]+)'", text)]
    assert np.min(heights) > 0
