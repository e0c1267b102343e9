"""The objective against numpy in float64, written from the formulas of spec/transfer1-training.md 2.2 to 2.8."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from worldtune.recipe.schema import Objective
from worldtune.training.random import generator
from worldtune.transfer1.objective import Draws, add_noise, draw, draw_kept_hints, edm_loss, loss_weight, scaling

Array = NDArray[np.float64]
SIGMA_DATA = 0.5
repeatable = settings(deadline=None, derandomize=True)

sigmas = st.floats(1e-3, 300.0)
seeds = st.integers(0, 2**31)
shapes = st.tuples(*(st.integers(1, high) for high in (3, 2, 5, 4, 4)))
"""B, C, T, H, W."""


def normals(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def float32(values: Array) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def assert_close(found: Tensor, expected: Array, relative: float = 2e-5) -> None:
    """Compare as the golden numbers are: by the norm and by the largest element of the whole tensor."""
    difference = found.double().numpy() - expected
    assert np.linalg.norm(difference) <= relative * np.linalg.norm(expected) + 1e-12
    assert np.abs(difference).max() <= relative * np.abs(expected).max() + 1e-12


def over_elements(values_b: Array) -> Array:
    return values_b.reshape(-1, 1, 1, 1, 1)


@repeatable
@given(st.lists(sigmas, min_size=1, max_size=6), st.floats(0.1, 2.0))
def test_preconditioning(sigma: list[float], sigma_data: float) -> None:
    sigma_b = np.asarray(sigma, np.float32).astype(np.float64)
    total = sigma_b**2 + sigma_data**2
    found = scaling(float32(sigma_b), sigma_data)
    assert_close(found.c_skip.flatten(), sigma_data**2 / total)
    assert_close(found.c_out.flatten(), sigma_b * sigma_data / np.sqrt(total))
    assert_close(found.c_in.flatten(), 1 / np.sqrt(total))
    np.testing.assert_allclose(found.c_noise.numpy(), np.log(sigma_b) / 4, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        loss_weight(float32(sigma_b), sigma_data).numpy(), total / (sigma_b * sigma_data) ** 2, rtol=1e-5
    )


@repeatable
@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=4, unique=True),
    seeds,
    st.floats(-2.0, 2.0),
    st.floats(0.1, 2.0),
    st.sampled_from([(16, 1), (8, 1), (24, 3), (9, 3), (1, 1)]),
    st.booleans(),
)
def test_noise_levels(
    ordinals: list[int], seed: int, mean: float, deviation: float, frames: tuple[int, int], adjust: bool
) -> None:
    """ln sigma is normal; the video adjustment multiplies sigma by the root of one view's latent frames."""
    num_frames, num_views = frames
    config = Objective(log_sigma_mean=mean, log_sigma_std=deviation, adjust_video_noise=adjust)
    found = draw(ordinals, (1, num_frames, 1, 1), seed=seed, config=config, num_views=num_views)
    standard = np.asarray([torch.randn((), generator=generator(seed, "sigma", one)).item() for one in ordinals])
    expected = np.exp(mean + deviation * standard) * (np.sqrt(num_frames // num_views) if adjust else 1.0)
    np.testing.assert_allclose(found.sigma_b.numpy(), expected, rtol=1e-5)
    own = np.asarray([torch.randn((), generator=generator(seed, "condition_sigma", one)).item() for one in ordinals])
    np.testing.assert_allclose(found.condition_sigma_b.numpy(), np.exp(-3.0 + 2.0 * own), rtol=1e-5)


@st.composite
def problems(drawing: Any) -> dict[str, Array]:
    """Clean latents, noise, noise levels, given frames and a prediction of one shape."""
    shape = drawing(shapes)
    batch, _, frames, _, _ = shape
    seed = drawing(seeds)
    levels = st.lists(sigmas, min_size=batch, max_size=batch)
    counts = drawing(st.lists(st.integers(0, min(2, frames)), min_size=batch, max_size=batch))
    values = {
        "x0": normals(seed, *shape) * SIGMA_DATA,
        "noise": normals(seed + 1, *shape),
        "condition_noise": normals(seed + 2, *shape),
        "output": normals(seed + 3, *shape),
        "sigma": np.asarray(drawing(levels)),
        "condition_sigma": np.asarray(drawing(levels)),
        "log_variance": np.asarray(drawing(st.lists(st.floats(-3.0, 3.0), min_size=batch, max_size=batch))),
        "indicator": np.asarray([[float(frame < count) for frame in range(frames)] for count in counts]),
    }
    # What both sides compute from is what float32 holds.
    return {name: value.astype(np.float32).astype(np.float64) for name, value in values.items()}


def network_input(problem: dict[str, Array]) -> Array:
    """x = I a + (1 - I) x_t, with a = (x0 + n sigma_a) c_in(sigma_a) / c_in(sigma)."""
    sigma, own = over_elements(problem["sigma"]), over_elements(problem["condition_sigma"])
    noisy = problem["x0"] + sigma * problem["noise"]
    rescaled = np.sqrt((sigma**2 + SIGMA_DATA**2) / (own**2 + SIGMA_DATA**2))
    corrupted = (problem["x0"] + own * problem["condition_noise"]) * rescaled
    return np.where(problem["indicator"][:, None, :, None, None] == 1, corrupted, noisy)


@repeatable
@given(problems())
def test_noise_and_corruption(problem: dict[str, Array]) -> None:
    draws = Draws(
        sigma_b=float32(problem["sigma"]),
        noise_bcthw=float32(problem["noise"]),
        indicator_bt=float32(problem["indicator"]),
        condition_sigma_b=float32(problem["condition_sigma"]),
        condition_noise_bcthw=float32(problem["condition_noise"]),
        keep_text_b=torch.ones(len(problem["sigma"])),
    )
    found = add_noise(float32(problem["x0"]), draws, sigma_data=SIGMA_DATA)
    expected = network_input(problem)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


@repeatable
@given(problems(), st.booleans(), st.floats(0.25, 4.0))
def test_loss_and_its_gradient(problem: dict[str, Array], kendall: bool, scale: float) -> None:
    """The mean of e exp(-u) + u, with e = lambda (x0 - prediction)^2 and e = 0 where a frame is given."""
    sigma = problem["sigma"]
    total = over_elements(sigma**2 + SIGMA_DATA**2)
    noisy = network_input(problem)
    predicted = noisy * SIGMA_DATA**2 / total + problem["output"] * over_elements(sigma) * SIGMA_DATA / np.sqrt(total)
    predicted = predicted.astype(np.float32).astype(np.float64)
    free = 1 - problem["indicator"][:, None, :, None, None]
    weight = total / over_elements(sigma * SIGMA_DATA) ** 2
    error = weight * (problem["x0"] - np.where(free == 0, problem["x0"], predicted)) ** 2
    uncertainty = over_elements(problem["log_variance"]) if kendall else np.zeros_like(total)
    expected = scale * np.mean(error * np.exp(-uncertainty) + uncertainty)
    slope = scale * free * weight * 2 * (predicted - problem["x0"]) * np.exp(-uncertainty) / error.size

    prediction = float32(predicted).requires_grad_()
    found = edm_loss(
        prediction,
        float32(problem["x0"]),
        sigma_b=float32(sigma),
        indicator_bt=float32(problem["indicator"]),
        log_variance_b=float32(problem["log_variance"]) if kendall else None,
        config=Objective(sigma_data=SIGMA_DATA, loss_scale=scale),
    )
    found.loss.backward()
    # Terms of both signs may cancel in the sum.
    magnitude = scale * np.mean(np.abs(error * np.exp(-uncertainty)) + np.abs(uncertainty))
    assert abs(found.loss.item() - expected) <= 2e-5 * magnitude + 1e-12
    np.testing.assert_allclose(found.edm_loss.item(), error.mean(), rtol=2e-5, atol=1e-12)
    assert prediction.grad is not None
    assert_close(prediction.grad, slope)


def kept_by_rule(chances: Array, rate: float) -> Array:
    """Each of several is dropped with the rate; where all would be, the one with the largest chance is kept."""
    rows = []
    for row in chances:
        kept = [chance >= rate for chance in row]
        if not any(kept):
            kept[max(range(len(row)), key=lambda index: row[index])] = True
        rows.append(kept)
    return np.asarray(rows, np.float64)


@repeatable
@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=5, unique=True),
    st.integers(1, 8),
    seeds,
    st.one_of(st.just(0.0), st.just(1.0), st.floats(0.0, 1.0)),
)
def test_dropped_hints(ordinals: list[int], num_hints: int, seed: int, rate: float) -> None:
    config = Objective(hint_dropout_rate=rate)
    found = draw_kept_hints(ordinals, num_hints, seed=seed, config=config).numpy()
    chances = [
        torch.rand(num_hints, generator=generator(seed, "hint_dropout", one), dtype=torch.float64).numpy()
        for one in ordinals
    ]
    assert np.array_equal(found, kept_by_rule(np.stack(chances), rate))
    assert (found.sum(axis=1) >= 1).all()
    for row, ordinal in zip(found, ordinals, strict=True):
        alone = draw_kept_hints([ordinal], num_hints, seed=seed, config=config)
        assert np.array_equal(alone[0].numpy(), row)
    if rate == 0.0 or num_hints == 1:
        assert found.all()
    if rate == 1.0:
        assert (found.sum(axis=1) == 1).all()


@pytest.mark.parametrize("num_hints", [2, 3, 4])
def test_how_often_hints_are_dropped(num_hints: int) -> None:
    """Of k, one is dropped with p - p^k / k, and two with p^2 - 2 p^k / k: where all would go, one of them stays."""
    rate, samples = 0.3, 4000
    kept = draw_kept_hints(range(samples), num_hints, seed=3, config=Objective(hint_dropout_rate=rate)).numpy()
    dropped = 1 - kept
    four_deviations = 4 * np.sqrt(rate * (1 - rate) / samples)
    all_dropped = rate**num_hints / num_hints
    np.testing.assert_allclose(dropped.mean(axis=0), rate - all_dropped, atol=four_deviations)
    pairs = (dropped.T @ dropped / samples)[np.triu_indices(num_hints, 1)]
    np.testing.assert_allclose(pairs, rate**2 - 2 * all_dropped, atol=four_deviations)
