"""What a recipe will need, counted from its numbers alone: parameters, floating-point operations, disk.

Multiply-adds count as two operations. Activations that are computed a second time in the backward pass are not counted,
as is usual for model FLOPs.
"""

import itertools
from dataclasses import dataclass

from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.recipe.schema import LATENT_PIXELS, Recipe

HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256)
"""Widths between the layers of the hint's MLP (spec/transfer1-network.md 3.1)."""
ADAM_BYTES = 12
"""Bytes a trained parameter in a training checkpoint: float32 master weight and two moments."""
EMA_BYTES = 4
"""Bytes a trained parameter of each moving average."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a recipe needs."""

    base_parameters: int
    control_parameters: int
    tokens: int
    """Latent tokens of one 16:9 sample, all views together."""
    step_flop: float
    """Floating-point operations of one optimizer step."""
    weights_bytes: int
    """Base and control checkpoints, as released or exported, and once more split for the tensor-parallel ranks."""
    attempt_bytes: int
    """Training checkpoints that are kept, with one more while it is written, and the export."""


def estimate(recipe: Recipe) -> Estimate:
    """Count what a recipe needs, at 16:9."""
    saving = recipe.saving
    kept_for_good = recipe.training.max_iter // saving.keep_every if saving.keep_every else 0
    base = base_parameters(recipe.network.base)
    control = control_parameters(recipe.network.control)
    tokens = num_tokens(recipe)
    weight_bytes = 2 if recipe.training.precision == "bfloat16" else 4
    starts = base + (control if recipe.checkpoints.start else 0)
    # Without the live weights, which are the rounded masters.
    state = control * (ADAM_BYTES + EMA_BYTES * len(recipe.ema.rates))
    # Averaged and raw weights as safetensors, and the average in the original's format.
    export = 3 * control * weight_bytes
    return Estimate(
        base_parameters=base,
        control_parameters=control,
        tokens=tokens,
        step_flop=recipe.training.global_batch_size * sample_flop(recipe, tokens),
        weights_bytes=2 * weight_bytes * starts,
        attempt_bytes=(saving.keep_last + 1 + kept_for_good) * state + export,
    )


def num_tokens(recipe: Recipe) -> int:
    """Return the tokens of one 16:9 sample."""
    width, height = recipe.video_sizes_wh["16:9"]
    patch = LATENT_PIXELS * recipe.network.base.patch_spatial
    frames = recipe.num_latent_frames // recipe.network.base.patch_temporal
    return recipe.num_views * frames * (height // patch) * (width // patch)


def base_parameters(config: NetworkConfig) -> int:
    """Return the parameters of a base network (spec/transfer1-network.md 4.1)."""
    return _outer_parameters(config) + config.num_blocks * block_parameters(config)


def control_parameters(config: ControlNetworkConfig) -> int:
    """Return the parameters of a control branch, its unused final layer included."""
    width = config.model_channels
    widths = (width, *HINT_WIDTHS, width)
    hint_layers = sum(given * made + made for given, made in itertools.pairwise(widths))
    patch = config.patch_spatial**2 * config.patch_temporal
    own = width * (config.hint_channels + 1) * patch + hint_layers
    own += config.num_control_blocks * (width * width + width)
    return _outer_parameters(config) + config.num_control_blocks * block_parameters(config) + own


def block_parameters(config: NetworkConfig) -> int:
    """Return the parameters of one transformer block."""
    width, head = config.model_channels, config.model_channels // config.num_heads
    norms = 4 * head
    modulation = 3 * (width * config.adaln_lora_dim + config.adaln_lora_dim * 3 * width)
    return _token_weights(config) + 2 * width * config.crossattn_emb_channels + norms + modulation


def split_parameters(config: NetworkConfig, num_blocks: int) -> int:
    """Return the parameters of so many blocks that tensor ranks share: heads and hidden units; each has all others."""
    return num_blocks * (_token_weights(config) + 2 * config.model_channels * config.crossattn_emb_channels)


def _token_weights(config: NetworkConfig) -> int:
    """Return the weights of a block that every token is multiplied with."""
    width = config.model_channels
    return 6 * width * width + 2 * width * int(width * config.mlp_ratio)


def _outer_parameters(config: NetworkConfig) -> int:
    width, rank = config.model_channels, config.adaln_lora_dim
    patch = config.patch_spatial**2 * config.patch_temporal
    channels = config.in_channels + int(config.is_extend_model) + 1 + config.view_condition_dim
    total = width * channels * patch + width * width + 3 * width * width + width
    total += config.out_channels * patch * width + width * rank + rank * 2 * width
    if config.extra_per_block_abs_pos_emb_type == "learnable":
        rows = (
            config.max_img_h + config.max_img_w
        ) // config.patch_spatial + config.max_frames // config.patch_temporal
        total += rows * width
    total += config.n_views_emb * config.view_condition_dim
    if config.add_repeat_frame_embedding:
        total += 2 * config.view_condition_dim
    return total


def sample_flop(recipe: Recipe, tokens: int) -> float:
    """Return the operations of forward and backward of one sample with so many tokens.

    The frozen base has a backward with respect to its activations only, and none in its first block, before which
    nothing is trained. Embeddings, norms and the tokenizer are left out: below one per cent at 7B.
    """
    base, control = recipe.network.base, recipe.network.control
    width = base.model_channels
    text = recipe.data.text_tokens
    linear = 2.0 * _token_weights(base) * tokens
    to_text = 4.0 * tokens * text * width + 2 * 2.0 * base.crossattn_emb_channels * width * text * recipe.num_views
    attention = 4.0 * tokens * tokens * width + to_text
    frozen = base.num_blocks * (linear + attention) + (base.num_blocks - 1) * (linear + 2 * attention)
    trained = control.num_control_blocks * 3 * (linear + attention + 2.0 * width * width * tokens)
    return frozen + trained
