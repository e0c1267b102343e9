from pathlib import Path

import pytest

from worldtune.recipe.estimate import base_parameters, control_parameters, estimate
from worldtune.recipe.load import load_recipe
from worldtune.recipe.schema import Recipe

REPOSITORY = Path(__file__).parents[2]


def load(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides, REPOSITORY)


@pytest.mark.parametrize(
    ("name", "base", "control"),
    [
        ("edge_posttrain", 7_236_208_640, 893_497_120),
        ("av_hdmap_121frames_pretrain", 7_236_192_256, 891_645_728),
    ],
)
def test_parameters_are_those_of_the_specification(name: str, base: int, control: int) -> None:
    found = estimate(load(name))
    assert (found.base_parameters, found.control_parameters) == (base, control)


@pytest.mark.parametrize(
    "name", ["demo_edge_pretrain", "demo_av_lidar_57frames_pretrain", "demo_av_multiview_t2w_hdmap_pretrain"]
)
def test_parameters_are_those_of_the_networks(name: str) -> None:
    import torch

    from worldtune.transfer1.control import ControlNetwork
    from worldtune.transfer1.network import BaseNetwork

    network = load(name).network
    with torch.device("meta"):
        base, control = BaseNetwork(network.base), ControlNetwork(network.control)
    assert base_parameters(network.base) == sum(value.numel() for value in base.parameters())
    assert control_parameters(network.control) == sum(value.numel() for value in control.parameters())


def test_a_step_of_the_published_recipe_is_counted_as_measured() -> None:
    """121 frames at 704x1280 are 56,320 tokens and 6.47e15 operations a step (counted by hand from the network)."""
    found = estimate(load("edge_posttrain"))
    assert found.tokens == 56_320
    assert found.step_flop == pytest.approx(6.47e15, rel=5e-3)


def state_bytes(recipe: Recipe) -> int:
    """Count a checkpoint as the trainer does before it writes one."""
    import torch

    from worldtune.training.ema import PowerEma
    from worldtune.training.optimizer import MasterAdamW
    from worldtune.training.sharding import trainable_parameters
    from worldtune.training.state import TrainState
    from worldtune.transfer1.control import ControlNetwork

    with torch.device("meta"):
        parameters = trainable_parameters(ControlNetwork(recipe.network.control).to(torch.bfloat16))
    optimizer = MasterAdamW(parameters, recipe.optimizer)
    return TrainState(parameters, optimizer, PowerEma(optimizer.live, recipe.ema.rates)).num_bytes()


def test_disk_grows_with_what_is_kept() -> None:
    less, more = estimate(load("edge_posttrain")), estimate(load("edge_posttrain", "saving.keep_last=5"))
    assert more.attempt_bytes - less.attempt_bytes == 3 * 893_497_120 * 16
    assert more.attempt_bytes - less.attempt_bytes == 3 * state_bytes(load("edge_posttrain"))
    assert estimate(load("edge_pretrain")).weights_bytes == less.weights_bytes - 4 * 893_497_120
    start = ('checkpoints.control=""', "checkpoints.init_from=results/edge_pretrain")
    assert estimate(load("edge_posttrain", *start)).weights_bytes == less.weights_bytes
