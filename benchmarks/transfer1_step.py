"""A training step of a Transfer1 recipe with random weights: time by part, tokens/s, MFU, peak memory, and a baseline.

python benchmarks/transfer1_step.py --case recompute=all_but_attention --case recompute=mlp --baseline
torchrun --nproc-per-node 2 benchmarks/transfer1_step.py --case context=2 --case tensor=2

A case is a list of keys of the recipe's section [parallel]; degrees that are not named are 1. With several processes a
case of degree 1 is measured by the first process alone, while the others wait.

Operations are counted, not measured (recipe/estimate.py, sample_flop): for L tokens of width D and a block's weights W
(14 D^2 a token), a forward pass of a block has 2 W L + 4 L^2 D + 4 L M D for M tokens of text. The backward pass has
the attention twice, and the matrix products once in the frozen base (towards the activations) and twice in the branch.
What is computed a second time counts once. The step is everything between two batches: noise, both networks, backward,
reduction, clipping, optimizer, moving average; latents are given.

The baseline is the same network without compilation on one GPU, with the attention that PyTorch chooses, that keeps
everything but what the original computes again (spec/transfer1-network.md 2.9). Where it does not fit, as at 7B, it is
measured with few blocks of the base and extrapolated along them; the output says so.
"""

import argparse
import contextlib
import gc
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import worldtune.transfer1.network as network_module
from worldtune.kernels.attention import Kernel, fastest_kernel, use_kernel
from worldtune.parallel.mesh import Mesh, build_mesh
from worldtune.parallel.tokens import local
from worldtune.recipe.estimate import num_tokens, sample_flop
from worldtune.recipe.load import load_recipe
from worldtune.recipe.schema import LATENT_CHANNELS, LATENT_PIXELS, Recipe
from worldtune.training.ema import PowerEma
from worldtune.training.gradients import GradientAccumulator, clip, global_norm
from worldtune.training.optimizer import MasterAdamW
from worldtune.training.sharding import trainable_parameters
from worldtune.transfer1.conditions import Conditions
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.denoiser import Denoiser, lay_out, make_network
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import MLP, Attention, BaseNetwork
from worldtune.transfer1.objective import add_noise, draw, edm_loss

PEAK_TFLOPS = 989.0
"""Dense bfloat16 of an H100 or H200 by its datasheet."""
GIB = 2**30
BASELINE_BLOCKS = (3, 7)
KINDS = {
    "communication": ("nccl",),
    "attention": ("flash", "fmha", "cudnn_generated", "sdpa", "attention", "cute"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas"),
}
"""Parts of a kernel's name that tell what it does, tried in this order; the rest is elementwise."""


class Step:
    """The trainer's step on random latents."""

    def __init__(self, recipe: Recipe, mesh: Mesh, device: torch.device, *, eager: bool) -> None:
        """Build networks with random weights and the optimizer's state."""
        self.recipe, self.mesh, self.device = recipe, mesh, device
        self.base = self._network(BaseNetwork, recipe.network.base)
        self.control = self._network(ControlNetwork, recipe.network.control)
        logvar = LogVariance().to(device).requires_grad_(False)
        self.base.requires_grad_(False)
        if not eager:
            lay_out(self.base, self.control, recipe, mesh, device)
        self.denoiser = Denoiser(self.base, self.control, logvar, sigma_data=recipe.objective.sigma_data)
        self.parameters = trainable_parameters(self.control)
        self.optimizer = MasterAdamW(self.parameters, recipe.optimizer)
        self.ema = PowerEma(self.optimizer.live, recipe.ema.rates)
        self.gradients = GradientAccumulator(self.parameters, mesh)
        self.number = 0
        self.latents, self.conditions = self._batch()

    def _network(self, kind: Any, config: Any) -> Any:
        network = make_network(kind, config, self.recipe, self.mesh, self.device)
        generator = torch.Generator(self.device).manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                local(parameter).normal_(std=0.02, generator=generator)
        return network

    def _batch(self) -> tuple[Tensor, Conditions]:
        recipe, device = self.recipe, self.device
        width, height = recipe.video_sizes_wh["16:9"]
        frames = recipe.num_views * recipe.num_latent_frames
        shape = (1, LATENT_CHANNELS, frames, height // LATENT_PIXELS, width // LATENT_PIXELS)
        generator = torch.Generator(device).manual_seed(2)
        text_shape = (1, recipe.num_views * recipe.data.text_tokens, recipe.network.base.crossattn_emb_channels)
        latents, hint, text = (
            torch.randn(each, generator=generator, device=device) for each in (shape, shape, text_shape)
        )
        return latents / 2, Conditions(
            hint_bcthw=hint / 2,
            text=text,
            fps=torch.full((1,), 24.0, device=device),
            padding_mask=torch.zeros(1, 1, height, width, device=device),
            indicator_bt=torch.zeros(1, frames, device=device),
        )

    def __call__(self, mark: Callable[[str], None]) -> float:
        """Make a step; `mark` is told the end of each part. Returns the loss."""
        config = self.recipe.objective
        draws = draw([self.number], self.latents.shape[1:], seed=1, config=config, num_views=self.recipe.num_views).to(
            self.device
        )
        noisy = add_noise(self.latents, draws, sigma_data=config.sigma_data)
        prediction = self.denoiser(noisy, draws.sigma_b, self.conditions)
        loss = edm_loss(
            prediction,
            self.latents,
            sigma_b=draws.sigma_b,
            indicator_bt=draws.indicator_bt,
            log_variance_b=self.denoiser.log_variance(draws.sigma_b),
            config=config,
        ).loss
        mark("forward")
        loss.backward()
        self.gradients.add()
        mark("backward")
        gradients = self.gradients.finish()
        norm = global_norm(gradients, self.parameters, self.mesh).item()
        clip(gradients, norm, self.recipe.optimizer.max_grad_norm)
        self.optimizer.step(gradients, 1e-5)
        self.ema.update(self.number)
        self.number += 1
        mark("optimizer")
        return loss.item()


def measure(step: Step, *, warm_up: int, steps: int) -> dict[str, Any]:
    """Return the median seconds of a step and of its parts, the loss and the peak memory of this rank."""
    for _ in range(warm_up):
        step(lambda _: None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    rows: list[dict[str, float]] = []
    loss = 0.0
    for _ in range(steps):
        events = [("start", torch.cuda.Event(enable_timing=True))]
        events[0][1].record()

        def mark(part: str, events: list[tuple[str, torch.cuda.Event]] = events) -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            events.append((part, event))

        loss = step(mark)
        torch.cuda.synchronize()
        row = {part: before.elapsed_time(event) / 1000 for (_, before), (part, event) in itertools.pairwise(events)}
        rows.append({"step": sum(row.values()), **row})
    return {
        "seconds": {part: median(row[part] for row in rows) for part in rows[0]},
        "all_steps_s": [round(row["step"], 3) for row in rows],
        "loss": loss,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / GIB,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / GIB,
    }


def time_by_kind(step: Step) -> dict[str, float]:
    """Return the seconds of the device's kernels in one step, by what they do; streams may overlap."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(lambda _: None)
        torch.cuda.synchronize()
    seconds = dict.fromkeys((*KINDS, "elementwise"), 0.0)
    for event in profile.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "elementwise")
        seconds[kind] += event.self_device_time_total / 1e6
    return seconds


def matrix_product_tflops(device: torch.device) -> float:
    """Return the rate of an 8192 x 8192 x 8192 bfloat16 product on random data."""
    size, repeats = 8192, 20
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        a @ b
    end.record()
    end.synchronize()
    return 2 * size**3 * repeats / start.elapsed_time(end) / 1e9


@contextlib.contextmanager
def original_recomputation() -> Iterator[None]:
    """Recompute what the original does: norm and modulation, norm and rotation of queries and keys, GELU and layer2."""
    modulated = network_module.modulated

    def attention_forward(self: Attention, x: Tensor, context: network_module.BlockContext) -> Tensor:
        source = context.text if self.to_text else x
        query, key, value = (
            to[0](tokens).unflatten(-1, (-1, self.head_channels))
            for to, tokens in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )

        def normed(norm: nn.Module, part: Tensor) -> Tensor:
            return norm(part) if self.to_text else context.rotation.apply(norm(part))

        query = checkpoint(normed, self.to_q[1], query, use_reentrant=False)
        key = checkpoint(normed, self.to_k[1], key, use_reentrant=False)
        query, key, value = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value).permute(2, 0, 1, 3)
        return self.to_out[0](out.flatten(2))

    def mlp_forward(self: MLP, x: Tensor, context: network_module.BlockContext) -> Tensor:
        return checkpoint(lambda hidden: self.layer2(F.gelu(hidden)), self.layer1(x), use_reentrant=False)

    def checkpointed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return checkpoint(modulated, x, shift, scale, use_reentrant=False)

    kept = (modulated, Attention.forward, MLP.forward)
    network_module.modulated = checkpointed
    Attention.forward, MLP.forward = attention_forward, mlp_forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        network_module.modulated = kept[0]
        Attention.forward, MLP.forward = kept[1], kept[2]  # type: ignore[method-assign]


def with_blocks(recipe: Recipe, blocks: int) -> Recipe:
    """Return the recipe with so many blocks of the base."""
    base = recipe.network.base.model_copy(update={"num_blocks": blocks})
    control = recipe.network.control.model_copy(update={"num_blocks": blocks})
    return recipe.model_copy(update={"network": recipe.network.model_copy(update={"base": base, "control": control})})


def with_layout(recipe: Recipe, case: str) -> Recipe:
    """Return the recipe with a case's keys in its section [parallel]."""
    values = {"tensor": 1, "context": 1, "data": 1}
    values |= dict(pair.split("=", 1) for pair in case.split(",") if pair)  # type: ignore[arg-type]
    parallel = type(recipe.parallel).model_validate({**recipe.parallel.model_dump(), **values})
    return recipe.model_copy(update={"parallel": parallel})


def baseline(recipe: Recipe, mesh: Mesh, device: torch.device, *, warm_up: int, steps: int) -> dict[str, Any]:
    """Measure the baseline, with few blocks where all do not fit."""
    use_kernel("sdpa")
    blocks = recipe.network.base.num_blocks
    measured = {}
    for count in BASELINE_BLOCKS:
        with original_recomputation():
            step = Step(with_blocks(recipe, count), mesh, device, eager=True)
            measured[count] = measure(step, warm_up=warm_up, steps=steps)
        del step
        free()
    few, more = BASELINE_BLOCKS

    def at_all_blocks(value: Callable[[dict[str, Any]], float]) -> float:
        slope = (value(measured[more]) - value(measured[few])) / (more - few)
        return value(measured[more]) + slope * (blocks - more)

    parts = measured[few]["seconds"]
    return {
        "seconds": {part: at_all_blocks(partial(_seconds_of, part)) for part in parts},
        "peak_memory_gib": at_all_blocks(lambda row: row["peak_memory_gib"]),
        "extrapolated_from_blocks": {
            count: {"seconds": row["seconds"], "peak_memory_gib": row["peak_memory_gib"]}
            for count, row in measured.items()
        },
    }


def _seconds_of(part: str, row: dict[str, Any]) -> float:
    return float(row["seconds"][part])


def free() -> None:
    """Give the device's memory back between cases."""
    gc.collect()
    torch.cuda.empty_cache()


def report(name: str, recipe: Recipe, row: dict[str, Any], gemm: float, reference: float | None) -> None:
    """Print a case's figures, with the ratio to the baseline's step."""
    tokens = num_tokens(recipe)
    flop = sample_flop(recipe, tokens)
    gpus = recipe.world_size
    seconds = row["seconds"]["step"]
    rate = flop * recipe.parallel.data / seconds / gpus / 1e12
    row |= {
        "tokens_per_s": tokens * recipe.parallel.data / seconds,
        "tflops_per_gpu": rate,
        "mfu_of_989": rate / PEAK_TFLOPS,
        "mfu_of_measured": rate / gemm,
    }
    ratio = f", {reference * recipe.parallel.data / seconds:.2f} x baseline" if reference else ""
    parts = ", ".join(f"{part} {value:.2f}" for part, value in row["seconds"].items() if part != "step")
    kinds = ", ".join(f"{kind} {value:.2f}" for kind, value in row.get("kinds", {}).items())
    emit(
        f"{name}: {seconds:.2f} s/step ({parts}){f' [{kinds}]' if kinds else ''}, {row['tokens_per_s']:.0f} tokens/s, "
        f"{rate:.0f} TFLOP/s a GPU = {rate / PEAK_TFLOPS:.1%} of {PEAK_TFLOPS:.0f}, {rate / gemm:.1%} of measured "
        f"{gemm:.0f}, {row['peak_memory_gib']:.1f} GiB{ratio}"
    )


def emit(text: str) -> None:
    """Print on the first process."""
    if int(os.environ.get("RANK", "0")) == 0:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def main() -> None:
    """Measure the cases and the baseline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="edge_posttrain")
    parser.add_argument("--case", action="append", default=[], help="keys of [parallel], as key=value,key=value")
    parser.add_argument("--baseline", action="store_true", help="measure the baseline too")
    parser.add_argument("--blocks", type=int, default=0, help="blocks of the base; 0 takes the recipe's")
    parser.add_argument("--kinds", action="store_true", help="profile one more step: time by kind of kernel")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--memory-gib", type=float, default=0.0, help="refuse to allocate more than this")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("override", nargs="*", help="other keys of the recipe, key.path=value")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO if int(os.environ.get("RANK", "0")) == 0 else logging.ERROR)
    whole = load_recipe(arguments.recipe, ["parallel.tensor=1", *arguments.override])
    if arguments.blocks:
        whole = with_blocks(whole, arguments.blocks)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    everyone = build_mesh("cuda", data=world_size)
    if arguments.memory_gib:
        torch.cuda.set_per_process_memory_fraction(
            arguments.memory_gib * GIB / torch.cuda.get_device_properties(device).total_memory, device
        )
    gemm = matrix_product_tflops(device)
    emit(
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {arguments.recipe}: "
        f"{num_tokens(whole)} tokens, "
        f"{whole.network.base.num_blocks} + {whole.network.control.num_control_blocks} blocks, "
        f"{sample_flop(whole, num_tokens(whole)) / 1e15:.2f} PFLOP a sample"
    )
    results: dict[str, Any] = {"gemm_tflops": gemm}
    times = {"warm_up": arguments.warm_up, "steps": arguments.steps}
    reference = None
    alone = Mesh(**{name: _one(rank) for name in ("data", "context", "tensor", "sample", "replicas")})
    if arguments.baseline and rank == 0:
        row = baseline(with_layout(whole, ""), alone, device, **times)
        reference = row["seconds"]["step"]
        results["baseline"] = row
        name = f"baseline, extrapolated from {BASELINE_BLOCKS} blocks of the base"
        report(name, with_layout(whole, ""), row, gemm, reference)
    measured_kernel: dict[int, Kernel] = {}
    for case in arguments.case:
        dist.barrier()
        recipe = with_layout(whole, case)
        if recipe.world_size not in (1, world_size):
            raise SystemExit(f"--case {case}: needs {recipe.world_size} processes, {world_size} were started.")
        if recipe.world_size == 1 and rank > 0:
            continue
        parallel = recipe.parallel
        mesh = alone
        if recipe.world_size > 1:
            mesh = build_mesh("cuda", data=parallel.data, context=parallel.context, tensor=parallel.tensor)
        heads = recipe.network.base.num_heads // (parallel.tensor * parallel.context)
        if parallel.attention != "measured":
            kernel: Kernel = parallel.attention
        else:
            if heads not in measured_kernel:
                measured_kernel[heads] = fastest_kernel(
                    num_tokens=num_tokens(recipe), num_heads=heads, head_channels=128, device=device
                )
            kernel = measured_kernel[heads]
        use_kernel(kernel)
        torch._dynamo.reset()
        try:
            step = Step(recipe, mesh, device, eager=False)
            row = measure(step, **times)
            if arguments.kinds:
                row["kinds"] = time_by_kind(step)
        except torch.OutOfMemoryError as error:
            emit(f"{case} [{kernel}]: out of memory: {str(error)[:160]}")
            results[case] = {"out_of_memory": True}
        else:
            results[case] = {"kernel": kernel, **row}
            report(f"{case} [{kernel}]", recipe, row, gemm, reference)
        step = None  # type: ignore[assignment]
        free()
    if arguments.json and rank == 0:
        arguments.json.write_text(json.dumps(results, indent=1))
    dist.barrier()
    del everyone
    dist.destroy_process_group()


def _one(rank: int) -> Any:
    """Return a mesh dim of this process alone."""
    return torch.distributed.device_mesh.DeviceMesh("cuda", [rank], mesh_dim_names=("alone",))


if __name__ == "__main__":
    main()
