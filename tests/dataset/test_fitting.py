"""Whether a dataset fits a recipe, told before a GPU is asked for."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_world import make_dataset, tiny_recipe

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import Dataset, load_dataset
from worldtune.dataset.fitting import check_dataset, dataset_report


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("datasets") / "tiny"
    make_dataset(root)
    return load_dataset(root)


def test_the_report_counts_what_is_used(dataset: Dataset) -> None:
    clips = (replace(dataset.clips[0], num_frames=16), *dataset.clips[1:])
    report = dataset_report(replace(dataset, clips=clips), tiny_recipe())
    assert report["splits"]["train"] == {"clips": 2, "too_short": 1, "sizes": {"160x96": 2}}
    assert report["splits"]["held_out"] == {"clips": 3, "too_short": 0, "sizes": {"160x96": 2, "128x128": 1}}
    assert (report["digest"], report["control"], report["num_frames"]) == (dataset.digest, "edge", 17)


def test_everything_that_is_wrong_is_named_at_once(dataset: Dataset) -> None:
    recipe = tiny_recipe(data={"dataset": "tiny", "num_frames": 121, "resolution": "128"}, control={"kind": "depth"})
    with pytest.raises(WorldtuneError) as caught:
        check_dataset(replace(dataset, text_channels=24), recipe)
    message = str(caught.value)
    assert message.startswith("Dataset tiny does not fit the recipe:")
    assert "no training clip of at least 121 frames; give longer clips or lower data.num_frames" in message
    assert "no held-out clip of at least 121 frames" in message
    assert "no depth controls, only ['edge']; add 'depth' to its controls" in message
    assert "24 channels, the network takes 16" in message


def test_controls_that_are_made_in_training_need_no_files(dataset: Dataset) -> None:
    for kind in ("vis", "upscale"):
        check_dataset(replace(dataset, controls=()), tiny_recipe(control={"kind": kind}))


def test_a_script_tells_before_a_gpu_waits(tmp_path: Path, dataset: Dataset) -> None:
    import subprocess
    import sys

    repository = Path(__file__).parents[2]
    command = [sys.executable, "src/scripts/dataset_report.py", "--run", "demo_edge_posttrain"]
    output = tmp_path / "dataset_report.json"
    (tmp_path / "synthetic").symlink_to(dataset.root)
    done = subprocess.run(
        [*command, "--output", str(output), "--datasets", str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: Dataset tiny does not fit the recipe:"
    assert "16 channels, the network takes 64" in done.stderr
    assert not output.exists()
