"""The split of the released 7B checkpoints, against the table of names and shapes in the specification (4.1)."""

import tomllib
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldtune.checkpoint.splitting import plan_split, split_checkpoint
from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.network import BaseNetwork

SIZES = Path(__file__).parents[2] / "config/models/transfer1_7b.toml"
DEGREE = 8
Shape = tuple[int, ...]
BUFFER = "pos_embedder.seq"

OUTSIDE = {
    "x_embedder.proj.1.weight": (4096, 72),
    BUFFER: (128,),
    "extra_pos_embedder.pos_emb_h": (120, 4096),
    "extra_pos_embedder.pos_emb_w": (120, 4096),
    "extra_pos_embedder.pos_emb_t": (128, 4096),
    "t_embedder.1.linear_1.weight": (4096, 4096),
    "t_embedder.1.linear_2.weight": (12288, 4096),
    "affline_norm.weight": (4096,),
    "final_layer.linear.weight": (64, 4096),
    "final_layer.adaLN_modulation.1.weight": (256, 4096),
    "final_layer.adaLN_modulation.2.weight": (8192, 256),
}
BLOCK = {
    **{f"{attention}.block.attn.{norm}.1.weight": (128,) for attention in (0, 1) for norm in ("to_q", "to_k")},
    **{f"{part}.adaLN_modulation.1.weight": (256, 4096) for part in (0, 1, 2)},
    **{f"{part}.adaLN_modulation.2.weight": (12288, 256) for part in (0, 1, 2)},
}
SPLIT_IN_BLOCK = {
    "0.block.attn.to_q.0.weight": ((4096, 4096), (512, 4096)),
    "0.block.attn.to_k.0.weight": ((4096, 4096), (512, 4096)),
    "0.block.attn.to_v.0.weight": ((4096, 4096), (512, 4096)),
    "0.block.attn.to_out.0.weight": ((4096, 4096), (4096, 512)),
    "1.block.attn.to_q.0.weight": ((4096, 4096), (512, 4096)),
    "1.block.attn.to_k.0.weight": ((4096, 1024), (512, 1024)),
    "1.block.attn.to_v.0.weight": ((4096, 1024), (512, 1024)),
    "1.block.attn.to_out.0.weight": ((4096, 4096), (4096, 512)),
    "2.block.layer1.weight": ((16384, 4096), (2048, 4096)),
    "2.block.layer2.weight": ((4096, 16384), (4096, 2048)),
}
HINT = [(16, 4096), (16, 16), (32, 16), (32, 32), (96, 32), (96, 96), (256, 96), (4096, 256)]
CONTROL_ONLY = {
    "x_embedder2.proj.1.weight": (4096, 516),
    **{f"input_hint_block.{2 * number}.weight": shape for number, shape in enumerate(HINT)},
    **{f"input_hint_block.{2 * number}.bias": shape[:1] for number, shape in enumerate(HINT)},
    **{f"zero_blocks.block{number}.weight": (4096, 4096) for number in range(3)},
    **{f"zero_blocks.block{number}.bias": (4096,) for number in range(3)},
}


def table(num_blocks: int, others: dict[str, Shape]) -> dict[str, tuple[Shape, Shape]]:
    """Full shape and the shape of each of 8 ranks, by name."""
    whole = OUTSIDE | others
    split = {}
    for number in range(num_blocks):
        prefix = f"blocks.block{number}.blocks."
        whole |= {prefix + name: shape for name, shape in BLOCK.items()}
        split |= {prefix + name: shapes for name, shapes in SPLIT_IN_BLOCK.items()}
    return {name: (shape, shape) for name, shape in whole.items()} | split


BASE, CONTROL = table(28, {}), table(3, CONTROL_ONLY)


def described(kind: str) -> dict[str, Tensor]:
    sizes = tomllib.loads(SIZES.read_text())
    with torch.device("meta"):
        network = (
            BaseNetwork(NetworkConfig.model_validate(sizes["base"]))
            if kind == "base"
            else ControlNetwork(ControlNetworkConfig.model_validate(sizes["control"]))
        )
        return dict(network.bfloat16().state_dict())


@pytest.mark.parametrize(
    ("kind", "prefix", "expected", "num_keys", "parameters", "parameters_of_a_rank"),
    [
        ("base", "base_model.net.", BASE, 571, 7_236_208_640, 1_276_102_656),
        ("control", "net.", CONTROL, 94, 893_497_120, 254_914_336),
    ],
)
def test_the_split_of_the_released_sizes(
    kind: str,
    prefix: str,
    expected: dict[str, tuple[Shape, Shape]],
    num_keys: int,
    parameters: int,
    parameters_of_a_rank: int,
) -> None:
    entries = plan_split({prefix + name: tensor for name, tensor in described(kind).items()}, DEGREE)
    assert {
        name.removeprefix(prefix): (entry.shape, entry.piece_shape(DEGREE)) for name, entry in entries.items()
    } == expected
    assert len(entries) == num_keys
    counted = [entry for name, entry in entries.items() if not name.endswith(BUFFER)]
    assert sum(prod(entry.shape) for entry in counted) == parameters
    assert sum(prod(entry.piece_shape(DEGREE)) for entry in counted) == parameters_of_a_rank


@pytest.mark.parametrize(
    ("stem", "prefix", "expected"), [("base_model", "base_model.net.", BASE), ("edge_control", "net.", CONTROL)]
)
def test_files_of_the_released_layout(
    tmp_path: Path, stem: str, prefix: str, expected: dict[str, tuple[Shape, Shape]]
) -> None:
    # All tensors with each axis shrunk: those that are split to one row or column a rank.
    tensors = {
        prefix + name: torch.ones(
            [DEGREE if full != own else 1 for full, own in zip(*shapes, strict=True)], dtype=torch.bfloat16
        )
        for name, shapes in expected.items()
    }
    source = tmp_path / f"{stem}.pt"
    torch.save(tensors, source)
    split_checkpoint(source, tmp_path / "checkpoints_tp", DEGREE)
    assert {path.name for path in (tmp_path / "checkpoints_tp").iterdir()} == {
        f"{stem}.pt",
        f"{stem}.split.json",
        *(f"{stem}_model_mp_{rank}.pt" for rank in range(8)),
    }
    for rank in range(DEGREE):
        content = torch.load(tmp_path / "checkpoints_tp" / f"{stem}_model_mp_{rank}.pt", weights_only=True)
        assert content["ema"] is None
        assert list(content["model"]) == list(tensors)
        assert all(piece.numel() == 1 for piece in content["model"].values())
