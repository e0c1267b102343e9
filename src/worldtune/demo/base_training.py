"""Training the demo's frozen base: a short real training on latents of rendered scenes.

The scenes are not those of the embedded dataset: they have a seed of their own. Most steps take small cuttings without
text, which are cheap; the last ones take whole clips, on which the network learns where in a picture what is, and the
text.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldtune.common.progress import progress
from worldtune.recipe.network import NetworkConfig
from worldtune.recipe.schema import LATENT_CHANNELS, Objective
from worldtune.training.random import generator
from worldtune.transfer1.loading import initialise
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import BaseNetwork
from worldtune.transfer1.objective import Draws, add_noise, draw, edm_loss, frame_mask, scaling

LEARNING_RATE = 3e-3
WARMUP_STEPS = 20
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
OBJECTIVE = Objective()
"""The recipes' objective. At lower noise levels the base would draw finer pictures, but a branch that is then trained
at the recipes' would lose some of that."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps of one kind."""

    num_steps: int
    batch_size: int
    cutting_hw: tuple[int, int] | None
    """Latent height and width of the cuttings, even; None for whole clips with text."""


PHASES = (
    Phase(num_steps=1200, batch_size=2, cutting_hw=(12, 20)),
    Phase(num_steps=300, batch_size=1, cutting_hw=None),
)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """What is trained on."""

    latents: Tensor
    """Clean latents times sigma_data, float32 [N, 16, T, H, W]; several views lie one after the other along T."""
    text: Tensor
    """Text embeddings padded with zeros, float32 [N, M, C]; of several views one after the other along M."""
    fps: float
    view_indices: tuple[int, ...] = ()
    """Camera of each view; empty for clips of one view."""

    @property
    def num_views(self) -> int:
        """Views of a clip."""
        return max(len(self.view_indices), 1)


@dataclass(frozen=True, kw_only=True)
class TrainedBase:
    """The trained networks and how they got there."""

    base: BaseNetwork
    logvar: LogVariance
    losses: tuple[float, ...]
    """Weighted squared error of each step."""


def train_base(
    config: NetworkConfig,
    clips: Clips,
    *,
    seed: int,
    phases: tuple[Phase, ...] = PHASES,
    objective: Objective = OBJECTIVE,
) -> TrainedBase:
    """Train a base network and its uncertainty head from fresh weights, on the CPU in float32."""
    base, logvar = BaseNetwork(config), LogVariance()
    initialise(base, generator(seed, "base"))
    logvar.initialise(generator(seed, "logvar"))
    uncertainty = logvar.get_parameter("1.weight")
    torch.nn.init.zeros_(uncertainty)
    parameters = [*base.parameters(), uncertainty]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    losses: list[float] = []
    steps = [phase for phase in phases for _ in range(phase.num_steps)]
    for step, phase in enumerate(progress(steps, "training the demo's base")):
        rate = min(1.0, (step + 1) / WARMUP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * step / len(steps)))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        ordinals = range(step * phase.batch_size, (step + 1) * phase.batch_size)
        x0, text = _batch(clips, phase, step, seed)
        draws = draw(ordinals, x0.shape[1:], seed=seed, config=objective, num_views=clips.num_views)
        prediction = predict(base, x0, text, draws, fps=clips.fps, view_indices=clips.view_indices)
        loss = edm_loss(
            prediction,
            x0,
            sigma_b=draws.sigma_b,
            indicator_bt=draws.indicator_bt,
            log_variance_b=logvar(scaling(draws.sigma_b, objective.sigma_data).c_noise).flatten(),
            config=objective,
        )
        optimizer.zero_grad()
        loss.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        losses.append(float(loss.edm_loss))
    return TrainedBase(base=base.requires_grad_(False), logvar=logvar.requires_grad_(False), losses=tuple(losses))


def predict(
    base: BaseNetwork, x0: Tensor, text: Tensor, draws: Draws, *, fps: float, view_indices: tuple[int, ...] = ()
) -> Tensor:
    """Return the base's prediction of the clean latents `x0` [B, 16, T, H, W] from what `draws` makes of them."""
    mask = frame_mask(draws.indicator_bt).expand(-1, -1, -1, *x0.shape[-2:])
    cameras = torch.tensor(view_indices).repeat_interleave(x0.shape[2] // max(len(view_indices), 1))
    repeats = torch.zeros(len(x0), len(view_indices)) if base.config.add_repeat_frame_embedding else None
    terms = scaling(draws.sigma_b, OBJECTIVE.sigma_data)
    noisy = add_noise(x0, draws, sigma_data=OBJECTIVE.sigma_data)
    output = base(
        terms.c_in * noisy,
        terms.c_noise,
        text * draws.keep_text_b[:, None, None],
        padding_mask=torch.zeros(1, 1, *x0.shape[-2:]),
        fps=torch.full((len(x0),), fps),
        condition_video_input_mask=mask if base.num_given_channels > LATENT_CHANNELS else None,
        view_indices=cameras.expand(len(x0), -1) if view_indices else None,
        frame_repeat=repeats,
    )
    return terms.c_skip * noisy + terms.c_out * output


def held_out_loss(base: BaseNetwork, clips: Clips, sigma: float) -> float:
    """Return the mean weighted squared error on clips at one noise level, with fixed noise and no given frames."""
    total = 0.0
    for index in range(len(clips.latents)):
        x0 = clips.latents[index : index + 1]
        draws = Draws(
            sigma_b=torch.tensor([sigma]),
            noise_bcthw=torch.randn(x0.shape, generator=generator(0, "held_out", index)),
            indicator_bt=torch.zeros(1, x0.shape[2]),
            condition_sigma_b=torch.ones(1),
            condition_noise_bcthw=torch.zeros_like(x0),
            keep_text_b=torch.ones(1),
        )
        with torch.no_grad():
            prediction = predict(base, x0, clips.text[index : index + 1], draws, fps=clips.fps)
        loss = edm_loss(
            prediction,
            x0,
            sigma_b=draws.sigma_b,
            indicator_bt=draws.indicator_bt,
            log_variance_b=None,
            config=OBJECTIVE,
        )
        total += float(loss.edm_loss)
    return total / len(clips.latents)


def _batch(clips: Clips, phase: Phase, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a step's latents and text."""
    chance = generator(seed, "batch", step)
    chosen = torch.randint(len(clips.latents), (phase.batch_size,), generator=chance)
    if phase.cutting_hw is None:
        return clips.latents[chosen], clips.text[chosen]
    height, width = phase.cutting_hw
    # Even offsets, so that patches lie as in a whole clip.
    top, left = (
        2 * int(torch.randint((whole - part) // 2 + 1, (), generator=chance))
        for whole, part in zip(clips.latents.shape[-2:], phase.cutting_hw, strict=True)
    )
    cutting = clips.latents[chosen][..., top : top + height, left : left + width]
    # Attention to zeros is zero, however many there are; two of each view are the fewest that a network takes.
    return cutting, torch.zeros(phase.batch_size, 2 * clips.num_views, clips.text.shape[-1])
