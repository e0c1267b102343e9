import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_run import CLIPS, SIGMAS, make_run
from matplotlib.figure import Figure

from worldtune.common.errors import WorldtuneError
from worldtune.evaluate import comparison, report
from worldtune.evaluate.notebook import execute_notebook
from worldtune.evaluate.report import RunRecord

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "run_comparison.ipynb"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    shared = {"control": {"kind": "edge"}, "training": {"seed": 3}}
    make_run(folder, name="first_run", **shared, optimizer={"learning_rate": 1e-3, "betas": [0.9, 0.999]})
    make_run(
        folder,
        num_steps=40,
        name="second_run",
        scale=2.0,
        **shared,
        optimizer={"learning_rate": 1e-4, "betas": [0.9, 0.999]},
        experiment={"description": "A lower rate", "family": "x"},
    )
    return folder


@pytest.fixture(scope="module")
def records(root: Path) -> list[RunRecord]:
    return [report.load_run_named(root, name) for name in ("first_run", "second_run")]


def changed(record: RunRecord, **values: object) -> RunRecord:
    return RunRecord(**{**vars(record), **values})


def test_only_keys_that_differ_are_listed(records: list[RunRecord]) -> None:
    table = comparison.differences(records)
    assert list(table.columns) == ["first_run", "second_run"]
    assert sorted(table.index) == ["experiment.family", "optimizer.learning_rate"]
    assert list(table.loc["optimizer.learning_rate"]) == ["0.001", "0.0001"]
    assert list(table.loc["experiment.family"]) == ["not set", "x"]


def test_other_data_and_other_checkpoints_are_differences(records: list[RunRecord]) -> None:
    first, second = records
    manifest = {
        **second.manifest,
        "dataset": {"name": "set", "digest": "7" * 64},
        "checkpoints": {"base": {"path": "a/b.pt", "sha256": "2" * 64}, "control": None},
    }
    table = comparison.differences([first, changed(second, manifest=manifest)])
    assert list(table.loc["input files (SHA-256).dataset digest"]) == ["0" * 12, "7" * 12]
    assert list(table.loc["input files (SHA-256).base"]) == ["1" * 12, "2" * 12]
    assert "different data" in comparison.comparability([first, changed(second, manifest=manifest)])
    assert "different data" not in comparison.comparability(records)


def test_a_recipe_that_the_manifest_lacks_comes_from_the_export(records: list[RunRecord]) -> None:
    first, second = records
    bare = {key: value for key, value in second.manifest.items() if key != "recipe"}
    exported = changed(second, manifest=bare, provenance={"recipe": {"optimizer": {"learning_rate": 7.0}}})
    assert comparison.without_recipe([first, exported]) == []
    assert comparison.differences([first, exported]).loc["optimizer.learning_rate", "second_run"] == "7.0"
    unknown = changed(second, manifest=bare, provenance={})
    assert comparison.without_recipe([first, unknown]) == ["second_run"]
    assert comparison.differences([first, unknown]).empty


def test_final_losses_stand_beside_each_other(records: list[RunRecord]) -> None:
    table = comparison.held_out_table(records)
    assert list(table.index) == sorted(SIGMAS)
    assert list(table["clips"]) == [len(CLIPS)] * len(SIGMAS)
    first, second = (record.validation.query("control == 'own'") for record in records)
    expected = [
        own[(own["step"] == step) & (own["sigma"] == 5.0)]["loss"].mean() for own, step in ((first, 60), (second, 40))
    ]
    assert list(table.loc[5.0, ["first_run, step 60", "second_run, step 40"]]) == pytest.approx(expected)
    assert table.loc[5.0, "second_run against first_run"] == f"{(expected[1] / expected[0] - 1) * 100:+.1f} %"


def test_clips_that_only_one_run_measured_do_not_count(records: list[RunRecord]) -> None:
    first, second = records
    extra = second.validation.query("step == 40").assign(clip_id="ff" * 8, loss=1e6)
    fuller = changed(second, validation=pd.concat([second.validation, extra], ignore_index=True))
    pd.testing.assert_frame_equal(comparison.held_out_table([first, fuller]), comparison.held_out_table(records))
    assert "1 of second_run" in comparison.comparability([first, fuller])
    partly = second.validation[~((second.validation["step"] == 20) & (second.validation["clip_id"] == CLIPS[0]))]
    curves = comparison.held_out_curves(changed(second, validation=partly), comparison.common_pairs(records))
    assert curves.loc[20].isna().all()
    assert np.isfinite(curves.loc[[0, 40]]).all(axis=None)


def test_runs_without_a_common_clip_are_not_compared(records: list[RunRecord]) -> None:
    first, second = records
    foreign = changed(second, validation=second.validation.assign(clip_id="ff" * 8))
    assert "cannot be compared" in comparison.comparability([first, foreign])
    empty = changed(second, validation=second.validation.iloc[:0])
    assert "cannot be compared" in comparison.comparability([first, empty])
    assert isinstance(comparison.plot_control_effect([first, empty]), Figure)


def test_samples_of_clips_that_all_runs_drew(records: list[RunRecord]) -> None:
    first, second = records
    page = comparison.sample_gallery(records)
    assert page.count("<figure>") == 1
    # Control and ground truth once, beside the first run's sample; each file is in the page once.
    assert page.count("<video") == page.count("data:video/mp4") == 2
    assert page.count("<span>control (edge)</span><span>ground truth</span><span>first_run</span>") == 1
    assert "frame 0, frame 2, frame 4" in page
    other = {**second.samples["clips"][0], "clip_id": CLIPS[1]}
    elsewhere = changed(second, samples={**second.samples, "clips": [other]})
    assert "no clip in common" in comparison.sample_gallery([first, elsewhere])
    both = changed(second, samples={**second.samples, "clips": [other, *second.samples["clips"]]})
    assert comparison.common_clips([first, both]) == [CLIPS[0]]
    assert "No sample was drawn for second_run" in comparison.sample_gallery([first, changed(second, samples={})])


def test_another_kind_of_control_is_shown_beside_the_first(records: list[RunRecord]) -> None:
    first, second = records
    depth = changed(second, manifest={**second.manifest, "recipe": {"control": {"kind": "depth"}}})
    page = comparison.sample_gallery([first, depth])
    assert "control (edge)" in page
    assert "control (depth)" in page


def test_of_several_controls_all_are_shown_once(records: list[RunRecord]) -> None:
    control = {"kind": "edge", "also": ["depth"]}
    both = [changed(record, manifest={**record.manifest, "recipe": {"control": control}}) for record in records]
    page = comparison.sample_gallery(both)
    hints = "<span>control (edge)</span><span>control (depth)</span><span>ground truth</span>"
    assert page.count(f"{hints}<span>first_run</span>") == page.count("control (depth)</span>") == 1
    assert "<span>second_run</span>" in page
    other = comparison.sample_gallery([records[0], both[1]])
    assert other.count("<span>control (edge)</span>") == 2


def test_the_page_stands_alone_and_shows_everything(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "comparison.html"
    options = ["--runs", "first_run", "second_run", "--root", str(root), "--output", str(output)]
    subprocess.run([sys.executable, "src/scripts/comparison.py", *options], check=True, capture_output=True)
    page = output.read_text()
    without_data = re.sub(r"data:[a-z/0-9]+;base64,[A-Za-z0-9+/=\s]+", "", page)
    assert not re.findall(r"""(?:src|href)=["'](?!#)[^"']""", without_data)
    assert "plot_training" not in without_data
    for text in ("first_run", "second_run", "A lower rate", "optimizer.learning_rate", "3 held-out clips"):
        assert text in without_data
    # Training, held-out loss, control effect and speed; two pictures of samples.
    assert page.count("data:image/png;base64,") == 4 + 2
    assert "No description" not in page


def test_missing_pieces_are_notes(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "datasets")
    second = copy / "results/second_run"
    shutil.rmtree(second / "samples")
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps({**manifest, "recipe": None}))
    (second / "attempts/abcd/validation.jsonl").write_text("")
    output = tmp_path / "comparison.html"
    execute_notebook(NOTEBOOK, output, title="", root=copy, parameters={"runs": ["first_run", "second_run"]})
    page = output.read_text()
    for text in ("left out here: second_run", "No sample was drawn for second_run", "cannot be compared"):
        assert text in page


def test_an_unknown_run_and_a_run_of_another_recipe_stop_it(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "comparison.html"
    command = [sys.executable, "src/scripts/comparison.py", "--root", str(root), "--output", str(output), "--runs"]
    for arguments, message in (
        (["first_run", "secnd_run"], "the nearest known: second_run"),
        (["first_run"], "a comparison needs two or more runs"),
        (["first_run", "second_run", "--expect-trained", "1111", "2222"], "fingerprint 1111, expected 2222"),
    ):
        result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert message in result.stderr
    with pytest.raises(WorldtuneError, match="a comparison needs two or more runs"):
        execute_notebook(NOTEBOOK, output, title="", root=root, parameters={"runs": ["first_run"]})
    assert not output.exists()
