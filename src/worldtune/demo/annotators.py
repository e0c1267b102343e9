"""Tiny networks of the annotators' own classes, with random weights, in the layout of the hub.

They annotate nothing sensible; they run the same code and write the same files as the released ones.
"""

from pathlib import Path

import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
)

SEED = 0


def write_depth_network(folder: Path) -> None:
    """Write a Depth-Anything-V2 network of 0.1 million parameters and its image processor to `folder`."""
    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16, 32, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    processor = DPTImageProcessor(
        do_resize=True,
        size={"height": 56, "width": 56},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        resample=3,
        do_normalize=True,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    processor.save_pretrained(folder)
