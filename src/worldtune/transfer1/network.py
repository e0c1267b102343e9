"""The Transfer1 diffusion transformer: the trunk that base and control branch share, and the base network.

Parameters have the names that released checkpoints give them below `net.`.
Shapes: B batch, T H W latent frames, height and width, L tokens (a rank's own under sequence parallelism), D width,
N heads, d channels of a head, M text tokens, V views.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.tokens import SINGLE, TokenParallel, local_parameters
from worldtune.recipe.network import NetworkConfig
from worldtune.recipe.schema import LATENT_CHANNELS
from worldtune.transfer1.embeddings import (
    LearnedPositions,
    PatchEmbedding,
    SinusoidalPositions,
    TimestepMLP,
    Timesteps,
    ViewEmbedding,
    unpatchify,
)
from worldtune.transfer1.layers import HeadNorm, Linear, RMSNorm, TokenLinear, modulated
from worldtune.transfer1.recomputation import Kept, Recompute, one_level_less, recomputed
from worldtune.transfer1.rotary import RopeAngles, RotaryPositions, Rotation, rotation

MIN_HEAD_CHANNELS = 12
"""Channels of a head that give each of the three rotary axes two frequencies."""
MAX_COMPILED_VARIANTS = 64
"""Versions of a block that the compiler may make: of both networks, for each picture size, trained and measured."""


class BlockContext(NamedTuple):
    """What every block of one forward pass reads beside the token stream."""

    emb: Tensor
    """Normalised sinusoids of the noise level [B, D]."""
    adaln_lora: Tensor
    """The part that all adaptive layer norms share [B, 3D]."""
    positions: Tensor
    """Absolute position embedding [L, 1, D], added before each block."""
    rotation: Rotation
    """Rotary embedding of a context rank's tokens (not of a tensor rank's only)."""
    text: Tensor
    """Text embeddings [M, B, C]."""
    views: tuple[tuple[int, int], ...]
    """For each of the views that are stacked along time, from where to where it lies in a context rank's tokens; each
    attends to its own part of the text."""


class Attention(nn.Module):
    """Attention of the tokens to themselves (with rotary embedding) or to the text."""

    parallel: TokenParallel = SINGLE

    def __init__(self, width: int, context_width: int, num_heads: int, *, to_text: bool) -> None:
        """Make attention with `num_heads` heads; keys and values come from `context_width` channels."""
        super().__init__()
        self.head_channels = width // num_heads
        self.to_text = to_text
        self.to_q = nn.Sequential(Linear(width, width, bias=False), HeadNorm(self.head_channels))
        self.to_k = nn.Sequential(Linear(context_width, width, bias=False), HeadNorm(self.head_channels))
        self.to_v = nn.Sequential(Linear(context_width, width, bias=False), nn.Identity())
        self.to_out = nn.Sequential(Linear(width, width, bias=False), nn.Identity())

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """Return [L, B, D] for `x` [L, B, D]."""
        x = self.parallel.enter(x)
        source = self.parallel.sum_gradient_over_heads(context.text) if self.to_text else x
        query, key, value = (
            to[1](to[0](tokens).unflatten(-1, (-1, self.head_channels)))
            for to, tokens in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        if self.to_text:
            out = _attend_by_view(query, key, value, context.views)
        else:
            query, key = context.rotation.apply(query), context.rotation.apply(key)
            out = self.parallel.heads_to_tokens(_attend(*self.parallel.tokens_to_heads(query, key, value)))
        return self.parallel.leave(self.to_out[0](out.flatten(2)))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return [l, B, N, d] for queries [l, B, N, d], keys and values [m, B, N, d]."""
    # [B, N, l, d] as views: kernels take any strides.
    query, key, value = (part.permute(1, 2, 0, 3) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).permute(2, 0, 1, 3)


def _attend_by_view(query: Tensor, key: Tensor, value: Tensor, views: tuple[tuple[int, int], ...]) -> Tensor:
    """Let each view's queries attend to its own part of keys and values [(V m), B, N, d]; as `_attend`."""
    parts = [
        _attend(query[start:end], own_key, own_value)
        for (start, end), own_key, own_value in zip(views, key.chunk(len(views)), value.chunk(len(views)), strict=True)
        if start < end
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class AttentionLayer(nn.Module):
    """The attention of a sub-block (a level of its own in the parameters' names)."""

    def __init__(self, attn: Attention) -> None:
        """Wrap `attn`."""
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """Return [L, B, D] for `x` [L, B, D]."""
        return self.attn(x, context)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    parallel: TokenParallel = SINGLE

    def __init__(self, width: int, hidden: int) -> None:
        """Make an MLP with `hidden` hidden units."""
        super().__init__()
        self.layer1 = Linear(width, hidden, bias=False)
        self.layer2 = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """Return [L, B, D] for `x` [L, B, D]."""
        return self.parallel.leave(self.layer2(F.gelu(self.layer1(self.parallel.enter(x)))))


class SubBlock(nn.Module):
    """A layer between an adaptive layer norm and a gate, added to the stream."""

    parallel: TokenParallel = SINGLE

    def __init__(self, block: nn.Module, width: int, lora_dim: int) -> None:
        """Wrap `block` with a modulation of rank `lora_dim`."""
        super().__init__()
        self.block = block
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), Linear(width, lora_dim, bias=False), Linear(lora_dim, 3 * width, bias=False)
        )

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """Return the stream `x` [L, B, D] after this sub-block."""
        modulation = self.adaLN_modulation(context.emb) + context.adaln_lora
        # Summing this small gradient completes those of all layers that it comes from.
        shift, scale, gate = self.parallel.sum_gradient_over_tokens(modulation).chunk(3, dim=-1)
        return x + gate * self.block(modulated(x, shift, scale), context)


class TransformerBlock(nn.Module):
    """Positions, self-attention, attention to the text, MLP."""

    _compiled: Callable[[Tensor, BlockContext], Tensor] | None = None
    recompute: Recompute = "nothing"
    """What of this block's activations backward computes again in the place of keeping it."""

    def __init__(self, config: NetworkConfig) -> None:
        """Make one block of a network with `config`."""
        super().__init__()
        width, text_width, heads = config.model_channels, config.crossattn_emb_channels, config.num_heads
        layers: list[nn.Module] = [
            AttentionLayer(Attention(width, width, heads, to_text=False)),
            AttentionLayer(Attention(width, text_width, heads, to_text=True)),
            MLP(width, int(width * config.mlp_ratio)),
        ]
        self.blocks = nn.ModuleList(SubBlock(layer, width, config.adaln_lora_dim) for layer in layers)

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """Return the stream `x` [L, B, D] after this block."""
        if self._compiled is None:
            return self._run(x, context)
        with local_parameters(self):
            return self._compiled(x, context)

    def compile_in_place(self, backend: str = "inductor") -> None:
        """Compile the block's computation for the shapes that it meets."""
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_COMPILED_VARIANTS)
        self._compiled = torch.compile(self._run, dynamic=False, backend=backend)

    def _run(self, x: Tensor, context: BlockContext) -> Tensor:
        if self.recompute == "nothing" or not torch.is_grad_enabled():
            return self._forward(x, context)
        if self.recompute == "mlp":
            x = x + context.positions
            for block in self.blocks:
                keep: tuple[Kept, ...] = () if isinstance(block.block, MLP) else ("attention", "linear")
                x = recomputed(block, x, context, keep=keep)
            return x
        return recomputed(self._forward, x, context, keep=() if self.recompute == "everything" else ("attention",))

    def _forward(self, x: Tensor, context: BlockContext) -> Tensor:
        x = x + context.positions
        for block in self.blocks:
            x = block(x, context)
        return x


class FinalLayer(nn.Module):
    """From the token stream to the flattened output patches."""

    parallel: TokenParallel = SINGLE

    def __init__(self, width: int, out: int, lora_dim: int) -> None:
        """Make the layer with `out` output channels a token."""
        super().__init__()
        self.linear = TokenLinear(width, out, bias=False)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), Linear(width, lora_dim, bias=False), Linear(lora_dim, 2 * width, bias=False)
        )

    def forward(self, x: Tensor, emb: Tensor, adaln_lora: Tensor) -> Tensor:
        """Return the outputs [L, B, out] of all tokens for this rank's stream `x` [L, B, D]."""
        modulation = self.adaLN_modulation(emb) + adaln_lora[:, : 2 * x.shape[-1]]
        shift, scale = self.parallel.sum_gradient_over_tokens(modulation).chunk(2, dim=-1)
        return self.parallel.gather(self.linear(modulated(x, shift, scale)))


class DiffusionTransformer(nn.Module):
    """What base and control branch have in common: embeddings, blocks and (unused in a branch) the final layer."""

    parallel: TokenParallel = SINGLE

    def __init__(self, config: NetworkConfig, num_blocks: int, rope_angles: RopeAngles) -> None:
        """Make a network with the first `num_blocks` blocks, on the current default device.

        Raises:
            WorldtuneError: the configuration's numbers do not fit each other.
        """
        super().__init__()
        _validate(config, num_blocks)
        self.config = config
        width = config.model_channels
        len_t, len_h, len_w = (
            config.max_frames // config.patch_temporal,
            config.max_img_h // config.patch_spatial,
            config.max_img_w // config.patch_spatial,
        )
        patch = {"patch_spatial": config.patch_spatial, "patch_temporal": config.patch_temporal}
        # The padding mask is one more channel.
        self.x_embedder = PatchEmbedding(self.num_given_channels + 1 + config.view_condition_dim, width, **patch)
        self.pos_embedder = RotaryPositions(
            width // config.num_heads,
            len_t=len_t,
            len_h=len_h,
            len_w=len_w,
            ratio_t=config.rope_t_extrapolation_ratio,
            ratio_h=config.rope_h_extrapolation_ratio,
            ratio_w=config.rope_w_extrapolation_ratio,
            angles=rope_angles,
        )
        self.extra_pos_embedder: LearnedPositions | SinusoidalPositions
        if config.extra_per_block_abs_pos_emb_type == "learnable":
            self.extra_pos_embedder = LearnedPositions(width, len_t=len_t, len_h=len_h, len_w=len_w)
        else:
            self.extra_pos_embedder = SinusoidalPositions(width)
        if config.view_condition_dim:
            self.view_embeddings = ViewEmbedding(config.n_views_emb, config.view_condition_dim)
        if config.add_repeat_frame_embedding:
            self.repeat_frame_embedding = Linear(1, config.view_condition_dim)
        self.t_embedder = nn.Sequential(Timesteps(width), TimestepMLP(width))
        if config.add_augment_sigma_embedding:
            self.augment_sigma_embedder = nn.Sequential(Timesteps(width), TimestepMLP(width))
        self.blocks = nn.ModuleDict({f"block{index}": TransformerBlock(config) for index in range(num_blocks)})
        self.affline_norm = RMSNorm(width)
        out = config.patch_spatial**2 * config.patch_temporal * config.out_channels
        self.final_layer = FinalLayer(width, out, config.adaln_lora_dim)

    @property
    def num_given_channels(self) -> int:
        """Channels of the latents and what is stacked on them, without padding mask and views."""
        return self.config.in_channels + int(self.config.is_extend_model)

    def set_recompute(self, what: Recompute, *, less: int = 0) -> None:
        """Say what of each block's activations backward computes again.

        Args:
            what: for the first blocks.
            less: how many of the last blocks, whose activations are freed first, recompute one level less.
        """
        blocks = list(self.blocks.values())
        for index, block in enumerate(blocks):
            assert isinstance(block, TransformerBlock)
            block.recompute = what if index < len(blocks) - less else one_level_less(what)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile each block's computation for the shapes that it meets; equal blocks share what was compiled.

        Args:
            backend: a torch.compile backend.
        """
        for block in self.blocks.values():
            assert isinstance(block, TransformerBlock)
            block.compile_in_place(backend)

    def embed(
        self,
        x: Tensor,
        timesteps: Tensor,
        crossattn_emb: Tensor,
        *,
        padding_mask: Tensor,
        fps: Tensor | None,
        condition_video_input_mask: Tensor | None,
        condition_video_augment_sigma: Tensor | None,
        view_indices: Tensor | None,
        frame_repeat: Tensor | None,
        data_type: Literal["video", "image"],
    ) -> tuple[Tensor, BlockContext]:
        """Return this rank's token stream [L, B, D] and what the blocks read beside it."""
        grid = self.grid(x)
        self.parallel.check_tokens(grid[0] * grid[1] * grid[2])
        tokens = self.x_embedder(
            self._stack_channels(x, padding_mask, condition_video_input_mask, view_indices, frame_repeat, data_type)
        )
        num_views = self.config.n_views
        angles = self.pos_embedder(grid, fps, num_views, x.device)
        if isinstance(self.extra_pos_embedder, LearnedPositions):
            positions = self.extra_pos_embedder(grid, num_views)
        else:
            positions = self.extra_pos_embedder(grid, num_views, tokens)
        emb = self.t_embedder[0](timesteps).to(tokens.dtype)
        adaln_lora = self.t_embedder[1](emb)
        if self.config.add_augment_sigma_embedding:
            if data_type == "image":
                condition_video_augment_sigma = torch.zeros_like(timesteps)
            if condition_video_augment_sigma is None:
                raise WorldtuneError("This network embeds the given frames' noise: set condition_video_augment_sigma.")
            # Only the sinusoids count: the embedder's MLP has weights in checkpoints, but no effect.
            emb = emb + self.augment_sigma_embedder[0](condition_video_augment_sigma).to(emb.dtype)
        context = BlockContext(
            emb=self.affline_norm(emb),
            adaln_lora=adaln_lora,
            positions=positions,
            rotation=rotation(self.parallel.context_chunk(angles)),
            text=crossattn_emb.transpose(0, 1),
            views=self.parallel.parts_in_context_chunk(len(angles), num_views),
        )
        return tokens, context

    def grid(self, x: Tensor) -> tuple[int, int, int]:
        """Return the patches along time, height and width of `x` [B, C, T, H, W].

        Raises:
            WorldtuneError: the video cannot be cut into whole patches, or not into equal views.
        """
        num_frames, height, width = x.shape[2:]
        config = self.config
        if num_frames % config.patch_temporal or height % config.patch_spatial or width % config.patch_spatial:
            raise WorldtuneError(
                f"Latents of {num_frames} frames and {height} x {width} cannot be cut into patches of "
                f"{config.patch_temporal} x {config.patch_spatial} x {config.patch_spatial}: choose another size."
            )
        grid = (num_frames // config.patch_temporal, height // config.patch_spatial, width // config.patch_spatial)
        if grid[0] % config.n_views:
            raise WorldtuneError(f"{num_frames} latent frames are not {config.n_views} views of equal length.")
        return grid

    def _stack_channels(
        self,
        x: Tensor,
        padding_mask: Tensor,
        condition_mask: Tensor | None,
        view_indices: Tensor | None,
        frame_repeat: Tensor | None,
        data_type: Literal["video", "image"],
    ) -> Tensor:
        batch, _, num_frames, height, width = x.shape
        if data_type == "image":
            missing = self.num_given_channels - x.shape[1]
            x = torch.cat((x, x.new_zeros(batch, missing, num_frames, height, width)), dim=1)
        elif condition_mask is not None:
            x = torch.cat((x, condition_mask.to(x.dtype)), dim=1)
        if x.shape[1] != self.num_given_channels:
            raise WorldtuneError(
                f"The network takes {self.num_given_channels} channels, and the input has {x.shape[1]}: latents have "
                f"{LATENT_CHANNELS}; condition_video_input_mask is one more, where in_channels counts it."
            )
        parts = [x, stretched_mask(padding_mask, x)]
        if self.config.view_condition_dim:
            views = self._view_channels(view_indices, frame_repeat, x).to(x.dtype)
            parts.append(views.transpose(1, 2)[..., None, None].expand(batch, -1, num_frames, height, width))
        return torch.cat(parts, dim=1)

    def _view_channels(self, view_indices: Tensor | None, frame_repeat: Tensor | None, x: Tensor) -> Tensor:
        batch, num_frames, num_views = x.shape[0], x.shape[2], self.config.n_views
        frames_a_view = num_frames // num_views
        if view_indices is None:
            view_indices = torch.arange(num_views, device=x.device).repeat_interleave(frames_a_view).expand(batch, -1)
        channels = self.view_embeddings(view_indices)
        if self.config.add_repeat_frame_embedding:
            if frame_repeat is None:
                raise WorldtuneError("This network embeds repeated frames: give frame_repeat [B, V], divided by ten.")
            repeats = self.repeat_frame_embedding(frame_repeat[..., None].to(x.dtype))
            channels = channels + repeats.repeat_interleave(frames_a_view, dim=1)
        return channels


class BaseNetwork(DiffusionTransformer):
    """The video model that stays frozen while a control branch is trained."""

    def __init__(self, config: NetworkConfig, rope_angles: RopeAngles = "bfloat16") -> None:
        """Make the network on the current default device, weights uninitialised (see `initialise` and `load_network`).

        Raises:
            WorldtuneError: the configuration's numbers do not fit each other.
        """
        super().__init__(config, config.num_blocks, rope_angles)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        crossattn_emb: Tensor,
        *,
        padding_mask: Tensor,
        fps: Tensor | None = None,
        condition_video_input_mask: Tensor | None = None,
        condition_video_augment_sigma: Tensor | None = None,
        view_indices: Tensor | None = None,
        frame_repeat: Tensor | None = None,
        data_type: Literal["video", "image"] = "video",
        x_ctrl: Mapping[str, Tensor] | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the network's output [B, 16, T, H, W].

        Args:
            x: noisy latents, already multiplied by c_in, [B, 16, T, H, W].
            timesteps: c_noise [B].
            crossattn_emb: text embeddings [B, M, C], zero-padded (and attended to), view after view.
            padding_mask: 1 where a pixel is padding, [B or 1, 1, height, width] in pixels.
            fps: frames a second [B]; may be None for an image only.
            condition_video_input_mask: 1 on given frames [B, 1, T, H, W]; None where in_channels does not count it.
            condition_video_augment_sigma: argument of the given frames' noise embedding [B], where the network has one.
            view_indices: camera of each latent frame [B, T]; None counts the views up.
            frame_repeat: repeated frames of each view over ten [B, V], where the network embeds them.
            data_type: "image" for a single frame: no condition mask, zero channels in its place.
            x_ctrl: the control branch's residuals by block name, each [L, B, D].
            features: filled with each block's output [L, B, D] by block name, before its residual is added.

        Raises:
            WorldtuneError: the inputs do not fit the configuration.
        """
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
        for name, block in self.blocks.items():
            tokens = block(tokens, context)
            if features is not None:
                features[name] = tokens
            if x_ctrl is not None and name in x_ctrl:
                tokens = tokens + x_ctrl[name]
        out = self.final_layer(tokens, context.emb, context.adaln_lora)
        config = self.config
        return unpatchify(out, self.grid(x), patch_spatial=config.patch_spatial, patch_temporal=config.patch_temporal)


def stretched_mask(padding_mask: Tensor, x: Tensor) -> Tensor:
    """Resize a padding mask [B or 1, 1, height, width] to the latents `x` [B, C, T, H, W]; returns [B, 1, T, H, W]."""
    batch, _, num_frames, height, width = x.shape
    mask = F.interpolate(padding_mask.to(x.dtype), size=(height, width), mode="nearest")
    return mask[:, :, None].expand(batch, 1, num_frames, height, width)


def _validate(config: NetworkConfig, num_blocks: int) -> None:
    if config.model_channels % config.num_heads or config.model_channels // config.num_heads % 2:
        raise WorldtuneError(
            f"model_channels = {config.model_channels} is not num_heads = {config.num_heads} times an even number."
        )
    if config.model_channels // config.num_heads < MIN_HEAD_CHANNELS:
        raise WorldtuneError(
            f"model_channels = {config.model_channels} over num_heads = {config.num_heads} leaves fewer than "
            f"{MIN_HEAD_CHANNELS} channels a head, too few for rotary angles on three axes."
        )
    if not 0 < num_blocks <= config.num_blocks:
        raise WorldtuneError(f"num_control_blocks = {num_blocks} is more than num_blocks = {config.num_blocks}.")
    if bool(config.n_views_emb) != bool(config.view_condition_dim):
        raise WorldtuneError("n_views_emb and view_condition_dim go together: set both, or neither.")
    if config.add_repeat_frame_embedding and not config.view_condition_dim:
        raise WorldtuneError("add_repeat_frame_embedding needs view_condition_dim, whose channels it is added to.")
