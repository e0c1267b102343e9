"""The control branch: a copy of the base's first blocks that reads a control input and feeds the base.

Shapes: B batch, T H W latent frames, height and width, L tokens (a rank's own under sequence parallelism), D width.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.tokens import local
from worldtune.recipe.estimate import HINT_WIDTHS
from worldtune.recipe.network import ControlNetworkConfig
from worldtune.transfer1.embeddings import PatchEmbedding
from worldtune.transfer1.layers import TokenLinear
from worldtune.transfer1.network import BaseNetwork, DiffusionTransformer, stretched_mask
from worldtune.transfer1.rotary import RopeAngles

BRANCH_ONLY = ("x_embedder2.", "input_hint_block.", "zero_blocks.")
"""Parameters that a base network does not have."""


class ControlNetwork(DiffusionTransformer):
    """The trainable branch. Its final layer is never used; released checkpoints have it."""

    config: ControlNetworkConfig

    def __init__(self, config: ControlNetworkConfig, rope_angles: RopeAngles = "bfloat16") -> None:
        """Make the branch on the current default device, weights uninitialised (see `initialise` and `load_network`).

        Raises:
            WorldtuneError: the configuration's numbers do not fit each other.
        """
        super().__init__(config, config.num_control_blocks, rope_angles)
        width = config.model_channels
        self.x_embedder2 = PatchEmbedding(
            config.hint_channels + 1, width, patch_spatial=config.patch_spatial, patch_temporal=config.patch_temporal
        )
        self.input_hint_block = nn.Sequential(*_hint_layers(width))
        self.zero_blocks = nn.ModuleDict({name: TokenLinear(width, width) for name in self.blocks})

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        crossattn_emb: Tensor,
        *,
        hint: Tensor,
        padding_mask: Tensor,
        fps: Tensor | None = None,
        condition_video_input_mask: Tensor | None = None,
        condition_video_augment_sigma: Tensor | None = None,
        view_indices: Tensor | None = None,
        frame_repeat: Tensor | None = None,
        data_type: Literal["video", "image"] = "video",
        control_weight: float | Tensor = 1.0,
        features: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the residuals [L, B, D] that the base adds after its blocks, by block name.

        Args:
            hint: latents of the control inputs [B, C, T, H, W], one behind the other along C; fewer channels than
                hint_channels are filled up with zeros.
            control_weight: factor on all residuals: a number, or one a sample [B] (0 leaves the branch out of it).
            features: filled with "guided_hint" and, by block name, each control block's output before the hint is
                added; all [L, B, D].
            x: see BaseNetwork.forward, as for all others.
            timesteps: see there.
            crossattn_emb: see there.
            padding_mask: see there.
            fps: see there.
            condition_video_input_mask: see there.
            condition_video_augment_sigma: see there.
            view_indices: see there.
            frame_repeat: see there.
            data_type: see there.

        Raises:
            WorldtuneError: the inputs do not fit the configuration.
        """
        guided_hint = self._guided_hint(hint, padding_mask)
        tokens, context = self.embed(
            x,
            timesteps,
            crossattn_emb,
            padding_mask=padding_mask,
            fps=fps,
            condition_video_input_mask=condition_video_input_mask,
            condition_video_augment_sigma=condition_video_augment_sigma,
            view_indices=view_indices,
            frame_repeat=frame_repeat,
            data_type=data_type,
        )
        if features is not None:
            features["guided_hint"] = guided_hint
        weight = torch.as_tensor(control_weight, dtype=tokens.dtype, device=tokens.device)[..., None]
        residuals = {}
        for index, (name, block) in enumerate(self.blocks.items()):
            tokens = block(tokens, context)
            if features is not None:
                features[name] = tokens
            if index == 0:
                tokens = tokens + guided_hint
            residuals[name] = self.zero_blocks[name](tokens) * weight
        return residuals

    def _guided_hint(self, hint: Tensor, padding_mask: Tensor) -> Tensor:
        missing = self.config.hint_channels - hint.shape[1]
        if missing < 0:
            raise WorldtuneError(
                f"The control input has {hint.shape[1]} channels; the branch takes {self.config.hint_channels}."
            )
        batch, _, num_frames, height, width = hint.shape
        filled = hint.new_zeros(batch, missing, num_frames, height, width)
        tokens = self.x_embedder2(torch.cat((hint, filled, stretched_mask(padding_mask, hint)), dim=1))
        return self.input_hint_block(tokens)


def controlled(
    base: BaseNetwork,
    control: ControlNetwork,
    x: Tensor,
    timesteps: Tensor,
    crossattn_emb: Tensor,
    *,
    hint: Tensor | None,
    control_weight: float | Tensor = 1.0,
    **inputs: Any,
) -> Tensor:
    """Return the base's output [B, 16, T, H, W] under the branch's control; without a hint, the base alone.

    Args:
        base: the base network.
        control: the control branch.
        x: noisy latents times c_in [B, 16, T, H, W].
        timesteps: c_noise [B].
        crossattn_emb: text embeddings [B, M, C].
        hint: latents of the control input, see ControlNetwork.forward.
        control_weight: see ControlNetwork.forward.
        inputs: the other inputs of BaseNetwork.forward, which both networks get alike.
    """
    if hint is None:
        return base(x, timesteps, crossattn_emb, **inputs)
    residuals = control(x, timesteps, crossattn_emb, hint=hint, control_weight=control_weight, **inputs)
    return base(x, timesteps, crossattn_emb, x_ctrl=residuals, **inputs)


def shared_names(base: BaseNetwork, control: ControlNetwork) -> list[str]:
    """Return the names of the tensors that the branch takes from the base at the start.

    Raises:
        WorldtuneError: a tensor of the branch has no counterpart of its shape in the base; the message names it.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in base.state_dict().items()}
    wrong = []
    shared = []
    for name, tensor in control.state_dict().items():
        if name.startswith(BRANCH_ONLY):
            continue
        shared.append(name)
        if shapes.get(name) != tuple(tensor.shape):
            wrong.append(f"{name} {tuple(tensor.shape)}, in the base {shapes.get(name, 'missing')}")
    if wrong:
        raise WorldtuneError(
            "The control branch cannot start as a copy of the base: "
            + "; ".join(wrong)
            + ". Make the two networks' sizes equal."
        )
    return shared


@torch.no_grad()
def copy_base_weights(base: BaseNetwork, control: ControlNetwork) -> list[str]:
    """Fill the branch with the base's tensors of the same names; both lie on the same mesh. Returns the names.

    The hint's layers and the zero blocks stay as they are.

    Raises:
        WorldtuneError: a tensor of the branch has no counterpart of its shape in the base; the message names it.
    """
    names = shared_names(base, control)
    source, target = base.state_dict(), control.state_dict()
    for name in names:
        local(target[name]).copy_(local(source[name]))
    return names


def _hint_layers(width: int) -> Iterator[nn.Module]:
    widths = (width, *HINT_WIDTHS)
    for channels_in, channels_out in itertools.pairwise(widths):
        yield TokenLinear(channels_in, channels_out)
        yield nn.SiLU()
    yield TokenLinear(widths[-1], width)
