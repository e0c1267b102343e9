"""Base, control branch and uncertainty head as one denoiser; building them on a mesh from split checkpoints.

Shape suffixes: b batch, c latent channel, t latent frames, h, w latent height and width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from worldtune.parallel.mesh import build_mesh
from worldtune.recipe.network import NetworkConfig
from worldtune.recipe.schema import LATENT_CHANNELS, Recipe
from worldtune.training.random import generator
from worldtune.transfer1.conditions import Conditions
from worldtune.transfer1.control import ControlNetwork, controlled, copy_base_weights
from worldtune.transfer1.loading import LoadReport, initialise, load_logvar, load_network
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import BaseNetwork
from worldtune.transfer1.objective import frame_mask, scaling
from worldtune.transfer1.parallelize import parallelize

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
        mask = frame_mask(conditions.indicator_bt).expand(-1, -1, -1, *noisy_bcthw.shape[-2:])
        output = controlled(
            self.base,
            self.control,
            (terms.c_in * noisy_bcthw).to(self.dtype),
            terms.c_noise.float(),
            conditions.text.to(self.dtype),
            hint=conditions.hint_bcthw.to(self.dtype),
            padding_mask=conditions.padding_mask,
            fps=conditions.fps,
            condition_video_input_mask=mask if self.takes_given_frames else None,
            view_indices=conditions.view_indices_bt,
            frame_repeat=self._frame_repeat(noisy_bcthw),
        )
        return terms.c_skip * noisy_bcthw + terms.c_out * output.to(noisy_bcthw.dtype)

    def _frame_repeat(self, noisy_bcthw: Tensor) -> Tensor | None:
        """Return that no frame is repeated, where the networks embed it."""
        config = self.base.config
        return noisy_bcthw.new_zeros(len(noisy_bcthw), config.n_views) if config.add_repeat_frame_embedding else None

    @torch.no_grad()
    def log_variance(self, sigma_b: Tensor) -> Tensor:
        """Return what the frozen uncertainty head says of these noise levels, float32 [B]."""
        return self.logvar(scaling(sigma_b, self.sigma_data).c_noise.float()).flatten()


def make_network(
    kind: type[NetworkT], config: NetworkConfig, recipe: Recipe, mesh: DeviceMesh, device: torch.device
) -> NetworkT:
    """Return a network with memory but without values: its share on this rank, in the recipe's precision."""
    with torch.device("meta"):
        network = kind(config, recipe.network.rope_angles)  # type: ignore[arg-type]
    network.to(DTYPES[recipe.training.precision])
    parallelize(network, mesh["tensor"], sequence=recipe.parallel.sequence)
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
    mesh: DeviceMesh,
    device: torch.device,
) -> BuiltDenoiser:
    """Build the networks on a mesh and fill them.

    Args:
        recipe: sizes, precision, layout, seed.
        base_state: tensors of the base's checkpoint, whole or this rank's pieces.
        control_state: tensors of the control checkpoint likewise; None starts the branch as a copy of the base's first
            blocks, with fresh layers for the hint.
        mesh: dims data and tensor.
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
    denoiser = Denoiser(base, control, logvar, sigma_data=recipe.objective.sigma_data)
    return BuiltDenoiser(denoiser=denoiser, load_reports=reports)


def single_process_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe laid out for one process."""
    return recipe.model_copy(
        update={"parallel": recipe.parallel.model_copy(update={"tensor": 1, "data": 1, "sequence": False})}
    )


def single_process_mesh(device: torch.device) -> DeviceMesh:
    """Return the mesh of one process."""
    return build_mesh(device.type, 1, 1)
