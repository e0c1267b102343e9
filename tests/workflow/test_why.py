import subprocess
import sys

import pytest
from workspace import Workspace

from worldtune.common.errors import WorldtuneError
from worldtune.workflow.why import describe, planned_jobs

TARGETS = [f"datasets/my_videos/manifests/captions/{shard:04d}.parquet" for shard in range(2)]


@pytest.fixture(autouse=True)
def library_of_the_workspace(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", workspace.environment()["PYTHONPATH"])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Captions of two shards, made."""
    workspace = Workspace(tmp_path_factory.mktemp("why"))
    workspace.edit("config/config.yaml", {"path: my_videos\n    num_shards: 4": "path: my_videos\n    num_shards: 2"})
    clips = workspace.root / "my_videos"
    clips.mkdir()
    for number in range(6):
        (clips / f"{number}.mp4").write_bytes(b"0")
        (clips / f"{number}.txt").write_text(f"Caption {number}.")
    workspace.snakemake(*TARGETS)
    return workspace


def test_a_changed_entry_of_a_listing_and_a_version_are_told_apart_from_the_rest(workspace: Workspace) -> None:
    assert planned_jobs(TARGETS, workspace.root) == []
    (workspace.root / "my_videos/3.txt").write_text("Another caption.")
    (job,) = planned_jobs(TARGETS, workspace.root)
    assert (job.rule, job.reason) == ("captions", "values changed")
    assert (len(job.before), len(job.now)) == (1, 1)
    assert job.before[0].startswith("['3.mp4'")
    assert job.now[0].startswith("['3.mp4'")
    assert job.before != job.now

    workspace.raise_version("dataset/captions.py")
    jobs = planned_jobs(TARGETS, workspace.root)
    assert [job.rule for job in jobs] == ["captions", "captions"]
    text = describe(jobs)
    assert "was version 1" in text
    assert "now version 2" in text
    assert "Union of exclusive" not in text


def test_the_original_name_of_an_experiment_stands_for_its_run(workspace: Workspace) -> None:
    original = "CTRL_7Bv1pt3_lvg_tp_121frames_control_input_edge_block3_pretrain"
    done = subprocess.run(
        [sys.executable, "src/scripts/why.py", "--run", original],
        cwd=workspace.root,
        env=workspace.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "export: results/edge_pretrain/model" in done.stdout


def test_a_mistake_that_the_graph_meets_is_all_that_is_said(workspace: Workspace) -> None:
    with pytest.raises(WorldtuneError) as caught:
        planned_jobs(["datasets/synthetics/dataset.json"], workspace.root)
    assert str(caught.value).endswith("config.yaml has no dataset 'synthetics' (did you mean 'synthetic'?).")
    assert "Building DAG" not in str(caught.value)


def test_an_error_of_ours_is_all_that_is_said(workspace: Workspace) -> None:
    workspace.edit("config/config.yaml", {"min_frames: 17": "min_frame: 17"})
    with pytest.raises(WorldtuneError) as caught:
        planned_jobs(TARGETS, workspace.root)
    assert "config.yaml, datasets:\n  synthetic.min_frame: there is no such key" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "Building DAG" not in str(caught.value)


def test_nothing_is_said_in_words() -> None:
    assert describe([]) == "nothing would run again"
