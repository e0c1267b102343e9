"""The count of memory against what was measured on GPUs."""

from pathlib import Path
from typing import Any

import pytest

from worldtune.recipe.estimate import split_parameters
from worldtune.recipe.load import load_recipe
from worldtune.recipe.memory import GIB, GpuMemory, gpu_memory, host_memory
from worldtune.recipe.schema import VIDEO_SIZES_WH, Recipe

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (REPOSITORY / "config/recipes").glob("*.toml"))


def load(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides, REPOSITORY)


def with_blocks(recipe: Recipe, blocks: int) -> Recipe:
    base = recipe.network.base.model_copy(update={"num_blocks": blocks})
    return recipe.model_copy(update={"network": recipe.network.model_copy(update={"base": base})})


# GiB that PyTorch had allocated at most in a step of edge_posttrain on H200, by benchmarks/transfer1_step.py: all of
# benchmarks/README.md, two of which are in the table of README.md too. Latents were given, so no tokenizer.
MEASURED = [
    ("recompute=all_but_attention,recompute_less=24", 28, 133.9),
    ("recompute=everything,recompute_less=16", 28, 58.2),
    ("context=2,recompute=mlp,recompute_less=16", 28, 116.2),
    ("tensor=2,recompute=mlp,recompute_less=16", 28, 114.6),
    ("recompute=all_but_attention,recompute_less=22", 28, 127.8),
    ("recompute=all_but_attention", 4, 32.5),
    ("recompute=mlp", 4, 49.8),
    ("recompute=nothing", 4, 78.3),
]


@pytest.mark.parametrize(("case", "blocks", "measured_gib"), MEASURED)
def test_it_is_what_was_measured(case: str, blocks: int, measured_gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the size that was measured.
    monkeypatch.setitem(VIDEO_SIZES_WH, "720", {"16:9": (1280, 704)})
    keys = [f"parallel.{key}" for key in case.split(",")]
    recipe = with_blocks(load("edge_posttrain", "parallel.tensor=1", "parallel.encode_ahead=false", *keys), blocks)
    found = gpu_memory(recipe)
    assert found.tokenizer == 0
    assert (found.total - found.batch) / GIB == pytest.approx(measured_gib, rel=0.05)


def test_state_and_weights_are_exact() -> None:
    recipe = load("edge_posttrain", "parallel.tensor=1", "ema.rates=[0.1, 0.05]")
    base, control = 7_236_208_640, 893_497_120
    found = gpu_memory(recipe)
    assert found.weights == 2 * (base + control)
    assert found.optimizer == 12 * control
    assert found.averages == 2 * 4 * control
    assert found.gathered_weights == 0


def test_tensor_ranks_share_what_the_networks_split() -> None:
    """The parameters that the count takes for split are those that a split checkpoint has in pieces."""
    import torch

    from worldtune.parallel.axes import split_dim
    from worldtune.transfer1.network import BaseNetwork

    config = load("demo_edge_posttrain").network.base
    with torch.device("meta"):
        network = BaseNetwork(config)
    split = sum(value.numel() for name, value in network.named_parameters() if split_dim(name) is not None)
    assert split_parameters(config, config.num_blocks) == split


def test_what_each_key_does() -> None:
    one = load("edge_posttrain_80gb")

    def of(*overrides: str) -> GpuMemory:
        return gpu_memory(load("edge_posttrain_80gb", *overrides))

    plain = gpu_memory(one)
    spread = of("parallel.data=4", "training.global_batch_size=4", "parallel.shard=both")
    assert spread.optimizer == pytest.approx(plain.optimizer / 4)
    assert spread.weights == pytest.approx(plain.weights / 4)
    assert spread.gathered_weights > 0
    based = of("parallel.data=4", "training.global_batch_size=4", "parallel.shard=base")
    assert based.optimizer == plain.optimizer
    assert spread.weights < based.weights < plain.weights
    # Sums of the first micro-step lie beside the activations of the second.
    accumulated = of("training.gradient_accumulation=2", "training.global_batch_size=2")
    assert accumulated.gradients == 4 * 893_497_120
    assert of("parallel.context=2").activations == pytest.approx(plain.activations / 2)
    assert of("parallel.recompute=nothing", "parallel.recompute_less=0").activations > 5 * plain.activations
    ahead = of("parallel.encode_ahead=true")
    assert ahead.tokenizer > plain.tokenizer
    assert ahead.batch == 2 * plain.batch
    assert of("data.cache_latents=true").batch == plain.batch / 2
    whole = of("parallel.tensor=2", "parallel.sequence=false")
    assert whole.activations > of("parallel.tensor=2").activations


def test_main_memory_has_processes_loaders_and_a_checkpoint() -> None:
    found = host_memory(load("edge_posttrain"))
    # Eight ranks: what they split of the state once, what each has whole eight times.
    assert 16 * 893_497_120 < found.staging < 8 * 16 * 893_497_120
    assert found.total == found.processes + found.staging + found.loaders
    fewer: dict[str, Any] = {"data.num_workers": 2}
    assert host_memory(load("edge_posttrain", *(f"{key}={value}" for key, value in fewer.items()))).loaders == (
        found.loaders / 4
    )
    # Both nodes of a run of sixteen take as much as the one of a run of eight.
    twice = load("edge_posttrain", "parallel.data=2", "training.global_batch_size=2")
    assert host_memory(twice) == found


@pytest.mark.parametrize("name", RECIPES)
def test_parts_are_there_for_every_recipe(name: str) -> None:
    found = gpu_memory(load(name)).in_gib()
    parts = [value for part, value in found.items() if part != "total"]
    assert found["total"] == pytest.approx(sum(parts), abs=1e-3)
    assert found["weights"] > 0
    assert found["activations"] > 0


def test_each_control_is_one_more_video_to_hold() -> None:
    one, two = load("demo_edge_posttrain"), load("demo_edge_posttrain", "control.also=[vis]")
    assert gpu_memory(two).batch == pytest.approx(1.5 * gpu_memory(one).batch)
    cached = [load("demo_edge_posttrain", "data.cache_latents=true", *more) for more in ([], ["control.also=[vis]"])]
    assert gpu_memory(cached[1]).batch == 2 * gpu_memory(cached[0]).batch
    assert host_memory(two).loaders > host_memory(one).loaders
