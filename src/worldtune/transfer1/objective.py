"""The EDM objective of the Transfer1 family: noise, preconditioning, given frames, loss (spec/transfer1-training.md 2).

Shape suffixes: b batch, c latent channel, t latent frames, h, w latent height and width.

Every draw is a function of (seed, ordinal, purpose), so that it depends neither on the rank nor on the layout of the
processes nor on a restart. The algebra runs in float32 whatever the precision of the network is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldtune.recipe.schema import Objective
from worldtune.training.random import generator


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """EDM preconditioning, each float32 [B, 1, 1, 1, 1] but `c_noise` [B]."""

    c_skip: Tensor
    """Factor on the noisy latents in the prediction."""
    c_out: Tensor
    """Factor on the network's output in the prediction."""
    c_in: Tensor
    """Factor on the noisy latents at the network's entrance."""
    c_noise: Tensor
    """The network's time step."""


def scaling(sigma_b: Tensor, sigma_data: float) -> Scaling:
    """Return the preconditioning of noise levels.

    Args:
        sigma_b: noise levels, float32 [B].
        sigma_data: standard deviation of the clean latents.
    """
    sigma = sigma_b[:, None, None, None, None]
    variance = sigma.square() + sigma_data**2
    return Scaling(
        c_skip=sigma_data**2 / variance,
        c_out=sigma * sigma_data / variance.sqrt(),
        c_in=1 / variance.sqrt(),
        c_noise=sigma_b.log() / 4,
    )


def loss_weight(sigma_b: Tensor, sigma_data: float) -> Tensor:
    """Return the weight of the squared error at each noise level, [B]."""
    return (sigma_b.square() + sigma_data**2) / (sigma_b * sigma_data).square()


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance decides about a batch."""

    sigma_b: Tensor
    """Noise levels, float32 [B]."""
    noise_bcthw: Tensor
    """Unit normal noise on the latents, float32."""
    indicator_bt: Tensor
    """1 where a latent frame is given, float32 [B, T]."""
    condition_sigma_b: Tensor
    """Noise levels of the given frames, float32 [B]."""
    condition_noise_bcthw: Tensor
    """Unit normal noise on the given frames, float32."""
    keep_text_b: Tensor
    """0 where the text is dropped, else 1; float32 [B]."""

    def to(self, device: torch.device) -> "Draws":
        """Return the same draws on `device`."""
        return Draws(**{name: value.to(device) for name, value in vars(self).items()})


def draw(
    ordinals: Sequence[int], latent_shape_cthw: Sequence[int], *, seed: int, config: Objective, num_views: int = 1
) -> Draws:
    """Draw noise levels, noise, given frames and dropped texts of the samples with these ordinals, on the CPU.

    Args:
        ordinals: global sample numbers, one a sample.
        latent_shape_cthw: shape of one sample's latents, all views along time.
        seed: seed of the run.
        config: distributions.
        num_views: views that are stacked along time; the video adjustment counts the frames of one.
    """
    num_latent_frames = latent_shape_cthw[1] // num_views
    sigma_multiplier = math.sqrt(num_latent_frames) if config.adjust_video_noise else 1.0
    rows: dict[str, list[Tensor]] = {
        name: [] for name in ("sigma", "noise", "indicator", "condition_sigma", "condition_noise", "keep_text")
    }
    for ordinal in ordinals:

        def normal(purpose: str, shape: Sequence[int] = (), ordinal: int = ordinal) -> Tensor:
            return torch.randn(tuple(shape), generator=generator(seed, purpose, ordinal), dtype=torch.float32)

        def uniform(purpose: str, ordinal: int = ordinal) -> Tensor:
            return torch.rand((), generator=generator(seed, purpose, ordinal), dtype=torch.float64)

        sigma = (config.log_sigma_mean + config.log_sigma_std * normal("sigma")).exp()
        rows["sigma"].append(sigma * sigma_multiplier)
        rows["noise"].append(normal("noise", latent_shape_cthw))
        num_given = int(uniform("condition_frames") * (min(config.max_condition_frames, num_latent_frames) + 1))
        rows["indicator"].append(given_frames(latent_shape_cthw[1], num_given, config=config, num_views=num_views))
        condition_deviation = config.condition_log_sigma_std * normal("condition_sigma")
        rows["condition_sigma"].append((config.condition_log_sigma_mean + condition_deviation).exp())
        rows["condition_noise"].append(normal("condition_noise", latent_shape_cthw))
        rows["keep_text"].append((uniform("text_dropout") >= config.text_dropout_rate).float())
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    return Draws(
        sigma_b=stacked["sigma"],
        noise_bcthw=stacked["noise"],
        indicator_bt=stacked["indicator"],
        condition_sigma_b=stacked["condition_sigma"],
        condition_noise_bcthw=stacked["condition_noise"],
        keep_text_b=stacked["keep_text"],
    )


def draw_kept_hints(ordinals: Sequence[int], num_hints: int, *, seed: int, config: Objective) -> Tensor:
    """Draw which of several control inputs each sample is given (spec/transfer1-training.md 2.6); one at least.

    Args:
        ordinals: global sample numbers, one a sample.
        num_hints: k, control inputs of a sample.
        seed: seed of the run.
        config: probability of dropping each.

    Returns:
        1 where a control input is kept, else 0; float32 [B, k] on the CPU. A single one is always kept.
    """
    rows = []
    for ordinal in ordinals:
        chances = torch.rand(num_hints, generator=generator(seed, "hint_dropout", ordinal), dtype=torch.float64)
        kept = chances >= config.hint_dropout_rate
        # Where all are dropped, each has the same chance to be the largest.
        kept[chances.argmax()] = True
        rows.append(kept.float())
    return torch.stack(rows)


def given_frames(num_latent_frames: int, num_given: int, *, config: Objective, num_views: int = 1) -> Tensor:
    """Return the indicator of given latent frames, float32 [T] (spec/transfer1-training.md 2.8).

    The first `num_given` frames of every view are given and, where the objective says so, the whole main view.

    Args:
        num_latent_frames: T, all views together.
        num_given: frames given of each view.
        config: whether the main view is given.
        num_views: views that are stacked along time, the main one first.
    """
    frames_a_view = num_latent_frames // num_views
    frames_t = torch.arange(num_latent_frames)
    indicator_t = (frames_t % frames_a_view) < num_given
    if config.main_view_given:
        indicator_t |= frames_t < frames_a_view
    return indicator_t.float()


def add_noise(x0_bcthw: Tensor, draws: Draws, *, sigma_data: float) -> Tensor:
    """Return the noisy latents that the denoiser gets, given frames included.

    A given frame carries its own little noise and is scaled so that the network, behind `c_in` of the sample's sigma,
    sees it as at its own noise level.
    """
    noisy = x0_bcthw + draws.sigma_b[:, None, None, None, None] * draws.noise_bcthw
    return replace_given_frames(
        noisy,
        x0_bcthw,
        draws.condition_noise_bcthw,
        draws.indicator_bt,
        sigma_b=draws.sigma_b,
        condition_sigma_b=draws.condition_sigma_b,
        sigma_data=sigma_data,
    )


def replace_given_frames(
    noisy_bcthw: Tensor,
    given_bcthw: Tensor,
    noise_bcthw: Tensor,
    indicator_bt: Tensor,
    *,
    sigma_b: Tensor,
    condition_sigma_b: Tensor,
    sigma_data: float,
) -> Tensor:
    """Put the given frames, corrupted at their own noise level, in the place of noisy ones where the indicator is 1."""
    ratio = scaling(condition_sigma_b, sigma_data).c_in / scaling(sigma_b, sigma_data).c_in
    corrupted = (given_bcthw + condition_sigma_b[:, None, None, None, None] * noise_bcthw) * ratio
    return torch.where(frame_mask(indicator_bt) > 0, corrupted, noisy_bcthw)


def frame_mask(indicator_bt: Tensor) -> Tensor:
    """Return [B, 1, T, 1, 1] of an indicator [B, T]."""
    return indicator_bt[:, None, :, None, None]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A batch's loss."""

    loss: Tensor
    """What is minimised, float32 []."""
    edm_loss: Tensor
    """The weighted squared error without the uncertainty term, float32 []."""


def edm_loss(
    prediction_bcthw: Tensor,
    x0_bcthw: Tensor,
    *,
    sigma_b: Tensor,
    indicator_bt: Tensor,
    log_variance_b: Tensor | None,
    config: Objective,
) -> Loss:
    """Return the loss of predicted clean latents.

    The error of given frames is zero; they count in the mean, as in the original, and carry the uncertainty term.

    Args:
        prediction_bcthw: predicted clean latents, float32.
        x0_bcthw: clean latents, float32.
        sigma_b: noise levels.
        indicator_bt: 1 where a frame was given.
        log_variance_b: output of the frozen uncertainty head, or None for the plain weighted error.
        config: standard deviation of the data and factor on the loss.
    """
    error = (x0_bcthw - prediction_bcthw).square() * (1 - frame_mask(indicator_bt))
    weighted = error * loss_weight(sigma_b, config.sigma_data)[:, None, None, None, None]
    plain = weighted.mean()
    if log_variance_b is None:
        return Loss(loss=plain * config.loss_scale, edm_loss=plain.detach())
    log_variance = log_variance_b[:, None, None, None, None]
    kendall = (weighted * torch.exp(-log_variance) + log_variance).mean()
    return Loss(loss=kendall * config.loss_scale, edm_loss=plain.detach())
