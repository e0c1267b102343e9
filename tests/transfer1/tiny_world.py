"""Everything that a Transfer1 run reads, as small as it gets: clips, controls, texts, tokenizer, split checkpoints."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from worldtune.checkpoint.splitting import split_checkpoint
from worldtune.common.files import sha256_file, write_json
from worldtune.dataset.clips import clip_columns, control_path, rows_digest, t5_path, video_path
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.latents import LatentsKind
from worldtune.dataset.manifest import manifest_path, write_manifest
from worldtune.dataset.text import write_t5
from worldtune.media.video import write_video
from worldtune.recipe.network import NetworkConfig
from worldtune.recipe.schema import Recipe
from worldtune.training.inputs import Inputs, find_inputs
from worldtune.training.task import ValidationRow
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.loading import initialise
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import BaseNetwork
from worldtune.transfer1.task import Transfer1Task

FPS = 24.0
NUM_FRAMES = 20
TEXT_CHANNELS = 16
SIZES_WH = {"0": (160, 96), "1": (160, 96), "2": (200, 112), "3": (160, 96), "4": (160, 96), "5": (96, 96)}
"""Size of each clip by the digit that its id repeats; clips 3 to 5 are held out."""
NETWORK = {
    "in_channels": 17,
    "model_channels": 32,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "crossattn_emb_channels": TEXT_CHANNELS,
    "adaln_lora_dim": 4,
    "max_img_h": 24,
    "max_img_w": 24,
    "max_frames": 4,
    "rope_t_extrapolation_ratio": 2.0,
}
CONTROL = {**NETWORK, "rope_t_extrapolation_ratio": 1.0, "hint_channels": 20, "num_control_blocks": 1}


def clip_id(digit: str) -> str:
    return digit * 16


def tiny_recipe(**sections: dict[str, Any]) -> Recipe:
    """Return a recipe for the tiny world; keyword arguments go over its sections."""
    values: dict[str, dict[str, Any]] = {
        "experiment": {"family": "transfer1", "description": "A test"},
        "data": {"dataset": "tiny", "num_frames": 17, "resolution": "128", "num_workers": 0},
        "network": {"size": "tiny", "base": NETWORK, "control": CONTROL},
        "checkpoints": {"base": "me/tiny/base_model.pt", "control": "me/tiny/edge_control.pt", "tokenizer": "me/codec"},
        "control": {"kind": "edge"},
        "training": {"max_iter": 2, "seed": 5, "global_batch_size": 1, "precision": "float32", "device": "cpu"},
        "parallel": {"tensor": 1, "data": 1, "sequence": False},
        "validation": {"every": 2, "sigmas": [0.5, 5.0]},
        "sampling": {"num_steps": 2, "num_clips": 2},
        # What random weights predict is worse than nothing.
        "health": {"first_loss_max": 3.0},
    }
    for name, overrides in sections.items():
        values[name] = {**values.get(name, {}), **overrides}
    return Recipe.model_validate(values)


def tiny_inputs(root: Path, recipe: Recipe) -> Inputs:
    return find_inputs(recipe, datasets=root / "datasets", checkpoints=root / "checkpoints")


class TinyEncoder(nn.Module):
    def forward(self, video: Tensor) -> Tensor:
        frames = video[:, :, ::8]
        pooled = torch.nn.functional.avg_pool3d(frames.float(), [1, 8, 8]).to(video.dtype)
        return torch.cat([pooled, pooled, pooled, pooled, pooled, pooled[:, :1]], dim=1)


class TinyDecoder(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        large = latents[:, :3].repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
        return torch.cat([large[:, :, :1], large[:, :, 1:].repeat_interleave(8, dim=2)], dim=2)


def cache_tiny_latents(root: Path, recipe: Recipe) -> Path:
    """Cache the latents that a recipe of the tiny world trains on; returns the manifest."""
    from worldtune.transfer1.latents import cache_latents

    folders = {"datasets": root / "datasets", "checkpoints": root / "checkpoints"}
    kind = LatentsKind.of(recipe)
    return cache_latents(recipe.data.dataset, "0000", kind, **folders, device=torch.device("cpu"), num_workers=0)


def write_ingested(root: Path, rows: list[dict[str, Any]]) -> None:
    """Write the manifest of stage ingest for the only shard."""
    ingested = [{column: row.get(column) for column in INGEST_COLUMNS} for row in rows]
    write_manifest(manifest_path(root, "ingest", "0000"), ingested, INGEST_COLUMNS)


def make_world(root: Path, num_frames: int = NUM_FRAMES) -> None:
    """Write datasets/tiny and checkpoints/me below `root`, split for 1 and 2 ranks."""
    make_dataset(root / "datasets" / "tiny", num_frames)
    codec = root / "checkpoints" / "me" / "codec"
    codec.mkdir(parents=True)
    torch.jit.script(TinyEncoder()).save(str(codec / "encoder.jit"))
    torch.jit.script(TinyDecoder()).save(str(codec / "decoder.jit"))
    torch.save((torch.zeros(16 * 16), torch.full((16 * 16,), 0.5)), codec / "mean_std.pt")
    write_json(codec / "files.json", {"encoder.jit": "0" * 64})
    stream = torch.Generator().manual_seed(3)
    base = BaseNetwork(NetworkConfig(**NETWORK))
    control = ControlNetwork(tiny_recipe().network.control)
    head = LogVariance()
    for network in (base, control):
        initialise(network, stream)
        for parameter in network.parameters():
            # Zero layers would hide mistakes behind them.
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=stream)
    head.initialise(stream)
    head_state = {f"logvar.{name}": value for name, value in head.state_dict().items()}
    base_state = {f"net.{name}": value for name, value in base.state_dict().items()} | head_state
    repo = root / "checkpoints" / "me" / "tiny"
    repo.mkdir()
    torch.save({f"base_model.{name}": value for name, value in base_state.items()}, repo / "base_model.pt")
    control_state = {f"net.{name}": value for name, value in control.state_dict().items()} | head_state
    torch.save(control_state, repo / "edge_control.pt")
    for degree in (1, 2):
        for stem in ("base_model", "edge_control"):
            split_checkpoint(repo / f"{stem}.pt", repo / f"checkpoints_tp_{degree}", degree)


def make_dataset(root: Path, num_frames: int = NUM_FRAMES) -> None:
    rows = []
    for digit, (width, height) in SIZES_WH.items():
        rng = np.random.default_rng(int(digit))
        name = clip_id(digit)
        row = dict.fromkeys(clip_columns(("edge",)))
        row |= {"clip_id": name, "source_key": f"{digit}.mp4", "status": "ok", "reason": "", "fps": FPS}
        row |= {"num_frames": num_frames, "width": width, "height": height, "num_tokens": 4}
        row["split"] = "held_out" if digit in "345" else "train"
        rows.append(row)
        for folder in ("videos", "t5_xxl", "edge", "metas"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 255, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
        write_video(video_path(root, name), blocks.repeat(8, axis=1).repeat(8, axis=2), FPS)
        row["video_sha256"] = sha256_file(video_path(root, name))
        edges = rng.integers(0, 2, (num_frames, height, width), dtype=np.uint8) * 255
        write_video(control_path(root, name, "edge"), edges, FPS, lossless=True)
        write_t5(t5_path(root, name), rng.normal(size=(4, TEXT_CHANNELS)).astype(np.float32))
        (root / "metas" / f"{name}.txt").write_text(f"Blocks number {digit}.")
    write_ingested(root, rows)
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(clip_columns(("edge",)).items())))
    pq.write_table(table, root / "clips.parquet")
    write_json(
        root / "dataset.json",
        {
            "format": 1,
            "name": "tiny",
            "digest": rows_digest(table.to_pylist()),
            "num_clips": len(rows),
            "controls": ["edge"],
            "text": {"encoder": "me/t5", "channels": TEXT_CHANNELS, "max_tokens": 512},
            "splits": {"train": 3, "held_out": 3},
        },
    )


def held_out_rows(task: Transfer1Task) -> list[ValidationRow]:
    """Measure all held-out clips; sorted as the trainer's record is."""
    rows = itertools.chain.from_iterable(task.validate())
    return sorted(rows, key=lambda row: (row.clip_id, row.sigma, row.control))
