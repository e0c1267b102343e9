import base64
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from fake_run import CLIPS

from worldtune.evaluate import report
from worldtune.evaluate.preview_figures import has_edge_curve, plot_edge_f1, preview_gallery
from worldtune.evaluate.report import RunRecord


@pytest.fixture
def record(made_up_run: Path) -> RunRecord:
    return report.load_run_named(made_up_run.parents[1], made_up_run.name)


def test_the_curve_has_a_line_for_each_guidance_and_for_the_other_edges(record: RunRecord) -> None:
    assert has_edge_curve(record)
    figure = plot_edge_f1(record)
    lines = figure.axes[0].get_lines()
    by_label = {line.get_label(): line for line in lines}
    # Step 80 is behind the manifest's last one.
    assert list(by_label["guidance 0"].get_xdata()) == [0, 40]
    assert list(by_label["guidance 3"].get_ydata()) == pytest.approx([0.13, 0.33])
    dashed = [line for line in lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in dashed] == [pytest.approx([0.1, 0.1])] * 2
    plt.close(figure)


def test_the_newest_preview_is_shown_with_its_scores(record: RunRecord) -> None:
    page = preview_gallery(record)
    assert "Held-out clips at step 40" in page
    assert CLIPS[0] in page
    titles = "<span>control</span><span>ground truth</span><span>guidance 0, edge F1 0.300</span>"
    assert titles + "<span>guidance 3, edge F1 0.330</span>" in page
    folder = record.attempt_dir / "previews" / "step_000000040"
    for name in ("x.png", "x.mp4"):
        assert base64.b64encode((folder / name).read_bytes()).decode() in page


def test_a_run_without_previews_says_so(made_up_run: Path, tmp_path: Path, record: RunRecord) -> None:
    run = tmp_path / "results" / "run"
    shutil.copytree(made_up_run, run)
    shutil.rmtree(run / "attempts/abcd/previews")
    (run / "attempts/abcd/previews.jsonl").unlink()
    empty = report.load_run(run, samples_dir=run / "samples", datasets_dir=tmp_path)
    assert not has_edge_curve(empty)
    assert "drew no preview" in preview_gallery(empty)
    one_step = record.previews[record.previews["step"] == 0]
    assert not has_edge_curve(RunRecord(**{**vars(record), "previews": pd.DataFrame(one_step)}))
