"""Drawing from the model: the second-order multistep sampler of spec/transfer1-training.md 2.9.

The state is float64; only the denoiser works in the network's precision. Nothing here touches the generators of the
training.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worldtune.recipe.schema import Sampling
from worldtune.transfer1.conditions import Conditions
from worldtune.transfer1.objective import replace_given_frames

KARRAS_RHO = 7.0
"""Exponent of the spacing of noise levels."""
GIVEN_SIGMA = 0.001
"""Noise level of given frames."""

Denoiser = Callable[[Tensor, float], Tensor]
"""Maps noisy latents (float64) and their noise level to predicted clean latents of the same shape."""


class ConditionedDenoiser(Protocol):
    """What samples are drawn from: see worldtune.transfer1.denoiser.Denoiser."""

    sigma_data: float

    def __call__(self, noisy_bcthw: Tensor, sigma_b: Tensor, conditions: Conditions, /) -> Tensor:
        """Return the predicted clean latents."""
        ...


def karras_sigmas(num_steps: int, *, sigma_min: float, sigma_max: float) -> list[float]:
    """Return the `num_steps + 1` noise levels between which the sampler steps, largest first."""
    largest, smallest = sigma_max ** (1 / KARRAS_RHO), sigma_min ** (1 / KARRAS_RHO)
    return [(largest + i / num_steps * (smallest - largest)) ** KARRAS_RHO for i in range(num_steps + 1)]


def initial_noise(shape: Sequence[int], *, seed: int) -> Tensor:
    """Return unit normal noise, float64 on the CPU, from the legacy numpy stream that the original draws it from."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))


def guided(conditional: Denoiser, unconditional: Denoiser, guidance: float) -> Denoiser:
    """Return the denoiser x_c + g (x_c - x_u); at g = 0 the unconditional one is never called."""
    if guidance == 0:
        return conditional

    def denoise(x: Tensor, sigma: float) -> Tensor:
        with_text = conditional(x, sigma)
        return with_text + guidance * (with_text - unconditional(x, sigma))

    return denoise


def sample(denoise: Denoiser, noise: Tensor, config: Sampling) -> Tensor:
    """Integrate from noise to clean latents.

    The first step is Euler's, the others use the prediction of the step before; a last denoising at the smallest noise
    level gives the result.

    Args:
        denoise: predicts clean latents.
        noise: unit normal noise; scaled to the largest noise level here.
        config: number of steps and noise levels.

    Returns:
        Clean latents, float64, of the shape of `noise`.
    """
    sigmas = karras_sigmas(config.num_steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max)
    x = noise.double() * sigmas[0]
    previous: Tensor | None = None
    for step, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        current = denoise(x, sigma).double()
        if previous is None:
            x = (sigma_next / sigma) * x + (1 - sigma_next / sigma) * current
        else:
            x = _multistep(x, current, previous, sigmas[step - 1], sigma, sigma_next)
        previous = current
    return denoise(x, sigmas[-1]).double()


def _multistep(
    x: Tensor, current: Tensor, previous: Tensor, sigma_previous: float, sigma: float, sigma_next: float
) -> Tensor:
    """One second-order Adams-Bashforth step of the exponential integrator in lambda = -ln sigma."""
    h = math.log(sigma / sigma_next)
    c2 = math.log(sigma / sigma_previous) / h
    phi1 = math.expm1(-h) / -h
    phi2 = (phi1 - 1) / -h
    return math.exp(-h) * x + h * ((phi1 - phi2 / c2) * current + (phi2 / c2) * previous)


def draw_latents(
    denoiser: ConditionedDenoiser,
    conditions: Conditions,
    *,
    config: Sampling,
    given_bcthw: Tensor,
) -> Tensor:
    """Draw the latents of one clip.

    Args:
        denoiser: predicts clean latents from noisy ones, noise levels and conditions.
        conditions: control, text and the rest; its indicator says which frames are given.
        config: steps, guidance, noise levels, seed.
        given_bcthw: clean latents; only their given frames are shown to the model.

    Returns:
        Clean latents, float64, of the shape of `given_bcthw`.
    """
    device = given_bcthw.device
    given = given_bcthw.double()
    noise = initial_noise(given.shape, seed=config.seed).to(device)
    indicator_bt = conditions.indicator_bt
    condition_sigma_b = torch.full((len(given),), GIVEN_SIGMA, dtype=torch.float64, device=device)

    def denoise(x: Tensor, sigma: float, text: Tensor) -> Tensor:
        sigma_b = torch.full((len(x),), sigma, dtype=torch.float64, device=device)
        # Below their own noise level the given frames are denoised like the others.
        shown_bt = indicator_bt if sigma > GIVEN_SIGMA else torch.zeros_like(indicator_bt)
        x = replace_given_frames(
            x,
            given,
            noise,
            shown_bt,
            sigma_b=sigma_b,
            condition_sigma_b=condition_sigma_b,
            sigma_data=denoiser.sigma_data,
        )
        return denoiser(x, sigma_b, replace(conditions, text=text, indicator_bt=shown_bt))

    no_text = torch.zeros_like(conditions.text)
    with_guidance = guided(
        lambda x, sigma: denoise(x, sigma, conditions.text),
        lambda x, sigma: denoise(x, sigma, no_text),
        config.guidance,
    )
    with torch.no_grad():
        return sample(with_guidance, noise, config)
