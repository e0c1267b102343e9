"""Checks of a recipe that concern several keys at once."""

from collections.abc import Iterator

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.network import NetworkConfig
from worldtune.recipe.schema import LATENT_FRAMES, LATENT_PIXELS, Recipe


def check_recipe(recipe: Recipe, source: str) -> None:
    """Check what the types of single keys cannot.

    Raises:
        WorldtuneError: names `source` and every key that does not fit, with legal values where they can be told.
    """
    problems = list(_problems(recipe))
    if problems:
        raise WorldtuneError(f"{source} is not a valid recipe:\n  " + "\n  ".join(problems))


def _problems(recipe: Recipe) -> Iterator[str]:
    yield from _frame_problems(recipe)
    yield from _batch_problems(recipe)
    yield from _network_problems(recipe)
    yield from _layout_problems(recipe)
    yield from _range_problems(recipe)


def _frame_problems(recipe: Recipe) -> Iterator[str]:
    frames = recipe.data.num_frames
    if frames % LATENT_FRAMES != 1:
        below = max((frames - 1) // LATENT_FRAMES * LATENT_FRAMES + 1, 1)
        yield (
            f"data.num_frames: the tokenizer needs {LATENT_FRAMES}k + 1 frames, found {frames}; "
            f"the nearest are {below} and {below + LATENT_FRAMES}"
        )
    elif recipe.objective.max_condition_frames >= recipe.num_latent_frames:
        yield (
            f"objective.max_condition_frames: must be below the {recipe.num_latent_frames} latent frames of "
            f"data.num_frames = {frames}, found {recipe.objective.max_condition_frames}"
        )


def _batch_problems(recipe: Recipe) -> Iterator[str]:
    training = recipe.training
    product = training.micro_batch_size * recipe.parallel.data * training.gradient_accumulation
    if product != training.global_batch_size:
        yield (
            f"training.global_batch_size: must be training.micro_batch_size x parallel.data x "
            f"training.gradient_accumulation = {training.micro_batch_size} x {recipe.parallel.data} x "
            f"{training.gradient_accumulation} = {product}, found {training.global_batch_size}"
        )


def _network_problems(recipe: Recipe) -> Iterator[str]:
    base, control = recipe.network.base, recipe.network.control
    for name, network in (("base", base), ("control", control)):
        yield from _one_network_problems(recipe, f"network.{name}", network)
    for key in (
        "model_channels",
        "num_heads",
        "num_blocks",
        "crossattn_emb_channels",
        "patch_spatial",
        "patch_temporal",
    ):
        if getattr(base, key) != getattr(control, key):
            yield (
                f"network.control.{key}: must equal network.base.{key} = {getattr(base, key)}, "
                f"found {getattr(control, key)}"
            )
    if control.num_control_blocks > base.num_blocks:
        yield (
            f"network.control.num_control_blocks: at most network.base.num_blocks = {base.num_blocks}, "
            f"found {control.num_control_blocks}"
        )


def _one_network_problems(recipe: Recipe, prefix: str, network: NetworkConfig) -> Iterator[str]:
    if network.model_channels % network.num_heads:
        yield f"{prefix}.num_heads: must divide model_channels = {network.model_channels}, found {network.num_heads}"
    if network.num_heads % recipe.parallel.tensor:
        yield (f"parallel.tensor: must divide {prefix}.num_heads = {network.num_heads}, found {recipe.parallel.tensor}")
    for aspect, (width, height) in recipe.video_sizes_wh.items():
        if width // LATENT_PIXELS > network.max_img_w or height // LATENT_PIXELS > network.max_img_h:
            yield (
                f"data.resolution: {width}x{height} ({aspect}) is {width // LATENT_PIXELS}x{height // LATENT_PIXELS} "
                f"latent pixels, but the position tables of {prefix} end at {network.max_img_w}x{network.max_img_h}"
            )
    if recipe.num_latent_frames > network.max_frames:
        yield (
            f"data.num_frames: {recipe.data.num_frames} frames are {recipe.num_latent_frames} latent frames, but the "
            f"position tables of {prefix} end at {network.max_frames}"
        )


def _layout_problems(recipe: Recipe) -> Iterator[str]:
    base = recipe.network.base
    if recipe.parallel.sequence and recipe.data.num_frames % LATENT_FRAMES == 1:
        patch = LATENT_PIXELS * base.patch_spatial
        for aspect, (width, height) in recipe.video_sizes_wh.items():
            tokens = recipe.num_latent_frames * (height // patch) * (width // patch)
            if tokens % recipe.parallel.tensor:
                yield (
                    f"parallel.tensor: sequence parallelism needs it to divide the {tokens} tokens of a "
                    f"{width}x{height} ({aspect}) clip, found {recipe.parallel.tensor}; change it, "
                    "data.num_frames or data.resolution"
                )
    per_node = recipe.cluster.gpus_per_node
    if recipe.world_size > per_node and recipe.world_size % per_node:
        yield (
            f"cluster.gpus_per_node: the {recipe.world_size} processes of parallel.tensor x parallel.data do not fill "
            f"whole nodes of {per_node}"
        )
    if recipe.cluster.save_seconds >= 60 * recipe.cluster.runtime_minutes:
        yield (
            f"cluster.save_seconds: must be below the {60 * recipe.cluster.runtime_minutes} seconds of "
            f"cluster.runtime_minutes, found {recipe.cluster.save_seconds}"
        )


def _range_problems(recipe: Recipe) -> Iterator[str]:
    edge = recipe.control.edge
    for low, high in (("threshold_low_min", "threshold_low_max"), ("threshold_gap_min", "threshold_gap_max")):
        if getattr(edge, low) > getattr(edge, high):
            yield (
                f"control.edge.{low}: must not be above control.edge.{high} = {getattr(edge, high)}, "
                f"found {getattr(edge, low)}"
            )
    if edge.threshold_low_max > 255:
        yield f"control.edge.threshold_low_max: at most 255, found {edge.threshold_low_max}"
    for index, beta in enumerate(recipe.optimizer.betas):
        if not 0 <= beta < 1:
            yield f"optimizer.betas[{index}]: must lie in [0, 1), found {beta}"
    if recipe.sampling.sigma_min >= recipe.sampling.sigma_max:
        yield (
            f"sampling.sigma_min: must be below sampling.sigma_max = {recipe.sampling.sigma_max}, "
            f"found {recipe.sampling.sigma_min}"
        )
    if any(not 0 < rate < 0.288 for rate in recipe.ema.rates):
        yield f"ema.rates: each must lie in (0, 0.288), where the power function is defined, found {recipe.ema.rates}"
