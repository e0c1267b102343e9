import re
from pathlib import Path

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.capacity import capacity_report, capacity_values
from worldtune.recipe.estimate import estimate
from worldtune.recipe.identity import values_that_affect
from worldtune.recipe.load import load_recipe
from worldtune.recipe.memory import GIB
from worldtune.recipe.schema import Recipe

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (REPOSITORY / "config/recipes").glob("*.toml"))
PLENTY = 1000 * GIB


def load(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides, REPOSITORY)


def problems_of(recipe: Recipe, free_disk_bytes: int = PLENTY) -> str:
    with pytest.raises(WorldtuneError) as raised:
        capacity_report(recipe, free_disk_bytes=free_disk_bytes, held_bytes=0, results="results/mine")
    return str(raised.value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_what_it_asks_for(name: str) -> None:
    recipe = load(name)
    report = capacity_report(recipe, free_disk_bytes=PLENTY, held_bytes=0, results="results")
    is_demo = name.startswith("demo_")
    assert report["gpu_memory_gib"]["available"] == (None if is_demo else 79.0)
    assert report["node_memory_gib"]["available"] == recipe.cluster.mem_gb_per_gpu * recipe.processes_per_node
    assert report["disk_gib"]["free"] == 1000


def test_a_gpu_that_is_too_small_is_told_with_keys_that_help() -> None:
    text = problems_of(load("edge_posttrain", "parallel.tensor=1", "parallel.recompute_less=4"))
    needed = re.search(r"a GPU needs about (\d+\.\d) GiB .* cluster\.gpu_memory_gb = 79\.", text)
    assert needed is not None
    assert float(needed[1]) > 79
    # What it advises fits.
    advised = re.search(r"Under \[parallel\], (.*) would need (\d+\.\d) GiB\.", text)
    assert advised is not None
    assert float(advised[2]) <= 79
    keys = [f"parallel.{pair.replace(' ', '')}" for pair in advised[1].split(", ")]
    fitting = load("edge_posttrain", "parallel.tensor=1", *keys)
    assert capacity_report(fitting, free_disk_bytes=PLENTY, held_bytes=0, results="results")
    for key in ("parallel.tensor", "parallel.context", "parallel.shard"):
        assert key in text


def test_a_sample_that_no_recomputation_fits_asks_for_less_of_it() -> None:
    text = problems_of(load("edge_posttrain", "parallel.tensor=1", "data.num_frames=481"))
    assert 'parallel.recompute = "everything") is not enough: lower data.num_frames, data.resolution' in text


def test_the_gpus_memory_is_the_recipes_to_say() -> None:
    large = load("edge_posttrain", "parallel.tensor=1", "parallel.recompute_less=4", "cluster.gpu_memory_gb=0")
    report = capacity_report(large, free_disk_bytes=PLENTY, held_bytes=0, results="results")
    assert report["gpu_memory_gib"]["available"] is None
    assert "cluster.gpu_memory_gb = 39.5" in problems_of(load("edge_posttrain_80gb", "cluster.gpu_memory_gb=39.5"))
    # A GPU's memory is nothing to a recipe that computes on the CPU, whose main memory has all.
    report = capacity_report(
        load("demo_edge_posttrain", "cluster.gpu_memory_gb=0.1"),
        free_disk_bytes=PLENTY,
        held_bytes=0,
        results="results",
    )
    assert report["gpu_memory_gib"]["available"] is None


def test_main_memory_and_disk_are_checked_too() -> None:
    recipe = load("edge_posttrain", "cluster.mem_gb_per_gpu=10")
    text = problems_of(recipe, free_disk_bytes=40 * GIB)
    assert re.search(r"the 8 processes of a node need about \d+\.\d GiB of main memory", text)
    assert "expected at most 80 (cluster.mem_gb_per_gpu for each). Raise it, lower data.num_workers" in text
    assert re.search(r"results/mine has 40\.0 GiB free, .*saving\.keep_last = 2.* need 44\.9\.", text)
    kept = load("edge_posttrain", "saving.keep_every=1000")
    assert "need 44.9." not in problems_of(kept, free_disk_bytes=40 * GIB)
    assert "saving.keep_every = 1000" in problems_of(kept, free_disk_bytes=60 * GIB)


def test_what_decides_is_planned_and_shapes_no_run() -> None:
    recipe = load("edge_posttrain")
    values = capacity_values(recipe)
    for override in (
        "cluster.gpu_memory_gb=40",
        "cluster.mem_gb_per_gpu=60",
        "data.num_workers=1",
        "parallel.tensor=4",
    ):
        assert capacity_values(load("edge_posttrain", override)) != values, override
    for override in ("optimizer.learning_rate=1", "training.max_iter=5", "logging.wandb=offline"):
        assert capacity_values(load("edge_posttrain", override)) == values, override
    affecting = values_that_affect(recipe, "weights", "outcome", "report")
    assert "cluster.gpu_memory_gb" not in affecting


def test_the_run_s_own_checkpoints_make_room() -> None:
    recipe = load("edge_posttrain")
    need = estimate(recipe).attempt_bytes
    with pytest.raises(WorldtuneError, match=r"results/mine has 1\.0 GiB free, the run's own checkpoints included"):
        capacity_report(recipe, free_disk_bytes=2**30, held_bytes=0, results="results/mine")
    report = capacity_report(recipe, free_disk_bytes=2**30, held_bytes=need, results="results/mine")
    assert report["disk_gib"]["held_by_this_run"] == pytest.approx(need / 2**30, abs=1e-3)
