"""The multistep sampler against a case that can be solved on paper: Gaussian data under its ideal denoiser."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from worldtune.recipe.schema import Sampling
from worldtune.transfer1.sampler import guided, initial_noise, karras_sigmas, sample

DATA_STD = 0.5
DATA_MEAN = 0.3


def ideal_denoiser(x: Tensor, sigma: float) -> Tensor:
    """The posterior mean of N(mean, std^2) data under noise of level sigma."""
    return (DATA_STD**2 * x + sigma**2 * DATA_MEAN) / (DATA_STD**2 + sigma**2)


def exact_end(noise: Tensor, config: Sampling) -> Tensor:
    """Where the probability-flow ODE takes the noise, then one ideal denoising at the smallest level."""

    def spread(sigma: float) -> float:
        return math.sqrt(DATA_STD**2 + sigma**2)

    at_min = DATA_MEAN + (noise * config.sigma_max - DATA_MEAN) * spread(config.sigma_min) / spread(config.sigma_max)
    return ideal_denoiser(at_min, config.sigma_min)


def test_noise_levels_follow_karras() -> None:
    sigmas = karras_sigmas(35, sigma_min=0.002, sigma_max=80.0)
    assert len(sigmas) == 36
    assert sigmas[0] == pytest.approx(80.0)
    assert sigmas[-1] == pytest.approx(0.002)
    assert all(high > low for high, low in itertools.pairwise(sigmas))
    middle = (80 ** (1 / 7) + 10 / 35 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas[10] == pytest.approx(middle)


def test_converges_to_the_exact_trajectory_at_second_order() -> None:
    noise = initial_noise((4, 8), seed=3)
    errors = []
    for num_steps in (20, 40, 80):
        config = Sampling(num_steps=num_steps)
        errors.append(float((sample(ideal_denoiser, noise, config) - exact_end(noise, config)).abs().max()))
    assert errors[0] < 0.1
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3.3


def test_samples_have_the_distribution_of_the_data() -> None:
    drawn = sample(ideal_denoiser, initial_noise((20_000,), seed=0), Sampling())
    assert float(drawn.mean()) == pytest.approx(DATA_MEAN, abs=0.02)
    assert float(drawn.std()) == pytest.approx(DATA_STD, abs=0.02)


def test_each_step_calls_the_denoiser_once_and_the_state_stays_float64() -> None:
    seen: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        assert x.dtype == torch.float64
        seen.append(sigma)
        return ideal_denoiser(x, sigma).float()

    drawn = sample(denoise, initial_noise((2, 3), seed=1), Sampling(num_steps=5))
    assert drawn.dtype == torch.float64
    assert seen == pytest.approx(karras_sigmas(5, sigma_min=0.002, sigma_max=80.0))


def test_guidance_extrapolates_from_the_conditional_prediction() -> None:
    denoise = guided(lambda x, sigma: x + 1, lambda x, sigma: x - 1, 7.0)
    assert float(denoise(torch.zeros(()), 1.0)) == 15.0


def test_no_guidance_never_calls_the_unconditional_denoiser() -> None:
    def refuse(x: Tensor, sigma: float) -> Tensor:
        raise AssertionError("called")

    denoise = guided(lambda x, sigma: x, refuse, 0.0)
    assert float(denoise(torch.ones(()), 1.0)) == 1.0


def test_does_not_touch_the_global_generators() -> None:
    before = torch.random.get_rng_state()
    sample(ideal_denoiser, initial_noise((2,), seed=1), Sampling(num_steps=3))
    assert torch.equal(before, torch.random.get_rng_state())
