import pytest
import torch
from torch import nn

from worldtune.recipe.schema import Optimizer, Schedule
from worldtune.training.ema import PowerEma, decay, exponent
from worldtune.training.optimizer import MasterAdamW, learning_rate_factor


def parameters(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    torch.manual_seed(2)
    return {name: nn.Parameter(torch.randn(4, 3).to(dtype)) for name in ("a", "b", "dead")}


def gradients(step: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(100 + step)
    return {name: torch.randn(4, 3) for name in ("a", "b")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_adamw_on_float32_masters(dtype: torch.dtype) -> None:
    config = Optimizer(learning_rate=0.01)
    live = parameters(dtype)
    initial = {name: parameter.detach().clone() for name, parameter in live.items()}
    reference = {name: nn.Parameter(tensor.float()) for name, tensor in initial.items()}
    adamw = torch.optim.AdamW(reference.values(), lr=1.0, betas=config.betas, eps=config.eps, weight_decay=0.1)
    ours = MasterAdamW(live, config)
    for step in range(6):
        rate = 0.01 * (step + 1)
        for name, gradient in gradients(step).items():
            reference[name].grad = gradient
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
        ours.step(gradients(step), rate)
    for name in live:
        assert torch.equal(ours.masters[name], reference[name])
        assert torch.equal(live[name], reference[name].to(dtype))
    assert torch.equal(live["dead"], initial["dead"])
    assert ours.update_counts() == {"a": 6, "b": 6, "dead": 0}


def test_small_updates_are_not_lost_to_rounding() -> None:
    live = {"a": nn.Parameter(torch.ones(1, dtype=torch.bfloat16))}
    optimizer = MasterAdamW(live, Optimizer(weight_decay=0.0))
    for _ in range(100):
        optimizer.step({"a": torch.ones(1)}, 1e-4)
    assert live["a"].item() == pytest.approx(0.99, abs=2e-3)


def test_warm_up() -> None:
    config = Schedule(warmup_steps=2500)
    assert learning_rate_factor(0, config) == 1e-6
    assert learning_rate_factor(1250, config) == pytest.approx(0.5 + 0.5e-6)
    assert learning_rate_factor(2500, config) == learning_rate_factor(10**9, config) == 1.0
    assert learning_rate_factor(0, Schedule(warmup_steps=0)) == 1.0


@pytest.mark.parametrize(("rate", "expected"), [(0.1, 6.937), (0.05, 16.97), (0.025, 36.99)])
def test_ema_exponent(rate: float, expected: float) -> None:
    assert exponent(rate) == pytest.approx(expected, rel=5e-4)
    assert decay(rate, 0) == 0.0
    assert decay(rate, 9) == pytest.approx(0.9 ** (exponent(rate) + 1))


def test_ema_starts_at_the_first_updated_weights() -> None:
    live = {"a": torch.tensor([1.0], dtype=torch.bfloat16)}
    ema = PowerEma(live, (0.1, 0.05))
    live["a"].fill_(2.0)
    ema.update(0)
    assert all(average["a"].item() == 2.0 and average["a"].dtype == torch.float32 for average in ema.averages.values())
    live["a"].fill_(4.0)
    ema.update(1)
    for rate, average in ema.averages.items():
        weight = 0.5 ** (exponent(rate) + 1)
        assert average["a"].item() == pytest.approx(2.0 * weight + 4.0 * (1 - weight))
