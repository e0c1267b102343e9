"""Schedule, clipping, AdamW on masters and the power-function average against numpy in float64, from the formulas."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from worldtune.recipe.schema import Optimizer, Schedule
from worldtune.training.ema import PowerEma, decay, exponent
from worldtune.training.gradients import clip
from worldtune.training.optimizer import MasterAdamW, learning_rate_factor

Array = NDArray[np.float64]
shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3)
seeds = st.integers(0, 2**31)
repeatable = settings(deadline=None, derandomize=True, max_examples=50)


@repeatable
@given(st.integers(1, 10_000), st.floats(1e-8, 1.0), st.integers(0, 20_000))
def test_warm_up(warmup_steps: int, start: float, step: int) -> None:
    """From the start factor to 1 on a straight line, then constant."""
    expected = np.interp(step, [0, warmup_steps], [start, 1.0])
    config = Schedule(warmup_steps=warmup_steps, warmup_start_factor=start)
    np.testing.assert_allclose(learning_rate_factor(step, config), expected, rtol=1e-12)


@repeatable
@given(st.floats(0.01, 0.28))
def test_ema_exponent(rate: float) -> None:
    """It is the only positive root of its polynomial, found by halving; the width of such an average is the rate."""

    def polynomial(gamma: float) -> float:
        return gamma**3 + 7 * gamma**2 + (16 - rate**-2) * gamma + 12 - rate**-2

    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if polynomial(middle) < 0 else (low, middle)
    np.testing.assert_allclose(exponent(rate), low, rtol=1e-8)
    # The standard deviation of t under a density that grows as t^gamma on [0, 1].
    gamma = exponent(rate)
    width = np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    np.testing.assert_allclose(width, rate, rtol=1e-8)


@repeatable
@given(st.floats(0.02, 0.28), st.integers(1, 30), seeds)
def test_power_average(rate: float, num_steps: int, seed: int) -> None:
    """beta_i = (1 - 1 / (i + 1))^(gamma + 1), from the rounded weights, in float32."""
    rng = np.random.default_rng(seed)
    live = {"w": torch.zeros(2, 3, dtype=torch.bfloat16)}
    ema = PowerEma(live, (rate,))
    expected = np.zeros((2, 3))
    for step in range(num_steps):
        live["w"].copy_(torch.from_numpy(rng.standard_normal((2, 3))))
        beta = (1 - 1 / (step + 1)) ** (exponent(rate) + 1)
        expected = beta * expected + (1 - beta) * live["w"].double().numpy()
        ema.update(step)
    assert decay(rate, 0) == 0.0
    np.testing.assert_allclose(ema.averages[rate]["w"].numpy(), expected, rtol=1e-5, atol=1e-6)


@repeatable
@given(
    shapes,
    seeds,
    st.integers(1, 6),
    st.floats(1e-5, 1e-1),
    st.floats(0.0, 0.5),
    st.floats(0.01, 100.0),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_clipped_master_updates(
    sizes: list[tuple[int, int]],
    seed: int,
    num_steps: int,
    rate: float,
    weight_decay: float,
    gradient_scale: float,
    dtype: torch.dtype,
) -> None:
    """AdamW with bias correction on float32 masters of gradients whose global norm is at most 1."""
    rng = np.random.default_rng(seed)
    beta1, beta2 = 0.9, 0.99
    config = Optimizer(learning_rate=rate, weight_decay=weight_decay, betas=(beta1, beta2))
    live = {
        str(index): nn.Parameter(torch.from_numpy(rng.standard_normal(size)).to(dtype))
        for index, size in enumerate(sizes)
    }
    weights: dict[str, Array] = {name: parameter.detach().double().numpy() for name, parameter in live.items()}
    first = {name: np.zeros_like(weight) for name, weight in weights.items()}
    second = {name: np.zeros_like(weight) for name, weight in weights.items()}
    optimizer = MasterAdamW(live, config)
    for step in range(1, num_steps + 1):
        gradients = {
            name: torch.from_numpy((gradient_scale * rng.standard_normal(weight.shape)).astype(np.float32))
            for name, weight in weights.items()
        }
        exact = {name: gradient.double().numpy() for name, gradient in gradients.items()}
        norm = float(np.sqrt(sum((gradient**2).sum() for gradient in exact.values())))
        step_rate = rate * step / num_steps
        for name, gradient in exact.items():
            clipped = gradient * min(1.0, 1.0 / (norm + 1e-6))
            first[name] = beta1 * first[name] + (1 - beta1) * clipped
            second[name] = beta2 * second[name] + (1 - beta2) * clipped**2
            mean, variance = first[name] / (1 - beta1**step), second[name] / (1 - beta2**step)
            weights[name] = weights[name] * (1 - step_rate * weight_decay)
            weights[name] = weights[name] - step_rate * mean / (np.sqrt(variance) + 1e-10)
        clip(gradients, norm, config.max_grad_norm)
        for name, gradient in gradients.items():
            # The update hardly depends on their size.
            np.testing.assert_allclose(gradient.numpy(), exact[name] * min(1.0, 1.0 / (norm + 1e-6)), rtol=1e-5)
        optimizer.step(gradients, step_rate)
    for name, weight in weights.items():
        np.testing.assert_allclose(optimizer.masters[name].numpy(), weight, rtol=2e-5, atol=2e-5 * rate + 1e-6)
        assert torch.equal(live[name], optimizer.masters[name].to(dtype))
