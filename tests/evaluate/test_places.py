from pathlib import Path

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.evaluate.places import check_name, check_runs, dataset_folder, repository_root, run_folder


def test_the_root_is_found_from_below(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").touch()
    (tmp_path / "a/b").mkdir(parents=True)
    assert repository_root(tmp_path / "a/b") == repository_root(tmp_path) == tmp_path.resolve()


def test_an_unknown_name_is_told_the_nearest_ones() -> None:
    with pytest.raises(WorldtuneError, match="no recipe 'edge_postrain'; the nearest known: edge_posttrain"):
        check_name("edge_postrain", ["edge_posttrain", "zebra"], "recipe")
    with pytest.raises(WorldtuneError, match="known: edge_posttrain, zebra"):
        check_name("qqqqqqqq", ["zebra", "edge_posttrain"], "recipe")
    check_name("zebra", ["zebra"], "recipe")


def test_a_comparison_needs_two_runs_that_differ() -> None:
    assert check_runs(["b", "a"], ["a", "b"]) == ["b", "a"]
    with pytest.raises(WorldtuneError, match="only a was named"):
        check_runs(["a"], ["a"])
    with pytest.raises(WorldtuneError, match="a is there more than once"):
        check_runs(["a", "b", "a"], ["a", "b"])


def test_a_run_that_is_not_trained_is_told_from_one_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "config/recipes").mkdir(parents=True)
    (tmp_path / "config/recipes/planned.toml").touch()
    (tmp_path / "results/made").mkdir(parents=True)
    (tmp_path / "results/made/manifest.json").touch()
    assert run_folder(tmp_path, "made") == tmp_path / "results/made"
    with pytest.raises(WorldtuneError, match=r"train the run, as with `snakemake results/planned/report\.html`"):
        run_folder(tmp_path, "planned")
    with pytest.raises(WorldtuneError, match="the nearest known: made"):
        run_folder(tmp_path, "mode")


def test_a_dataset_that_is_not_validated_is_told_from_one_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "datasets/begun").mkdir(parents=True)
    with pytest.raises(WorldtuneError, match=r"snakemake datasets/begun/dataset\.json"):
        dataset_folder(tmp_path, "begun")
    with pytest.raises(WorldtuneError, match="the nearest known: begun"):
        dataset_folder(tmp_path, "bogun")
    (tmp_path / "datasets/begun/validation").mkdir()
    (tmp_path / "datasets/begun/validation/clips.csv").touch()
    assert dataset_folder(tmp_path, "begun") == tmp_path / "datasets/begun"
