"""What README.md names exists."""

import re
from pathlib import Path

import pytest

from worldtune.workflow.docs import config_readme

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
MADE_BY_RULES = ("results/", "datasets/", "checkpoints/", ".venv/")


def test_make_targets_exist() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "dryrun", "why", "sample", "overview", "compare", "test-slurm"} <= named
    assert named <= TARGETS


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[A-Z]\w+|\w+\.\w{2,5})`", README))))
def test_paths_exist(path: str) -> None:
    if path.startswith(MADE_BY_RULES) or not ("/" in path or (REPOSITORY / path).suffix in (".toml", ".yml")):
        return
    assert (REPOSITORY / path).exists(), path


def test_scripts_that_are_named_exist() -> None:
    for script in set(re.findall(r"src/scripts/\w+\.\w+", README)):
        assert (REPOSITORY / script).is_file(), script


def test_every_recipe_and_key_is_described() -> None:
    text = config_readme(REPOSITORY)
    for name in ("| edge_posttrain |", "`optimizer.learning_rate`", "`num_shards`", "`cluster.partitions.gpu`"):
        assert name in text
    assert (REPOSITORY / "config/README.md").read_text() == text
