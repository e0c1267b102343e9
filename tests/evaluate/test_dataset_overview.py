import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fake_dataset import CONTROLS, make_dataset

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest
from worldtune.dataset.clips import caption_path, video_path
from worldtune.evaluate import dataset_overview as overview
from worldtune.evaluate.dataset_overview import DatasetRecord
from worldtune.evaluate.notebook import execute_notebook

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "dataset_overview.ipynb"
CONFIG = """
runs: []
datasets:
  set: {{kind: folder, path: x, num_shards: 1, min_clips: {min_clips}, min_frames: 5, text_max_tokens: 13}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("overview")).parents[1]


@pytest.fixture(scope="module")
def record(root: Path) -> DatasetRecord:
    return overview.load_record(root / "datasets/set", root)


def test_reasons_are_counted_one_by_one(record: DatasetRecord) -> None:
    table = overview.reason_table(record.clips)
    assert dict(table["clips"]) == {"empty video": 1, "lidar unusable": 1, "too short": 1}
    assert table.loc["too short", "example"] == "clip_8.mp4"
    assert table.loc["lidar unusable", "in_its_words"] == "lidar unusable: expected it as lidar/clip_8.mp4"
    assert overview.reason_table(record.usable).empty


def test_copies_in_both_splits_are_remarked(record: DatasetRecord) -> None:
    remarks = overview.remarks(record)
    assert remarks[0].startswith("1 video is there more than once")
    assert "1 of them is both trained on and held out" in remarks[1]
    assert len(remarks) == 2
    copies = overview.copy_table(record)
    assert sorted(copies["source_key"]) == ["clip_0.mp4", "clip_1.mp4"]
    assert sorted(copies["split"]) == ["held out", "train"]
    # Times are for clips that were cut; these are whole videos.
    assert "start_s" not in copies


def test_a_source_in_both_splits_and_cut_captions_are_remarked(
    record: DatasetRecord, root: Path, tmp_path: Path
) -> None:
    clips = record.clips.assign(source_key="one.mp4", video_sha256=[str(number) for number in range(6)])
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(CONFIG.format(min_clips=2))
    config = overview.load_record(root / "datasets/set", tmp_path).config
    remarks = overview.remarks(DatasetRecord(**{**vars(record), "clips": clips, "config": config}))
    assert "1 source video with clips in both splits, such as one.mp4" in remarks[0]
    assert "1 caption of the greatest length, 13 tokens" in remarks[1]


def test_splits_and_sizes_add_up(record: DatasetRecord) -> None:
    assert dict(overview.split_table(record)["clips"]) == {"train": 3, "held out": 1}
    sizes = overview.size_table(record)
    assert list(sizes.index) == [("64x48", 24.0)]
    assert list(sizes.iloc[0][["train", "held out", "fewest_frames", "most_frames"]]) == [3, 1, 7, 7]


def test_one_figure_a_clip_shows_each_control(record: DatasetRecord) -> None:
    page = overview.clip_gallery(record, record.usable, limit=3)
    assert page.count("<figure>") == 3
    assert page.count("data:image/jpeg") == 3 * (1 + len(CONTROLS))
    assert "a &lt;box&gt;" in page
    assert "A &lt;clip&gt; named" in page
    left_out = overview.clip_gallery(record, record.left_out)
    # The clip without a video is passed over, and the missing control is a note in the place of a picture.
    assert left_out.count("<figure>") == 1
    assert "the clip has no such control" in left_out
    assert left_out.count("data:image/jpeg") == len(CONTROLS)


def test_damaged_and_missing_files_are_notes(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, num_usable=2)
    video_path(folder, digest(0, 16)).write_bytes(b"no video")
    caption_path(folder, digest(1, 16)).unlink()
    record = overview.load_record(folder)
    page = overview.clip_gallery(record, record.usable)
    assert page.count("<figure>") == 2
    assert page.count("class='note'") == 1
    assert "" in list(overview.caption_table(record)["caption"])


def test_a_table_that_is_none_names_its_file(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, fit=False)
    (folder / "validation/clips.csv").write_text("a,b\n1,2\n")
    with pytest.raises(WorldtuneError, match=r"clips\.csv lacks the columns clip_id"):
        overview.load_record(folder)
    (folder / "validation/clips.csv").write_text("")
    with pytest.raises(WorldtuneError, match=r"clips\.csv cannot be read"):
        overview.load_record(folder)


def test_both_tables_give_the_same_record(record: DatasetRecord, tmp_path: Path) -> None:
    failed = overview.load_record(make_dataset(tmp_path, fit=False))
    assert failed.controls == record.controls == CONTROLS
    columns = ["source_key", "status", "reason", "seconds"]
    by_id = [table.clips.set_index("clip_id")[columns].sort_index() for table in (failed, record)]
    pd.testing.assert_frame_equal(*by_id, check_dtype=False)
    pd.testing.assert_frame_equal(overview.split_table(failed), overview.split_table(record), check_dtype=False)


def test_the_page_stands_alone_and_shows_everything(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "overview.html"
    options = ["--dataset", "set", "--root", str(root), "--output", str(output)]
    subprocess.run([sys.executable, "src/scripts/dataset_overview.py", *options], check=True, capture_output=True)
    page = output.read_text()
    without_data = re.sub(r"data:[a-z/0-9]+;base64,[A-Za-z0-9+/=\s]+", "", page)
    assert not re.findall(r"""(?:src|href)=["'](?!#)[^"']""", without_data)
    assert "Fit to train on: 4 of 6 clips" in page
    assert "plot_lengths" not in without_data
    assert "lidar unusable" in page
    # Four usable clips with every control, one that was left out without its lidar; and one figure.
    assert page.count("data:image/jpeg") == 4 * (1 + len(CONTROLS)) + len(CONTROLS)
    assert page.count("data:image/png") == 1
    assert "No description" not in page
    assert 'alt=""' not in page


def test_few_lengths_are_told_and_many_are_drawn(record: DatasetRecord) -> None:
    sentence = overview.lengths_sentence(record)
    assert sentence == "4 usable clips: 7 frames; 0.29 seconds; captions of 10 to 13 tokens, after the cut."
    figure = overview.plot_lengths(record)
    assert [axes.get_xlabel() for axes in figure.axes] == ["frames", "seconds", "tokens, after the cut"]


@pytest.mark.parametrize("num_usable", [0, 1])
def test_a_dataset_that_failed_shows_why(num_usable: int, tmp_path: Path) -> None:
    make_dataset(tmp_path, fit=False, num_usable=num_usable)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(CONFIG.format(min_clips=3))
    output = tmp_path / "overview.html"
    execute_notebook(NOTEBOOK, output, title="", root=tmp_path, parameters={"dataset": "set"})
    page = output.read_text()
    assert "Not fit to train on." in page
    assert "At least 3 are needed (min_clips)" in page
    assert "too short" in page
    assert page.count("data:image/jpeg") == num_usable * (1 + len(CONTROLS)) + len(CONTROLS)
    assert ("No clip can be used" in page) == (num_usable == 0)


def test_a_dataset_without_any_clip(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, fit=False, num_usable=0)
    table = folder / "validation/clips.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    output = tmp_path / "overview.html"
    execute_notebook(NOTEBOOK, output, title="", root=tmp_path, parameters={"dataset": "set"})
    assert "There is no clip at all" in output.read_text()


def test_an_unknown_dataset_is_told_the_nearest(root: Path) -> None:
    command = [sys.executable, "src/scripts/dataset_overview.py", "--dataset", "sett", "--root", str(root)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "datasets/ has no dataset 'sett'; the nearest known: set." in result.stderr
