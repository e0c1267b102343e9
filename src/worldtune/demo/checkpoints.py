"""The demo's checkpoints, in the formats of the released ones: networks, text encoder, video tokenizer."""

import io
import logging
import math
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldtune.annotate.t5 import TextEncoder
from worldtune.checkpoint.hub import write_file_list
from worldtune.common.files import atomic_path
from worldtune.common.progress import progress
from worldtune.dataset.scenes import scene_names
from worldtune.demo.base_training import OBJECTIVE, PHASES, Clips, Phase, TrainedBase, train_base
from worldtune.demo.codec import Decoder, Encoder
from worldtune.demo.scenes import render_scene
from worldtune.demo.text_encoder import CHANNELS, write_text_encoder
from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.training.random import generator
from worldtune.transfer1.control import ControlNetwork, copy_base_weights
from worldtune.transfer1.layers import TokenLinear
from worldtune.transfer1.loading import initialise

VERSION = 3

NETWORKS = "worldtune/demo-transfer1"
TEXT_ENCODER = "worldtune/demo-t5"
TOKENIZER = "worldtune/demo-tokenizer"
"""Folders below the checkpoints' folder."""
CONTROLS = tuple(f"{name}_control" for name in ("vis", "edge", "depth", "seg", "keypoint", "4kupscaler"))
"""Names of the released branches for any video."""

SCENE_SEED = 7919
"""Added to the seed for the base's scenes, which are thereby other ones than the dataset's."""
NUM_SCENES = 48
NUM_FRAMES = 17
TEXT_TOKENS = 64
"""As the demo's recipes have it."""
HINT_GAIN = 2.0
"""Standard deviation of a hint layer's weights times the root of its inputs: SiLU halves what passes."""
WIDTH, HEIGHT, FPS = 320, 192, 24.0
LATENT_COLUMNS = 16
"""Latent frames that mean_std.pt covers."""
NUM_THREADS = 1
"""Fixed, since sums over another number of threads round differently. Operations of this size gain little from a second
thread, and wait for it at each step where other jobs run beside."""
logger = logging.getLogger(__name__)


def make_checkpoints(
    checkpoints: Path, model: Path, *, seed: int, num_scenes: int = NUM_SCENES, phases: tuple[Phase, ...] = PHASES
) -> TrainedBase:
    """Write all checkpoints of the demo and return the trained base.

    Args:
        checkpoints: folder of all checkpoints.
        model: the model file (TOML) with the networks' sizes.
        seed: of every random draw.
        num_scenes: scenes that are rendered for the base's training and the tokenizer's statistics.
        phases: steps of the base's training.
    """
    sizes = tomllib.loads(model.read_text(encoding="utf-8"))
    threads = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    try:
        write_text_encoder(checkpoints / TEXT_ENCODER, seed=seed)
        _list_files(checkpoints / TEXT_ENCODER)
        started = time.monotonic()
        videos, captions = _render(seed + SCENE_SEED, num_scenes)
        logger.info("rendered %d scenes in %.1f s", num_scenes, time.monotonic() - started)
        latents = _write_tokenizer(checkpoints / TOKENIZER, videos)
        clips = Clips(latents=latents * OBJECTIVE.sigma_data, text=embed(checkpoints / TEXT_ENCODER, captions), fps=FPS)
        started = time.monotonic()
        trained = train_base(NetworkConfig(**sizes["base"]), clips, seed=seed, phases=phases)
        logger.info("trained the base in %.1f s", time.monotonic() - started)
        control = ControlNetworkConfig(**sizes["control"])
        write_networks(checkpoints / NETWORKS, trained, control, seed, bases=("base_model",), controls=CONTROLS)
    finally:
        torch.set_num_threads(threads)
    return trained


def embed(folder: Path, captions: list[str]) -> Tensor:
    """Return the text encoder's embeddings of captions, padded with zeros (float32 [N, 64, C])."""
    text = torch.zeros(len(captions), TEXT_TOKENS, CHANNELS)
    for index, embedding in TextEncoder(folder, "cpu", "float32").encode(captions, TEXT_TOKENS):
        text[index, : len(embedding.tokens)] = torch.from_numpy(embedding.tokens)
    return text


def _render(seed: int, num_scenes: int) -> tuple[Tensor, list[str]]:
    """Return videos (float32 [N, 3, T, H, W], -1 to 1) and captions."""
    videos, captions = [], []
    for name in progress(scene_names(num_scenes), "scenes for the base"):
        # The tokenizer drops what finer sampling would add.
        size: dict[str, Any] = {"num_frames": NUM_FRAMES, "width": WIDTH, "height": HEIGHT, "fps": FPS, "samples": 1}
        scene = render_scene(name, seed=seed, **size)
        videos.append(torch.from_numpy(np.ascontiguousarray(scene.frames.transpose(3, 0, 1, 2))))
        captions.append(scene.caption)
    return torch.stack(videos).float() / 127.5 - 1, captions


def _write_tokenizer(folder: Path, videos: Tensor) -> Tensor:
    """Write the tokenizer with statistics of the videos; returns their normalised latents."""
    encoder, decoder = Encoder().eval(), Decoder().eval()
    with torch.no_grad():
        latents = torch.cat([encoder(video[None])[0] for video in videos])
    mean, std = _statistics(latents)
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(module), buffer)
        _write(folder / f"{name}.jit", buffer)
    _save(folder / "mean_std.pt", (mean, std))
    _list_files(folder)
    used = latents.shape[2]
    return (latents - mean[None, :, :used, None, None]) / std[None, :, :used, None, None]


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, float32 [16, 16]: a column for the first latent frame, then equal ones."""
    columns = []
    for part in (latents[:, :, :1], latents[:, :, 1:]):
        values = part.transpose(0, 1).flatten(1).double()
        columns.append((values.mean(dim=1), values.std(dim=1)))
    first, rest = columns
    mean, std = (
        torch.stack([first[index], *[rest[index]] * (LATENT_COLUMNS - 1)], dim=1).float().contiguous()
        for index in range(2)
    )
    return mean, std


def write_networks(
    folder: Path,
    trained: TrainedBase,
    config: ControlNetworkConfig,
    seed: int,
    *,
    bases: tuple[str, ...],
    controls: tuple[str, ...],
) -> None:
    """Write the base, and a branch: the base's first blocks with zero blocks, which change nothing yet.

    As in a released branch, and unlike in a fresh one, the hint passes through its layers. One branch stands for all
    controls, since none has learnt anything yet.

    Args:
        folder: where the files go.
        trained: the base.
        config: size of the branch.
        seed: of the branch's own layers.
        bases: names under which the base is written, without suffix.
        controls: names under which the branch is written, without suffix.
    """
    control = ControlNetwork(config)
    stream = generator(seed, "control")
    initialise(control, stream)
    _open_hint_path(control, stream)
    copy_base_weights(trained.base, control)
    uncertainty = {f"logvar.{name}": value for name, value in trained.logvar.state_dict().items()}
    base = {f"net.{name}": value for name, value in trained.base.state_dict().items()} | uncertainty
    branch = {f"net.{name}": value for name, value in control.state_dict().items()} | uncertainty
    for stem in bases:
        _save(folder / f"{stem}.pt", {f"base_model.{name}": value.detach().clone() for name, value in base.items()})
    for stem in controls:
        _save(folder / f"{stem}.pt", {name: value.detach().clone() for name, value in branch.items()})


@torch.no_grad()
def _open_hint_path(control: ControlNetwork, stream: torch.Generator) -> None:
    for layer in control.input_hint_block:
        if isinstance(layer, TokenLinear):
            layer.weight.normal_(std=HINT_GAIN / math.sqrt(layer.weight.shape[1]), generator=stream)


def _list_files(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    write_file_list(folder, [name for name in names if name != "files.json"])


def _save(path: Path, value: Any) -> None:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    _write(path, buffer)


def _write(path: Path, buffer: io.BytesIO) -> None:
    # Saving to a path would write its (temporary) name into the file, so that equal content had unequal bytes.
    buffer.seek(0)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        shutil.copyfileobj(buffer, file)
