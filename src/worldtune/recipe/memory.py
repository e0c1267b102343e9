"""The memory that a training job will take of each GPU and each node, counted from the recipe alone.

What a layout decides is counted exactly: weights, masters, moments, averages, gradients. What the compiler and the
kernels decide, the activations, is counted in token streams (tokens of a rank x width x bytes of a value), by numbers
that were fitted to measured peaks of compiled blocks (benchmarks/README.md); tests/recipe/test_memory.py compares it
with each of them.
"""

import math
from dataclasses import dataclass, fields

from worldtune.recipe.estimate import (
    ADAM_BYTES,
    EMA_BYTES,
    base_parameters,
    block_parameters,
    control_parameters,
    num_tokens,
    split_parameters,
)
from worldtune.recipe.network import NetworkConfig
from worldtune.recipe.schema import Recipe

GIB = 2**30
VALUE_BYTES = {"bfloat16": 2, "float32": 4}
RESERVED_BYTES = 2 * GIB
"""Of a GPU, beside what PyTorch allocates: the CUDA context, NCCL's buffers, gaps, the tokenizer's weights."""
LEVELS = ("everything", "all_but_attention", "mlp", "nothing")
"""Values of parallel.recompute, from little memory to much."""
KEPT_FROZEN = {"everything": (1.0, 0.0), "all_but_attention": (1.0, 1.0), "mlp": (3.0, 6.0), "nothing": (3.0, 13.25)}
"""Token streams that backward finds of a block of the base, by what is recomputed: those of whole tokens, and those of
which a tensor rank has its heads or hidden units."""
KEPT_TRAINED = {"everything": (2.0, 0.0), "all_but_attention": (2.0, 1.0), "mlp": (4.0, 6.0), "nothing": (7.0, 15.25)}
"""The same of a block of the branch, whose matrix products keep their inputs, with its zero layer."""
KEPT_OUTSIDE = 6.0
"""Token streams of position embeddings, the hint's layers and the first and last layer."""
WORKING = {"everything": 12.5, "all_but_attention": 12.5, "mlp": 4.5, "nothing": 4.5}
"""Token streams of the block that is in its backward pass: a whole one or an MLP that is computed again."""
GATHERED = {"everything": 0.0, "all_but_attention": 0.0, "mlp": 1.0, "nothing": 1.0}
"""Token streams of a context rank that each block keeps under sequence parallelism, which gathers them."""
ENCODER_VALUES_A_PIXEL = 32
"""Values that the 8x8x8 tokenizer's encoder has at once for each pixel: counted from its first residual layers (256
channels at a 64th of the pixels), not measured."""
SAMPLE_BYTES_A_PIXEL = 3
"""A pixel of a video or its hint, as it is read."""
BUCKET_BYTES = 2 * 4 * 32 * 1024 * 1024
"""Flat float32 gradients that are summed over ranks, and room for the next ones."""
PROCESS_BYTES = {"cuda": 5 * GIB, "cpu": GIB * 7 // 10}
"""Main memory of a training process with its libraries."""
WORKER_BYTES = GIB // 2
"""Main memory of a loader process beside its samples."""
SAMPLES_A_WORKER = 4
"""Samples in a loader process: two that wait, and one that is made, with its frames as they were filmed."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Parts of a memory that are there at one time, in bytes."""

    @property
    def total(self) -> int:
        """All parts together, in bytes."""
        return sum(getattr(self, field.name) for field in fields(self))

    def in_gib(self) -> dict[str, float]:
        """Return the parts and their total in GiB, to a tenth of a MiB."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: round(value / GIB, 4) for name, value in {**parts, "total": self.total}.items()}


@dataclass(frozen=True, kw_only=True)
class GpuMemory(Memory):
    """What PyTorch allocates on the GPU of one process when most is in use, in bytes."""

    weights: int
    """Base and branch as they are computed with."""
    gathered_weights: int
    """Blocks that FSDP2 has gathered."""
    optimizer: int
    """Float32 masters and moments."""
    averages: int
    """Float32 moving averages."""
    gradients: int
    """What is there of the gradients beside the activations, or the gradients where they take more."""
    activations: int
    """What backward needs, and what the block in its backward pass works on."""
    tokenizer: int
    """The encoder at work: beside a step with parallel.encode_ahead, else where it takes more than the step."""
    batch: int
    """Micro-batches as they were read."""


@dataclass(frozen=True, kw_only=True)
class HostMemory(Memory):
    """Main memory that the training processes of one node take, in bytes; files that are mapped do not count."""

    processes: int
    """Processes and libraries; on a CPU the networks too."""
    staging: int
    """A checkpoint that is being written while training goes on."""
    loaders: int
    """Loader processes and the samples in them."""


def gpu_memory(recipe: Recipe) -> GpuMemory:
    """Count the memory of the GPU of each process, at the largest of the recipe's sizes."""
    value_bytes = VALUE_BYTES[recipe.training.precision]
    base, control = _local_parameters(recipe)
    weights = round(value_bytes * (base / _shards(recipe, "base") + control / _shards(recipe, "control")))
    own = control / _shards(recipe, "control")
    gathered = sum(
        value_bytes * _two_blocks(config, recipe)
        for config, which in ((recipe.network.base, "base"), (recipe.network.control, "control"))
        if _shards(recipe, which) > 1
    )
    activations = _activations(recipe)
    # Sums of the micro-steps before; at a step's end the sums of all, and gradients that are not added yet.
    sums = round(4 * own) if recipe.training.gradient_accumulation > 1 else 0
    at_end = round((4 + value_bytes) * own) + (BUCKET_BYTES if _replicas(recipe) > 1 else 0)
    pixels = _pixels(recipe)
    encoding = pixels * ENCODER_VALUES_A_PIXEL * value_bytes
    if not recipe.parallel.encode_ahead:
        encoding = max(0, encoding - activations)
    return GpuMemory(
        weights=weights,
        gathered_weights=gathered,
        optimizer=round(ADAM_BYTES * own),
        averages=round(EMA_BYTES * len(recipe.ema.rates) * own),
        gradients=max(sums, at_end - activations),
        activations=activations,
        tokenizer=encoding,
        batch=_videos(recipe) * SAMPLE_BYTES_A_PIXEL * pixels * (2 if recipe.parallel.encode_ahead else 1),
    )


def host_memory(recipe: Recipe) -> HostMemory:
    """Count the main memory of the processes that train on one node."""
    processes = recipe.processes_per_node
    on_cpu = recipe.training.device == "cpu"
    _, control = _local_parameters(recipe)
    state = (ADAM_BYTES + EMA_BYTES * len(recipe.ema.rates)) * control / _shards(recipe, "control")
    sample = _videos(recipe) * SAMPLE_BYTES_A_PIXEL * _pixels(recipe)
    workers = recipe.data.num_workers
    loaders = workers * (WORKER_BYTES + SAMPLES_A_WORKER * sample) if workers else 2 * sample
    readers = math.ceil(processes / (recipe.parallel.tensor * recipe.parallel.context))
    process = PROCESS_BYTES["cpu" if on_cpu else "cuda"]
    if on_cpu:
        on_gpu = gpu_memory(recipe)
        # Tokenizers that run on a CPU are small ones.
        process += on_gpu.total - on_gpu.tokenizer
    return HostMemory(processes=processes * process, staging=round(processes * state), loaders=readers * loaders)


def _replicas(recipe: Recipe) -> int:
    return recipe.parallel.context * recipe.parallel.data


def _shards(recipe: Recipe, network: str) -> int:
    """Return over how many ranks FSDP2 spreads a network: "base" or "control"."""
    spread = {"nothing": (), "base": ("base",), "both": ("base", "control")}[recipe.parallel.shard]
    return _replicas(recipe) if network in spread else 1


def _local_parameters(recipe: Recipe) -> tuple[float, float]:
    """Return the parameters of base and branch on one tensor rank, before FSDP2 spreads them."""
    base, control, degree = recipe.network.base, recipe.network.control, recipe.parallel.tensor
    saved = 1 - 1 / degree
    return (
        base_parameters(base) - saved * split_parameters(base, base.num_blocks),
        control_parameters(control) - saved * split_parameters(control, control.num_control_blocks),
    )


def _two_blocks(config: NetworkConfig, recipe: Recipe) -> int:
    """Return the parameters of two blocks on a tensor rank: one computes while the next one is gathered."""
    saved = 1 - 1 / recipe.parallel.tensor
    return round(2 * (block_parameters(config) - saved * split_parameters(config, 1)))


def _activations(recipe: Recipe) -> int:
    parallel = recipe.parallel
    levels = _block_levels(recipe)
    trained = recipe.network.control.num_control_blocks
    kept = [KEPT_FROZEN[level] for level in levels] + [KEPT_TRAINED[parallel.recompute]] * trained
    whole = sum(part[0] for part in kept) + KEPT_OUTSIDE
    split = sum(part[1] for part in kept) + WORKING[levels[-1]]
    tensor = parallel.tensor
    scattered = tensor if parallel.sequence else 1
    streams = whole / scattered + split / tensor
    if parallel.sequence and tensor > 1:
        streams += sum(GATHERED[level] for level in levels) + trained * GATHERED[parallel.recompute]
    return round(streams * _stream_bytes(recipe))


def _block_levels(recipe: Recipe) -> list[str]:
    """Return what each block of the base recomputes."""
    parallel, blocks = recipe.parallel, recipe.network.base.num_blocks
    less = min(parallel.recompute_less, blocks)
    following = LEVELS[min(LEVELS.index(parallel.recompute) + 1, len(LEVELS) - 1)]
    return [parallel.recompute] * (blocks - less) + [following] * less


def _stream_bytes(recipe: Recipe) -> float:
    """Return the bytes of a context rank's tokens of a micro-batch, once."""
    width, height = _largest_wh(recipe)
    width_169, height_169 = recipe.video_sizes_wh["16:9"]
    tokens = num_tokens(recipe) * (width * height) / (width_169 * height_169)
    values = recipe.training.micro_batch_size * tokens / recipe.parallel.context * recipe.network.base.model_channels
    return values * VALUE_BYTES[recipe.training.precision]


def _largest_wh(recipe: Recipe) -> tuple[int, int]:
    return max(recipe.video_sizes_wh.values(), key=lambda size: size[0] * size[1])


def _pixels(recipe: Recipe) -> int:
    """Return the pixels of all frames and views of a micro-batch."""
    width, height = _largest_wh(recipe)
    frames = recipe.num_views * recipe.data.num_frames
    return recipe.training.micro_batch_size * frames * width * height


def _videos(recipe: Recipe) -> int:
    """Return how many videos of a sample are read: its own, unless its latents are cached, and each control input."""
    return len(recipe.control.kinds) + (0 if recipe.data.cache_latents else 1)
