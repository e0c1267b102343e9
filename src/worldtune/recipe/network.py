"""The size and the wiring of a Transfer1 network, as recipes and model files state them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class NetworkConfig(BaseModel):
    """One diffusion transformer: the frozen base, or the control branch that is trained beside it.

    Names and meanings are those of spec/transfer1-network.md, chapter 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    in_channels: PositiveInt
    """Input channels without the padding mask: 16 latent channels, and one more where a condition mask is given."""
    out_channels: PositiveInt = 16
    """Latent channels that the network predicts."""
    patch_spatial: PositiveInt = 2
    """Height and width of a patch in latent pixels."""
    patch_temporal: PositiveInt = 1
    """Latent frames of a patch."""
    model_channels: PositiveInt
    """Width of the token stream."""
    num_blocks: PositiveInt
    """Transformer blocks that the base has; a control branch declares the same number and builds the first few."""
    num_heads: PositiveInt
    """Attention heads; each has model_channels / num_heads channels."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP over model_channels."""
    crossattn_emb_channels: PositiveInt = 1024
    """Width of the text embeddings."""
    adaln_lora_dim: PositiveInt = 256
    """Rank of the adaptive layer norm's low-rank projection."""
    max_img_h: PositiveInt = 240
    """Largest latent height that the position tables reach."""
    max_img_w: PositiveInt = 240
    """Largest latent width that the position tables reach."""
    max_frames: PositiveInt = 128
    """Largest number of latent frames that the position tables reach."""
    rope_h_extrapolation_ratio: PositiveFloat = 1.0
    """NTK ratio of the rotary embedding along the height."""
    rope_w_extrapolation_ratio: PositiveFloat = 1.0
    """NTK ratio of the rotary embedding along the width."""
    rope_t_extrapolation_ratio: PositiveFloat = 1.0
    """NTK ratio of the rotary embedding along time; the released 7B base has 2."""
    extra_per_block_abs_pos_emb_type: Literal["learnable", "sincos"] = "learnable"
    """The absolute position embedding that is added before every block; multi-view networks use sincos."""
    add_augment_sigma_embedding: bool = False
    """Whether the noise level of the condition frames is embedded; off in every released network."""
    n_views: PositiveInt = 1
    """Camera views that are stacked along time in one sample."""
    n_views_emb: int = 0
    """Rows of the view embedding table; 0 builds a network without views."""
    view_condition_dim: int = 0
    """Channels of the view embedding; 0 builds a network without views."""
    add_repeat_frame_embedding: bool = False
    """Whether the number of repeated frames of each view is embedded (multi-view networks)."""
    is_extend_model: bool = False
    """Whether the condition mask comes on top of in_channels (multi-view control branches)."""


class ControlNetworkConfig(NetworkConfig):
    """The control branch."""

    hint_channels: PositiveInt = 128
    """Channels of the hint latents; fewer are filled up with zeros."""
    num_control_blocks: PositiveInt = 3
    """Blocks that the branch has; each feeds the base block of the same index."""
    dropout_ctrl_branch: float = Field(default=0.5, ge=0.0, lt=1.0, json_schema_extra={"affects": "nothing"})
    """Probability of leaving the branch out of a sample; acts only where the base is trained too, which none is."""
