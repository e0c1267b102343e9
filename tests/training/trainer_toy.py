"""A task of a few hundred parameters, and processes that train it."""

import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import Dataset

from worldtune.common.files import write_text
from worldtune.parallel.mesh import Mesh, build_mesh, sample_group
from worldtune.recipe.schema import Recipe
from worldtune.training.inputs import Inputs, SplitCheckpoint
from worldtune.training.lease import Lease
from worldtune.training.metrics import NullTracker
from worldtune.training.order import clip_index
from worldtune.training.preflight import Preflight
from worldtune.training.random import generator
from worldtune.training.sharding import local
from worldtune.training.signals import EXIT_STOPPED, StopRequest
from worldtune.training.task import Batch, LossOutput, PreviewFiles, Sample, Task, ValidationRow
from worldtune.training.trainer import train

NUM_CLIPS = 7
NUM_HELD_OUT = 2
WIDTH = 8
WAIT_S = 0.1


def toy_recipe(**overrides: Any) -> Recipe:
    """A recipe whose networks and paths nobody reads; overrides are `section__key=value` or `section=values`."""
    network = {"in_channels": 16, "model_channels": 8, "num_blocks": 1, "num_heads": 2}
    values: dict[str, Any] = {
        "experiment": {"family": "transfer1", "description": "toy"},
        "data": {"dataset": "toy", "num_workers": 0},
        "network": {"size": "toy", "base": network, "control": network},
        "checkpoints": {"base": "toy/base.pt", "tokenizer": "toy/tokenizer"},
        "control": {"kind": "edge"},
        "optimizer": {"learning_rate": 0.05},
        "schedule": {"warmup_steps": 3},
        "ema": {"rates": [0.1, 0.05]},
        "training": {
            "max_iter": 8,
            "seed": 5,
            "global_batch_size": 4,
            "gradient_accumulation": 2,
            "micro_batch_size": 2,
            "precision": "float32",
        },
        "parallel": {"tensor": 1, "data": 1},
        "validation": {"every": 4, "sigmas": [1.0], "max_clips": 1},
        "previews": {"every": 0},
        "saving": {"every": 3, "keep_last": 2},
    }
    for name, value in overrides.items():
        section, _, key = name.partition("__")
        values[section] = {**values.get(section, {}), **({key: value} if key else value)}
    return Recipe.model_validate(values)


def toy_inputs() -> Inputs:
    """What the toy task reads, in the place of `find_inputs`."""
    base = SplitCheckpoint(source="toy/base.pt", source_sha256="b" * 64, split_file=Path("base.split.json"))
    clips = [SimpleNamespace(clip_id=f"clip{number}", num_frames=121) for number in range(NUM_HELD_OUT)]
    dataset: Any = SimpleNamespace(name="toy", digest="d" * 64, split=lambda _name: clips)
    return Inputs(
        dataset=dataset,
        base=base,
        control=None,
        tokenizer_name="toy/tokenizer",
        tokenizer=Path("toy/tokenizer"),
        tokenizer_sha256="t" * 64,
        latents=None,
    )


class ToyDataset(Dataset[Sample]):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, ordinal: int) -> Sample:
        clip = clip_index(self.seed, ordinal, NUM_CLIPS)
        pixels = torch.randint(256, (WIDTH,), generator=generator(clip, "pixels"), dtype=torch.uint8)
        return {"clip_id": f"clip{clip}", "ordinal": torch.tensor(ordinal), "video": pixels}


class ToyNetwork(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.norm = nn.LayerNorm(WIDTH, dtype=dtype)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, dtype=dtype)
        self.down = nn.Linear(2 * WIDTH, WIDTH, dtype=dtype)
        self.dead = nn.Linear(WIDTH, 2, dtype=dtype)
        self.frozen = nn.Linear(WIDTH, WIDTH, dtype=dtype).requires_grad_(False)

    def forward(self, x_bd: Tensor) -> Tensor:
        return self.down(torch.nn.functional.gelu(self.up(self.norm(self.frozen(x_bd)))))


@dataclass(frozen=True, kw_only=True)
class ToyDrawn:
    clip_id: str
    guidances: tuple[float, ...]
    number: float

    def write(self, folder: Path) -> PreviewFiles:
        for suffix in (".mp4", ".png"):
            write_text(folder / f"{self.clip_id}{suffix}", f"{self.number}")
        return PreviewFiles(
            clip_id=self.clip_id,
            columns=("control", "ground truth"),
            video=f"{self.clip_id}.mp4",
            grid=f"{self.clip_id}.png",
            num_frames=1,
            height=2,
            width=2,
            fps=24.0,
            scores={guidance: {"edge_f1": self.number + guidance} for guidance in self.guidances},
        )


class ToyTask:
    """A toy network on random numbers.

    `events` maps a sample number to what happens when it is trained on: a signal's name or "kill"; "nan" (loss and all
    gradients), "nan_loss" (the loss alone), "nan_gradient" (that of the layer `up` alone); "skew" (three times the
    loss); "wait" (its batch comes late).
    """

    def __init__(self, recipe: Recipe, mesh: Mesh, events: dict[str, str] | None = None) -> None:
        self.recipe = recipe
        self.dtype = torch.bfloat16 if recipe.training.precision == "bfloat16" else torch.float32
        self.trainable = ToyNetwork(self.dtype)
        if mesh.tensor.size() > 1:
            parallelize_module(self.trainable, mesh.tensor, {"up": ColwiseParallel(), "down": RowwiseParallel()})
        self.events = events or {}
        self.sample_group = sample_group(mesh)

    @property
    def start_checks(self) -> dict[str, str]:
        return {"weights": "as they were made"}

    @property
    def dataset_digest(self) -> str:
        return "toy"

    @property
    def measured_clip_ids(self) -> list[str]:
        return [f"clip{number}" for number in range(NUM_HELD_OUT)][: self.recipe.validation.max_clips]

    def make_dataset(self) -> ToyDataset:
        return ToyDataset(self.recipe.training.seed)

    def largest_batch(self) -> Batch:
        size = self.recipe.training.micro_batch_size
        video = torch.randint(256, (size, WIDTH), generator=generator(0, "largest"), dtype=torch.uint8)
        return {"clip_id": ["largest"] * size, "ordinal": torch.full((size,), -1), "video": video}

    def prepare(self, batch: Batch) -> Batch:
        if "wait" in (self.events.get(str(ordinal)) for ordinal in batch["ordinal"].tolist()):
            time.sleep(WAIT_S)
        return {**batch, "video": batch["video"].float() / 127.5 - 1}

    def training_loss(self, batch: Batch) -> LossOutput:
        x = batch["video"]
        noise = torch.stack(
            [
                torch.randn(WIDTH, generator=generator(self.recipe.training.seed, "noise", ordinal))
                for ordinal in batch["ordinal"].tolist()
            ]
        )
        loss = (self.trainable((x + noise).to(self.dtype)).float() - x).square().mean()
        for ordinal in batch["ordinal"].tolist():
            event = self.events.get(str(ordinal))
            if event == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif event == "nan":
                loss = loss * float("nan")
            elif event == "nan_loss":
                loss = loss + float("nan")
            elif event == "nan_gradient":
                # The root of 0 has no slope.
                loss = loss + (0 * self.trainable.up.weight).sum().abs().sqrt()
            elif event == "skew":
                loss = loss * 3
            elif event not in (None, "wait"):
                os.kill(os.getpid(), signal.Signals[event])
        return LossOutput(loss=loss, edm_loss=loss.detach(), num_tokens=len(x))

    def validate(self) -> Iterator[Sequence[ValidationRow]]:
        total = sum(parameter.float().sum().item() for parameter in self.trainable.frozen.parameters())
        for clip_id in self.measured_clip_ids:
            yield [
                ValidationRow(sigma=sigma, clip_id=clip_id, control="own", loss=sigma * total**2)
                for sigma in self.recipe.validation.sigmas
            ]

    def preview(self) -> Iterator[Sequence[ToyDrawn]]:
        previews = self.recipe.previews
        number = local(self.trainable.norm.weight).double().sum()
        for index in range(min(previews.num_clips, NUM_HELD_OUT)):
            # Would differ between the ranks, and hang, if some made more steps than others.
            torch.distributed.all_reduce(number)
            number = number / torch.distributed.get_world_size()
            clip = ToyDrawn(clip_id=f"clip{index}", guidances=previews.guidances, number=float(number))
            yield [clip] if torch.distributed.get_rank() == 0 else []


def make_task(recipe: Recipe, mesh: Mesh, events: dict[str, str] | None, world: Path | None) -> Task:
    """Return the toy task or, in a tiny world, the Transfer1 task."""
    if world is None:
        return ToyTask(recipe, mesh, events)
    from tiny_world import tiny_inputs

    from worldtune.transfer1.task import build_task

    return build_task(recipe, tiny_inputs(world, recipe), mesh, torch.device("cpu"))


def train_toy(
    attempt: Path,
    recipe: Recipe,
    events: dict[str, str] | None = None,
    *,
    world: Path | None = None,
    measured_before: bool = False,
) -> int:
    """Train in this process, whose environment tells its rank; returns its exit code."""
    torch.set_num_threads(1)
    parallel = recipe.parallel
    mesh = build_mesh("cpu", data=parallel.data, context=parallel.context, tensor=parallel.tensor)
    lease = Lease(attempt) if torch.distributed.get_rank() == 0 else None
    if lease is not None:
        assert lease.try_acquire() is None
    device = torch.device("cpu")
    preflight = Preflight(recipe, attempt, circumstances="toy", device=device, lease=lease, only=False)
    result = train(
        recipe,
        make_task(recipe, mesh, events, world),
        attempt,
        mesh=mesh,
        device=device,
        stop=StopRequest(attempt),
        lease=lease,
        tracker=NullTracker(),
        about={"base_sha256": "toy"},
        preflight=preflight if measured_before else None,
    )
    if lease is not None:
        lease.release()
    return EXIT_STOPPED if result.stopped is not None else 0


def _child(
    rank: int,
    world_size: int,
    port: int,
    attempt: str,
    recipe: str,
    events: str,
    world: str,
    measured_before: bool,
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    logging.basicConfig(filename=f"{attempt}.rank{rank}.log", level=logging.INFO)
    code = train_toy(
        Path(attempt),
        Recipe.model_validate_json(recipe),
        json.loads(events),
        world=Path(world) if world else None,
        measured_before=measured_before,
    )
    torch.distributed.destroy_process_group()
    sys.exit(code)


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # PyTorch, and what its optimizers import later, is imported once, by the server that all processes are forked from.
    # It finds modules by this variable only.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    context.set_forkserver_preload(["trainer_toy", "torch._dynamo", "worldtune.transfer1.task"])
    return context


def spawn(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Start a function of a test in a process of its own."""
    process = _context().Process(target=target, args=arguments)
    process.start()
    return process


def start_ranks(
    attempt: Path,
    recipe: Recipe,
    events_by_rank: dict[int, dict[str, str]] | None = None,
    *,
    world: Path | None = None,
    measured_before: bool = False,
) -> list[ForkServerProcess]:
    """Start the ranks of a recipe as processes of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(recipe.world_size):
        events = json.dumps((events_by_rank or {}).get(rank, {}))
        arguments = (
            *(rank, recipe.world_size, port, str(attempt)),
            *(recipe.model_dump_json(), events, str(world or ""), measured_before),
        )
        processes.append(spawn(_child, *arguments))
    return processes


def exit_codes(processes: list[ForkServerProcess], timeout_s: float = 60.0) -> list[int | None]:
    """Wait for ranks; where one was killed the others are ended, as torchrun would."""
    deadline = time.monotonic() + timeout_s
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode is not None and process.exitcode not in (0, EXIT_STOPPED) for process in processes):
            break
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]
