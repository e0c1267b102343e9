"""Base, control branch and uncertainty head as one denoiser; building them on a mesh from split checkpoints.

Shape suffixes: b batch, c latent channel, t latent frames, h, w latent height and width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.mesh import Mesh, build_mesh
from worldtune.recipe.network import NetworkConfig
from worldtune.recipe.schema import LATENT_CHANNELS, LATENT_PIXELS, Recipe
from worldtune.training.random import generator
from worldtune.transfer1.conditions import Conditions
from worldtune.transfer1.control import ControlNetwork, controlled, copy_base_weights
from worldtune.transfer1.loading import LoadReport, initialise, load_logvar, load_network
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import BaseNetwork
from worldtune.transfer1.objective import frame_mask, scaling
from worldtune.transfer1.parallelize import parallelize, shard_weights

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
NetworkT = TypeVar("NetworkT", BaseNetwork, ControlNetwork)


class Denoiser:
    """The frozen base under its control branch.

    The algebra around the networks runs in the type of the noisy latents, the networks in theirs.
    """

    def __init__(self, base: BaseNetwork, control: ControlNetwork, logvar: LogVariance, *, sigma_data: float) -> None:
        """Join networks that lie on the same mesh."""
        self.base = base
        self.control = control
        self.logvar = logvar
        self.sigma_data = sigma_data
        self.dtype = next(base.parameters()).dtype

    @property
    def takes_given_frames(self) -> bool:
        """Whether the networks have a channel that marks given frames."""
        return self.base.num_given_channels > LATENT_CHANNELS

    def __call__(self, noisy_bcthw: Tensor, sigma_b: Tensor, conditions: Conditions) -> Tensor:
        """Return the predicted clean latents, of the shape and type of `noisy_bcthw`."""
        terms = scaling(sigma_b, self.sigma_data)
        output = self.network_output(noisy_bcthw, sigma_b, conditions, control_weight=1.0)
        return terms.c_skip * noisy_bcthw + terms.c_out * output.to(noisy_bcthw.dtype)

    def network_output(
        self, noisy_bcthw: Tensor, sigma_b: Tensor, conditions: Conditions, *, control_weight: float | None
    ) -> Tensor:
        """Return the networks' output [B, 16, T, H, W] in their dtype; without a control weight, the base's alone."""
        terms = scaling(sigma_b, self.sigma_data)
        mask = frame_mask(conditions.indicator_bt).expand(-1, -1, -1, *noisy_bcthw.shape[-2:])
        return controlled(
            self.base,
            self.control,
            (terms.c_in * noisy_bcthw).to(self.dtype),
            terms.c_noise.float(),
            conditions.text.to(self.dtype),
            hint=None if control_weight is None else conditions.hint_bcthw.to(self.dtype),
            control_weight=1.0 if control_weight is None else control_weight,
            padding_mask=conditions.padding_mask,
            fps=conditions.fps,
            condition_video_input_mask=mask if self.takes_given_frames else None,
            view_indices=conditions.view_indices_bt,
            frame_repeat=self._frame_repeat(noisy_bcthw),
        )

    def _frame_repeat(self, noisy_bcthw: Tensor) -> Tensor | None:
        """Return that no frame is repeated, where the networks embed it."""
        config = self.base.config
        return noisy_bcthw.new_zeros(len(noisy_bcthw), config.n_views) if config.add_repeat_frame_embedding else None

    @torch.no_grad()
    def log_variance(self, sigma_b: Tensor) -> Tensor:
        """Return what the frozen uncertainty head says of these noise levels, float32 [B]."""
        return self.logvar(scaling(sigma_b, self.sigma_data).c_noise.float()).flatten()


def make_network(
    kind: type[NetworkT], config: NetworkConfig, recipe: Recipe, mesh: Mesh, device: torch.device
) -> NetworkT:
    """Return a network with memory but without values: its share on this rank, in the recipe's precision."""
    with torch.device("meta"):
        network = kind(config, recipe.network.rope_angles)  # type: ignore[arg-type]
    network.to(DTYPES[recipe.training.precision])
    parallelize(network, mesh, sequence=recipe.parallel.sequence)
    return network.to_empty(device=device)


@dataclass(frozen=True, kw_only=True)
class BuiltDenoiser:
    """A denoiser and how its checkpoints fitted."""

    denoiser: Denoiser
    """Base and uncertainty head are frozen."""
    load_reports: Mapping[str, LoadReport]
    """By network: base, logvar, and control where it has a checkpoint."""


def build_denoiser(
    recipe: Recipe,
    base_state: Mapping[str, Tensor],
    control_state: Mapping[str, Tensor] | None,
    mesh: Mesh,
    device: torch.device,
) -> BuiltDenoiser:
    """Build the networks on a mesh and fill them.

    Args:
        recipe: sizes, precision, layout, seed.
        base_state: tensors of the base's checkpoint, whole or this rank's pieces.
        control_state: tensors of the control checkpoint likewise; None starts the branch as a copy of the base's first
            blocks, with fresh layers for the hint.
        mesh: of all processes.
        device: of this rank.

    Raises:
        WorldtuneError: a checkpoint does not fit its network.
    """
    base = make_network(BaseNetwork, recipe.network.base, recipe, mesh, device)
    reports = {"base": load_network(base, base_state)}
    # Its values go through an exponential, and it is tiny: never rounded.
    logvar = LogVariance().to(device)
    if recipe.objective.use_logvar:
        reports["logvar"] = load_logvar(logvar, base_state)
    control = make_network(ControlNetwork, recipe.network.control, recipe, mesh, device)
    if control_state is None:
        initialise(control, generator(recipe.training.seed, "initialise"))
        copy_base_weights(base, control)
    else:
        reports["control"] = load_network(control, control_state)
    base.requires_grad_(False)
    logvar.requires_grad_(False)
    lay_out(base, control, recipe, mesh, device)
    denoiser = Denoiser(base, control, logvar, sigma_data=recipe.objective.sigma_data)
    return BuiltDenoiser(denoiser=denoiser, load_reports=reports)


def lay_out(base: BaseNetwork, control: ControlNetwork, recipe: Recipe, mesh: Mesh, device: torch.device) -> None:
    """Choose what is recomputed, compiled and sharded; the networks have their values."""
    parallel = recipe.parallel
    base.set_recompute(parallel.recompute, less=parallel.recompute_less)
    control.set_recompute(parallel.recompute)
    for network in (base, control):
        if parallel.compile and device.type == "cuda":
            network.compile_blocks()
        if parallel.shard == "both" or (parallel.shard == "base" and network is base):
            shard_weights(network, mesh)


@torch.no_grad()
def check_step_zero(denoiser: Denoiser, recipe: Recipe, device: torch.device, *, is_fresh: bool) -> str:
    """Check that the branch does not act before it is trained: the base's output stays as it is, bit for bit.

    A fresh branch must not act at all, a loaded one not at control weight 0. Two forward passes on random latents of
    the recipe's 16:9 size; collective over all ranks.

    Args:
        denoiser: as it goes into training.
        recipe: sizes.
        device: of this rank.
        is_fresh: whether the branch started as a copy of the base's first blocks.

    Returns:
        What was found, for the record.

    Raises:
        WorldtuneError: it does act: the networks are wired or loaded wrongly.
    """
    noisy, conditions = _example(denoiser, recipe, device)
    sigma_b = torch.ones(1, device=device)
    alone = denoiser.network_output(noisy, sigma_b, conditions, control_weight=None)
    controlled_output = denoiser.network_output(noisy, sigma_b, conditions, control_weight=1.0 if is_fresh else 0.0)
    state = "freshly initialised branch" if is_fresh else "loaded branch at control weight 0"
    if not torch.equal(alone, controlled_output):
        difference = (alone.float() - controlled_output.float()).abs().max().item()
        raise WorldtuneError(
            f"step-0 parity failed: a {state} changes the base's output by up to {difference:.3g}, expected exactly 0. "
            "The networks or their checkpoints are damaged (not finite?); nothing was trained."
        )
    return f"a {state} leaves the base's output bit-equal"


def _example(denoiser: Denoiser, recipe: Recipe, device: torch.device) -> tuple[Tensor, Conditions]:
    """Return random noisy latents [1, 16, T, H, W] and conditions, the same on all ranks."""
    stream = generator(recipe.training.seed, "step_zero")
    width, height = recipe.video_sizes_wh["16:9"]
    frames = recipe.num_views * recipe.num_latent_frames
    shape = (1, LATENT_CHANNELS, frames, height // LATENT_PIXELS, width // LATENT_PIXELS)
    hint_shape = (1, LATENT_CHANNELS * len(recipe.control.kinds), *shape[2:])
    text_shape = (1, recipe.num_views * recipe.data.text_tokens, recipe.network.base.crossattn_emb_channels)
    noisy, hint, text = (torch.randn(each, generator=stream).to(device) for each in (shape, hint_shape, text_shape))
    return noisy, Conditions(
        hint_bcthw=hint,
        text=text,
        fps=torch.full((1,), 24.0, device=device),
        padding_mask=torch.zeros(1, 1, height, width, device=device),
        indicator_bt=torch.zeros(1, frames, device=device),
        view_indices_bt=None,
    )


def single_process_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe laid out for one process that does not train."""
    alone = {"tensor": 1, "context": 1, "data": 1, "sequence": False, "shard": "nothing", "compile": False}
    return recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=alone)})


def single_process_mesh(device: torch.device) -> Mesh:
    """Return the mesh of one process."""
    return build_mesh(device.type)
