import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from fake_run import CLIPS
from full_disk import error_of, files_of, refuse_writes
from matplotlib.figure import Figure

from worldtune.common.errors import WorldtuneError
from worldtune.evaluate import report
from worldtune.evaluate.figures import STYLE, as_html, change_percent, log_scale
from worldtune.evaluate.notebook import execute_notebook
from worldtune.evaluate.report import RunRecord

REPOSITORY = Path(__file__).parents[2]
NOTEBOOK = REPOSITORY / "notebooks" / "run_report.ipynb"


@pytest.fixture(scope="module")
def record(made_up_run: Path) -> RunRecord:
    root = made_up_run.parents[1]
    return report.load_run(made_up_run, samples_dir=made_up_run / "samples", datasets_dir=root / "datasets")


def test_a_torn_last_line_is_left_out(record: RunRecord) -> None:
    assert list(record.metrics["step"]) == list(range(1, 61))


@pytest.mark.parametrize("line", ['{"step": 30, "lo', "7", '{"loss": 1.0}', "", "\0\0\0"])
@pytest.mark.parametrize("name", ["metrics", "validation", "previews"])
def test_a_damaged_record_is_named(made_up_run: Path, tmp_path: Path, name: str, line: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(made_up_run, run)
    path = run / f"attempts/abcd/{name}.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], line, *lines[5:]]) + "\n")
    with pytest.raises(WorldtuneError, match=rf"abcd/{name}\.jsonl, line 5: expected a JSON object with a step"):
        report.load_run(run, samples_dir=run / "samples", datasets_dir=tmp_path)


def test_another_dataset_of_the_same_name_is_not_shown(made_up_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made_up_run.parents[1], root)
    path = root / "datasets/set/dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "1" * 64, "num_clips": 77}))
    changed = report.load_run_named(root, "run")
    assert (changed.dataset, len(changed.clips)) == ({}, 0)
    assert "? held out" in report.summary_table(changed).loc["clips"].item()
    assert report.dataset_tables(changed) == {}
    assert report.clip_table(changed, root / "datasets").empty
    execute_notebook(NOTEBOOK, tmp_path / "report.html", title="Run", root=root, parameters={"run": "run"})
    page = (tmp_path / "report.html").read_text()
    assert "datasets/set is gone, or is not what this run was trained on (digest 00000000)" in page
    assert "A clip" not in page


def test_steps_after_the_manifests_last_one_are_left_out(made_up_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made_up_run, run)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "final_step": 40}))
    lowered = report.load_run(run, samples_dir=run / "samples", datasets_dir=tmp_path)
    assert lowered.metrics["step"].max() == 40
    assert list(report.held_out_means(lowered).index) == [0, 20, 40]


def test_a_missing_record_names_its_file(made_up_run: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"manifest\.json does not exist"):
        report.load_run(tmp_path, samples_dir=tmp_path, datasets_dir=tmp_path)


def test_the_script_refuses_a_run_of_another_recipe(made_up_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    command = [sys.executable, "src/scripts/report.py", "--run", "run", "--root", str(made_up_run.parents[1])]
    options = ["--output", str(output), "--expect-trained", "0123456789ab-abc"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "attempts/abcd was trained with values of fingerprint 1111, expected 0123456789ab. A" in result.stderr
    assert not output.exists()


def test_smoothing_is_unbiased_at_the_start_and_lags_by_its_span() -> None:
    constant = report.smooth(pd.Series([2.0] * 10), 5)
    assert np.allclose(constant, 2.0)
    step = report.smooth(pd.Series([0.0] * 50 + [1.0] * 50), 10)
    assert step.iloc[49] == 0.0
    assert 0.8 < step.iloc[60] < 0.95


def test_pairs_hold_one_row_a_clip_and_noise_level(record: RunRecord) -> None:
    pairs = report.paired_controls(record)
    assert len(pairs) == 3 * 4
    assert np.allclose(pairs["own"] / pairs["other"], 0.9)
    effect = report.control_effect(record)
    assert (effect.num_pairs, effect.num_own_lower) == (12, 12)
    assert effect.mean_ratio == pytest.approx(0.9)
    # Before the first step both controls gave the same loss, which is no win.
    assert report.control_effect(record, step=0).num_own_lower == 0
    assert "**12 of 12**" in report.control_effect_sentence(record)
    table = report.control_effect_table(record)
    assert list(table["own_lower"]) == [3, 3, 3, 3]


def with_recipe(record: RunRecord, **recipe: object) -> RunRecord:
    return RunRecord(**{**vars(record), "manifest": {**record.manifest, "recipe": recipe}})


def test_the_recipe_is_told_by_what_it_changes(record: RunRecord, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    trained = with_recipe(
        record, training={"max_iter": 9, "seed": 1}, data={"dataset": "mine"}, optimizer={"learning_rate": 1e-3}
    )
    main = report.recipe_table(trained, tmp_path)
    assert dict(main["value"]) == {
        "data.dataset": "mine",
        "optimizer.learning_rate": "0.001",
        "training.max_iter": "9",
    }
    text = 'extends = "demo_edge_posttrain"\n[training]\nmax_iter = 9\nseed = 1\n[validation]\nmax_clips = 3\n'
    (tmp_path / "config/recipes/run.toml").write_text(text + '[experiment]\ndescription = "Mine"\n')
    table = report.recipe_table(trained, tmp_path)
    # The seed is the parent's own, and no recipe above says how many clips.
    assert table.to_dict("index") == {
        "training.max_iter": {"value": "9", "in demo_edge_posttrain": "400"},
        "validation.max_clips": {"value": "3", "in demo_edge_posttrain": "the default"},
    }


def test_a_tiny_network_is_said_beside_its_samples(record: RunRecord) -> None:
    tiny = with_recipe(record, network={"size": "transfer1_demo_av"})
    assert "no picture is expected on real videos" in report.sample_gallery(tiny)
    assert "tiny network" not in report.sample_gallery(with_recipe(record, network={"size": "transfer1_7b"}))
    assert "<span>frame 0</span><span>frame 2</span><span>frame 4</span>" in report.sample_gallery(tiny)


def test_each_of_several_controls_has_a_column(record: RunRecord) -> None:
    both = with_recipe(record, control={"kind": "edge", "also": ["depth"]})
    titles = ("control (edge)", "control (depth)", "ground truth", "sample")
    page = report.sample_gallery(both)
    assert "".join(f"<span>{title}</span>" for title in titles) in page
    assert f"of {', '.join(titles)}'" in page
    single = report.sample_gallery(with_recipe(record, control={"kind": "edge", "also": []}))
    assert "<span>control</span><span>ground truth</span><span>sample</span>" in single


def test_cut_captions_are_listed(made_up_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made_up_run.parents[1], root)
    assert report.dataset_note(report.load_run_named(root, "run")) == ""
    manifests = root / "datasets/set/manifests/t5"
    manifests.mkdir(parents=True)
    clips = [*CLIPS, "ff" * 8]
    pd.DataFrame({"clip_id": clips, "truncated": [True, False, True, True]}).to_parquet(manifests / "0000.parquet")
    text = report.dataset_note(report.load_run_named(root, "run"))
    assert "2 captions were cut to text_max_tokens" in text
    assert "0a.mp4, 0c.mp4." in text


def test_two_measurements_are_a_table_alone(record: RunRecord) -> None:
    assert report.has_held_out_curves(record)
    ends = record.validation[record.validation["step"].isin([0, 60])]
    assert not report.has_held_out_curves(RunRecord(**{**vars(record), "validation": ends}))


def test_panels_say_what_they_show(record: RunRecord) -> None:
    loss, norm, rate = report.plot_training(with_recipe(record, optimizer={"max_grad_norm": 1.5})).axes
    assert not any(axes.get_legend() for axes in (loss, norm, rate))
    assert "thin: each step" in loss.get_title(loc="left")
    assert norm.get_title(loc="left") == "Gradient norm (dashed: limit 1.5)"
    assert rate.get_ylabel() == "learning rate, times 1e-3"
    own = record.validation[record.validation["control"] == "own"]
    for changed, legends in ((record, 1), (RunRecord(**{**vars(record), "validation": own}), 0)):
        figure = report.plot_held_out(changed)
        assert len(figure.legends) == legends
        assert figure.axes[0].get_title(loc="left") == "sigma 0.2: -33.3 %"


def test_no_change_has_no_sign() -> None:
    assert [change_percent(ratio) for ratio in (0.9, 1.1, 0.9999, 1.0, float("nan"))] == [
        "-10.0 %",
        "+10.0 %",
        "0.0 %",
        "0.0 %",
        "",
    ]


def test_without_another_control_the_report_still_stands(record: RunRecord) -> None:
    own = record.validation[record.validation["control"] == "own"]
    alone = RunRecord(**{**vars(record), "validation": own})
    assert "no other control" in report.control_effect_sentence(alone)
    assert "own control lower" not in report.summary_table(alone).index
    assert isinstance(report.plot_held_out(alone), Figure)


def test_the_page_of_a_run_with_one_held_out_clip(made_up_run: Path, tmp_path: Path) -> None:
    shutil.copytree(made_up_run.parents[1], tmp_path / "copy")
    run = tmp_path / "copy/results/run"
    path = run / "attempts/abcd/validation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["control"] == "own"))
    root = tmp_path / "copy"
    execute_notebook(NOTEBOOK, tmp_path / "report.html", title="Run", root=root, parameters={"run": "run"})
    page = (tmp_path / "report.html").read_text()
    assert "no other control to compare with" in page
    assert page.count("data:image/png;base64,") == 6


def test_missing_pieces_are_notes(made_up_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made_up_run.parents[1], root)
    shutil.rmtree(root / "datasets")
    shutil.rmtree(root / "results/run/samples")
    (root / "results/run/attempts/abcd/validation.jsonl").write_text("")
    (root / "results/run/attempts/abcd/previews.jsonl").unlink()
    shutil.rmtree(root / "results/run/attempts/abcd/previews")
    execute_notebook(NOTEBOOK, tmp_path / "report.html", title="Run", root=root, parameters={"run": "run"})
    page = (tmp_path / "report.html").read_text()
    assert "No sample was drawn for this run." in page
    assert "The training job drew no preview." in page
    assert page.count("No held-out loss was measured.") == 2
    assert page.count("data:image/png;base64,") == 2


def test_clips_and_noise_levels_that_came_later_are_not_averaged_with_earlier_ones(record: RunRecord) -> None:
    last = record.validation[record.validation["step"] == 60]
    more = pd.concat(
        [record.validation, last.assign(sigma=99.0), last.assign(clip_id="0f" * 8, loss=1e6)], ignore_index=True
    )
    changed = RunRecord(**{**vars(record), "validation": more})
    table = report.held_out_table(changed)
    assert table.loc[99.0, "change"] == ""
    pd.testing.assert_frame_equal(table.drop(99.0), report.held_out_table(record), check_freq=False)
    assert isinstance(report.plot_held_out(changed), Figure)
    assert isinstance(report.plot_control_effect(changed), Figure)


def test_parts_of_a_step_add_up(record: RunRecord) -> None:
    table = report.step_time_table(record)
    assert list(table.index) == ["data", "forward", "backward", "optimizer", "other"]
    assert table["seconds"].sum() == pytest.approx(record.metrics["step_s"][3:].mean())


def test_unusable_clips_are_listed_with_their_reason(record: RunRecord) -> None:
    tables = report.dataset_tables(record)
    assert tables["Usable clips"]["clips"].sum() == 3
    assert list(tables["Left out"].index) == ["0 bytes"]


def test_the_page_stands_alone_and_shows_everything(made_up_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    root = made_up_run.parents[1]
    execute_notebook(NOTEBOOK, output, title="Run <report>", root=root, parameters={"run": "run"})
    page = output.read_text()
    assert "<title>Run &lt;report&gt;</title>" in page
    assert page.count("data:image/png;base64,") == 7
    assert page.count("data:video/mp4;base64,") == 2
    assert "guidance 3, edge F1 0.330" in page
    assert "A &lt;b&gt;" in page
    assert "No description" not in page
    without_data = re.sub(r"data:[a-z/0-9]+;base64,[A-Za-z0-9+/=\s]+", "", page)
    assert not re.findall(r"""(?:src|href)=["'](?!#)[^"']""", without_data)
    assert "<script" not in without_data
    assert "plot_training" not in without_data


def test_what_fails_while_a_figure_is_shown_is_an_error(tmp_path: Path) -> None:
    cells = [
        nbformat.v4.new_code_cell("run = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "import traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()"
        ),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebook.ipynb")
    with pytest.raises(WorldtuneError, match="failed while it showed a result"):
        execute_notebook(
            tmp_path / "notebook.ipynb", tmp_path / "report.html", title="", root=tmp_path, parameters={"run": "x"}
        )
    assert not (tmp_path / "report.html").exists()


def test_a_full_disk_leaves_the_older_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = nbformat.v4.new_code_cell("run = ''", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebook.ipynb")
    output = tmp_path / "results" / "report.html"
    output.parent.mkdir()
    output.write_text("old")
    met = refuse_writes(monkeypatch, r"/\.report\.")
    message = error_of(
        lambda: execute_notebook(tmp_path / "notebook.ipynb", output, title="", root=tmp_path, parameters={"run": "x"})
    )
    assert met
    assert message.startswith(f"error: {output}: No space left on device. Free space")
    assert files_of(output.parent) == {"report.html": b"old"}


def test_a_failing_cell_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").touch()
    with pytest.raises(WorldtuneError, match="results/ has no run 'gone'"):
        execute_notebook(NOTEBOOK, tmp_path / "report.html", title="", root=tmp_path, parameters={"run": "gone"})
    assert not (tmp_path / "report.html").exists()


def test_columns_have_words_for_names(record: RunRecord) -> None:
    page = as_html(report.control_effect_table(record)) + as_html(report.clip_table(record, Path("nowhere")))
    titles = re.findall(r"<th[^>]*>([^<]*)</th>", page)
    assert {"sigma", "own control", "another clip's control", "source", "frames a second"} <= set(titles)
    assert not any("_" in title for title in titles)
    assert "held_out" not in page


def test_one_step_is_no_steps(record: RunRecord) -> None:
    single = RunRecord(**{**vars(record), "samples": {**record.samples, "num_steps": 1}})
    assert "in 1 sampler step with" in report.sample_gallery(single)
    assert "in 35 sampler steps with" in report.sample_gallery(record)


@pytest.mark.parametrize("span", [1.05, 1.5, 3, 10, 40, 300, 1e4, 1e9])
@pytest.mark.parametrize("low", [0.0123, 0.99, 3.7])
def test_labels_of_a_logarithmic_axis_are_there_and_apart(span: float, low: float) -> None:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3, 2.6))
        axes.plot([0, 1], [low, low * span])
        log_scale(axes, "y")
        figure.canvas.draw()
        bottom, top = axes.get_window_extent().y0, axes.get_window_extent().y1
        boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
        boxes = sorted((box for box in boxes if bottom <= (box.y0 + box.y1) / 2 <= top), key=lambda box: box.y0)
        plt.close(figure)
    assert len(boxes) >= 2
    assert all(lower.y1 < upper.y0 for lower, upper in pairwise(boxes))
