"""The demo's networks for driving scenes: a base of one view and a base of three, each with its branches."""

import logging
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldtune.common.progress import progress
from worldtune.dataset.scenes import scene_names
from worldtune.demo.base_training import Clips, Phase, train_base
from worldtune.demo.checkpoints import (
    FPS,
    HEIGHT,
    NUM_FRAMES,
    NUM_THREADS,
    SCENE_SEED,
    TEXT_ENCODER,
    TOKENIZER,
    WIDTH,
    embed,
    write_networks,
)
from worldtune.demo.driving import CAMERA_CAPTIONS, render_street
from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.recipe.schema import Objective
from worldtune.transfer1.tokenizer import VideoTokenizer

VERSION = 1

NUM_SCENES = 12
PHASES = (
    Phase(num_steps=500, batch_size=2, cutting_hw=(12, 20)),
    Phase(num_steps=60, batch_size=1, cutting_hw=None),
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of driving networks."""

    folder: str
    """Below the checkpoints' folder."""
    cameras: dict[str, int]
    """Cameras of a clip and their rows in the view embedding."""
    objective: Objective
    bases: tuple[str, ...]
    """Names under which the base is written."""
    controls: tuple[str, ...]
    """Names under which the branch is written."""


FAMILIES = {
    "av": Family(
        folder="worldtune/demo-transfer1-av",
        cameras={"pinhole_front": 0},
        objective=Objective(max_condition_frames=0),
        bases=("base_model",),
        controls=("hdmap_control", "lidar_control"),
    ),
    "multiview": Family(
        folder="worldtune/demo-transfer1-multiview",
        cameras={"pinhole_front": 0, "pinhole_front_left": 1, "pinhole_front_right": 2},
        objective=Objective(max_condition_frames=2, main_view_given=True),
        bases=("t2w_base_model", "v2w_base_model"),
        controls=tuple(f"{mode}_{kind}_control" for mode in ("t2w", "v2w") for kind in ("hdmap", "lidar")),
    ),
}


def make_driving_checkpoints(
    checkpoints: Path,
    model: Path,
    family: str,
    *,
    seed: int,
    num_scenes: int = NUM_SCENES,
    phases: tuple[Phase, ...] = PHASES,
) -> None:
    """Train a base on rendered streets and write it with its branches.

    Args:
        checkpoints: folder of all checkpoints, with the demo's text encoder and tokenizer.
        model: the model file (TOML) with the networks' sizes.
        family: a key of FAMILIES.
        seed: of every random draw.
        num_scenes: streets that are rendered.
        phases: steps of the base's training.

    Raises:
        WorldtuneError: text encoder or tokenizer are missing.
    """
    chosen = FAMILIES[family]
    sizes = tomllib.loads(model.read_text(encoding="utf-8"))
    threads = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    try:
        latents, captions = _encode_streets(checkpoints, seed + SCENE_SEED, num_scenes, tuple(chosen.cameras))
        views = len(chosen.cameras)
        text = embed(checkpoints / TEXT_ENCODER, captions).unflatten(0, (num_scenes, views)).flatten(1, 2)
        clips = Clips(
            latents=latents * chosen.objective.sigma_data,
            text=text,
            fps=FPS,
            view_indices=tuple(chosen.cameras.values()) if views > 1 else (),
        )
        started = time.monotonic()
        base = NetworkConfig(**sizes["base"])
        trained = train_base(base, clips, seed=seed, phases=phases, objective=chosen.objective)
        logger.info("trained the base in %.1f s", time.monotonic() - started)
        write_networks(
            checkpoints / chosen.folder,
            trained,
            ControlNetworkConfig(**sizes["control"]),
            seed,
            bases=chosen.bases,
            controls=chosen.controls,
        )
    finally:
        torch.set_num_threads(threads)


def _encode_streets(checkpoints: Path, seed: int, num_scenes: int, cameras: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Return normalised latents (float32 [N, 16, V * T, H, W]) and the captions of all views, scene by scene."""
    tokenizer = VideoTokenizer(checkpoints / TOKENIZER, NUM_FRAMES, torch.device("cpu"), torch.float32)
    latents, captions = [], []
    for name in progress(scene_names(num_scenes), "streets for the base"):
        street = render_street(
            name, seed=seed, num_frames=NUM_FRAMES, width=WIDTH, height=HEIGHT, fps=FPS, cameras=cameras
        )
        for camera in cameras:
            video = torch.from_numpy(street.frames[camera]).permute(3, 0, 1, 2).float() / 127.5 - 1
            latents.append(tokenizer.encode(video[None])[0])
            captions.append(street.caption if camera == cameras[0] else CAMERA_CAPTIONS[camera])
    stacked = torch.stack(latents).unflatten(0, (num_scenes, len(cameras)))
    return stacked.transpose(1, 2).flatten(2, 3), captions
