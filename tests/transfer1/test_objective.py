"""The algebra of the EDM objective, against the reference numbers and against its own definition."""

import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from worldtune.recipe.schema import Objective
from worldtune.transfer1.objective import add_noise, draw, edm_loss, given_frames, loss_weight, scaling

SHAPE = (16, 3, 4, 6)


def golden_files(pattern: str) -> dict[str, Path]:
    """Find reference numbers by name: the repository's own copy, else in the folder that is named or beside it."""
    tests = Path(__file__).parents[1]
    folders = [Path(os.environ.get("WORLDTUNE_GOLDEN", tests.parents[1] / "shared" / "golden")), tests / "golden"]
    return {path.name: path for folder in folders for path in sorted((folder / "transfer1").glob(pattern))}


def golden(name: str) -> dict[str, Tensor]:
    return load_file(golden_files(name)[name])


def cases_with_a_denoiser() -> list[str]:
    """The cases that hold numbers of the denoiser's algebra; one is the repository's own."""
    found = golden_files("case_*.io.safetensors")
    return sorted(name for name, path in found.items() if "denoise/sigma" in safe_open(path, "pt").keys())  # noqa: SIM118


def close(found: Tensor, expected: Tensor) -> bool:
    difference, reference = (found - expected).double(), expected.double()
    error = max(difference.norm() / reference.norm(), difference.abs().max() / reference.abs().max())
    return bool(error < 1e-6)


@pytest.mark.parametrize("name", cases_with_a_denoiser() or ["case_a.io.safetensors"])
def test_denoiser_algebra_equals_the_reference(name: str) -> None:
    reference = golden(name)
    sigma = reference["denoise/sigma"]
    x_t, target = reference["in/x"], reference["in/target"]
    terms = scaling(sigma, 0.5)
    prediction = terms.c_skip * x_t + terms.c_out * reference["denoise/net_out"]
    assert close(terms.c_noise, reference["denoise/c_noise"])
    assert close(prediction, reference["denoise/x0_pred"])
    assert close(loss_weight(sigma, 0.5), reference["denoise/weights_per_sigma"].reshape(-1))
    losses = edm_loss(
        reference["denoise/x0_pred"],
        target,
        sigma_b=sigma,
        indicator_bt=torch.zeros(1, x_t.shape[2]),
        log_variance_b=reference["denoise/logvar"].reshape(-1),
        config=Objective(),
    )
    assert close(losses.edm_loss, reference["denoise/edm_loss_mean"])
    assert close(losses.loss, reference["denoise/kendall_loss_mean"])


def test_preconditioning_equals_the_primitives() -> None:
    reference = golden("primitives.safetensors")
    terms = scaling(reference["edm/sigma"].float(), 0.5)
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        assert close(getattr(terms, name).flatten(), reference[f"edm/{name}"].flatten().float()), name


def test_draws_depend_on_nothing_but_seed_and_ordinal() -> None:
    together = draw([4, 5, 6, 7], SHAPE, seed=11, config=Objective())
    alone = draw([6], SHAPE, seed=11, config=Objective())
    torch.manual_seed(0)
    again = draw([7, 6], SHAPE, seed=11, config=Objective())
    for name, value in vars(together).items():
        assert torch.equal(value[2:3], getattr(alone, name)), name
        assert torch.equal(value[2], getattr(again, name)[1]), name
    other = draw([6], SHAPE, seed=12, config=Objective())
    assert not torch.equal(alone.noise_bcthw, other.noise_bcthw)


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw([1], SHAPE, seed=1, config=Objective())
    assert torch.equal(before, torch.random.get_rng_state())


def test_distributions_of_the_draws() -> None:
    draws = draw(range(4000), (1, 3, 1, 1), seed=1, config=Objective())
    log_sigma = (draws.sigma_b / 3**0.5).log()
    assert float(log_sigma.mean()) == pytest.approx(0.0, abs=0.06)
    assert float(log_sigma.std()) == pytest.approx(1.0, abs=0.04)
    log_condition = draws.condition_sigma_b.log()
    assert float(log_condition.mean()) == pytest.approx(-3.0, abs=0.12)
    assert float(log_condition.std()) == pytest.approx(2.0, abs=0.08)
    assert float(draws.keep_text_b.mean()) == pytest.approx(0.8, abs=0.03)
    counts = draws.indicator_bt.sum(1)
    assert torch.equal(draws.indicator_bt[:, 2], torch.zeros(4000))
    for number in (0, 1, 2):
        assert float((counts == number).float().mean()) == pytest.approx(1 / 3, abs=0.04)
    # The purposes have streams of their own.
    assert abs(float(torch.corrcoef(torch.stack([log_sigma, log_condition]))[0, 1])) < 0.06


def test_sigma_is_not_scaled_without_the_video_adjustment() -> None:
    adjusted = draw([3], SHAPE, seed=1, config=Objective())
    plain = draw([3], SHAPE, seed=1, config=Objective(adjust_video_noise=False))
    assert float(adjusted.sigma_b) == pytest.approx(float(plain.sigma_b) * 3**0.5)


def test_given_frames_reach_the_network_at_their_own_level_and_cost_nothing() -> None:
    config = Objective()
    ordinal = next(i for i in range(50) if draw([i], SHAPE, seed=1, config=config).indicator_bt.sum() == 2)
    draws = draw([ordinal], SHAPE, seed=1, config=config)
    x0 = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1)) * 0.5
    noisy = add_noise(x0, draws, sigma_data=0.5)
    seen = scaling(draws.sigma_b, 0.5).c_in * noisy
    own = x0 + draws.condition_sigma_b * draws.condition_noise_bcthw
    torch.testing.assert_close(seen[:, :, :2], (scaling(draws.condition_sigma_b, 0.5).c_in * own)[:, :, :2])
    torch.testing.assert_close(noisy[:, :, 2:], (x0 + draws.sigma_b * draws.noise_bcthw)[:, :, 2:])

    prediction = x0.clone()
    prediction[:, :, :2] += 100.0
    terms = {"sigma_b": draws.sigma_b, "indicator_bt": draws.indicator_bt, "config": config}
    free = edm_loss(prediction, x0, log_variance_b=None, **terms)  # type: ignore[arg-type]
    assert float(free.loss) == 0.0
    # Given frames still carry the uncertainty term and count in the mean.
    weighted = edm_loss(prediction, x0, log_variance_b=torch.tensor([0.7]), **terms)  # type: ignore[arg-type]
    assert float(weighted.loss) == pytest.approx(0.7)
    prediction[:, :, 2] += 1.0
    counted = edm_loss(prediction, x0, log_variance_b=None, **terms)  # type: ignore[arg-type]
    assert float(counted.loss) == pytest.approx(float(loss_weight(draws.sigma_b, 0.5)) / 3, rel=1e-5)


def test_the_gradient_ignores_given_frames() -> None:
    x0 = torch.zeros(1, 1, 2, 1, 1)
    prediction = torch.ones_like(x0, requires_grad=True)
    losses = edm_loss(
        prediction,
        x0,
        sigma_b=torch.ones(1),
        indicator_bt=torch.tensor([[1.0, 0.0]]),
        log_variance_b=torch.zeros(1),
        config=Objective(),
    )
    losses.loss.backward()
    assert prediction.grad is not None
    assert float(prediction.grad[0, 0, 0, 0, 0]) == 0.0
    assert float(prediction.grad[0, 0, 1, 0, 0]) > 0.0


def test_of_several_views_the_main_one_is_given_and_the_first_frames_of_all() -> None:
    """Nine latent frames of three views."""
    given = partial(given_frames, 9, num_views=3)
    assert given(0, config=Objective()).tolist() == [0] * 9
    assert given(1, config=Objective()).tolist() == [1, 0, 0] * 3
    assert given(0, config=Objective(main_view_given=True)).tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert given(2, config=Objective(main_view_given=True)).tolist() == [1, 1, 1, 1, 1, 0, 1, 1, 0]


def test_the_video_adjustment_counts_the_frames_of_one_view() -> None:
    """Eight latent frames a view: sigma is scaled by their root, however many views there are."""
    config = Objective()
    one = draw(range(4), (16, 8, 2, 2), seed=3, config=config)
    three = draw(range(4), (16, 24, 2, 2), seed=3, config=config, num_views=3)
    assert torch.equal(one.sigma_b, three.sigma_b)
    plain = draw(range(4), (16, 8, 2, 2), seed=3, config=Objective(adjust_video_noise=False))
    assert torch.allclose(one.sigma_b / plain.sigma_b, torch.full((4,), math.sqrt(8)))


def test_the_first_frames_are_given_in_every_view_alike() -> None:
    config = Objective(max_condition_frames=2, main_view_given=True)
    indicator = draw(range(60), (16, 9, 2, 2), seed=0, config=config, num_views=3).indicator_bt.unflatten(1, (3, 3))
    assert indicator[:, 0].eq(1).all()
    assert torch.equal(indicator[:, 1], indicator[:, 2])
    assert {int(count) for count in indicator[:, 1].sum(dim=1)} == {0, 1, 2}


@pytest.mark.parametrize("sigma", [0.05, 0.5, 4.0, 40.0])
@pytest.mark.parametrize(("num_given", "expected"), [(0, 1.0), (4, 2 / 3)])
def test_an_output_of_zero_leaves_one_less_the_share_of_given_frames(
    sigma: float, num_given: int, expected: float
) -> None:
    # What health.first_loss_max stands for; an output that knows nothing of its target leaves its variance besides.
    config = Objective()
    stream = torch.Generator().manual_seed(3)
    x0, noise, output = (torch.randn((1, 16, 12, 24, 24), generator=stream) for _ in range(3))
    x0 = config.sigma_data * x0
    sigma_b = torch.tensor([sigma])
    terms = scaling(sigma_b, config.sigma_data)
    indicator_bt = given_frames(12, num_given, config=config)[None]
    for size in (0.0, 0.6):
        loss = edm_loss(
            terms.c_skip * (x0 + sigma * noise) + terms.c_out * size * output,
            x0,
            sigma_b=sigma_b,
            indicator_bt=indicator_bt,
            log_variance_b=None,
            config=config,
        )
        assert loss.edm_loss.item() == pytest.approx(expected * (1 + size**2), rel=0.02)
