"""Checks of a recipe that concern several keys at once."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.network import NetworkConfig
from worldtune.recipe.schema import (
    LATENT_CHANNELS,
    LATENT_FRAMES,
    LATENT_PIXELS,
    RESULTS,
    Checkpoints,
    Control,
    Recipe,
    Saving,
    Section,
)

CHECKPOINT = re.compile(r"[\w.-]+/[\w.-]+/[\w.-]+\.pt")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def check_recipe(recipe: Recipe, source: str) -> None:
    """Check what the types of single keys cannot.

    Raises:
        WorldtuneError: names `source` and every key that does not fit, with legal values where they can be told.
    """
    problems = list(_problems(recipe))
    if problems:
        raise WorldtuneError(f"{source} is not a valid recipe:\n  " + "\n  ".join(problems))


def _problems(recipe: Recipe) -> Iterator[str]:
    yield from _checkpoint_problems(recipe.checkpoints)
    yield from _start_problems(recipe)
    yield from _frame_problems(recipe)
    yield from _batch_problems(recipe)
    yield from _network_problems(recipe)
    yield from _view_problems(recipe)
    yield from _layout_problems(recipe)
    yield from _control_problems(recipe.control)
    yield from _several_controls_problems(recipe)
    yield from _cache_problems(recipe)
    yield from _range_problems(recipe)
    yield from _saving_problems(recipe.saving)


def _saving_problems(saving: Saving) -> Iterator[str]:
    if saving.keep_every % saving.every:
        yield (
            f"saving.keep_every: must be a multiple of saving.every = {saving.every}, at whose steps alone there are "
            f"checkpoints, found {saving.keep_every}"
        )


def _checkpoint_problems(checkpoints: Checkpoints) -> Iterator[str]:
    file, folder = (CHECKPOINT, "<organization>/<repository>/<name>.pt"), (REPOSITORY, "<organization>/<repository>")
    for key, (pattern, expected) in (("base", file), ("control", file), ("tokenizer", folder)):
        path = getattr(checkpoints, key)
        if key == "control" and not path:
            continue
        if not pattern.fullmatch(path) or {".", ".."} & set(path.split("/")):
            yield f"checkpoints.{key}: must be {expected}, a path below checkpoints/, found {path!r}"


def _start_problems(recipe: Recipe) -> Iterator[str]:
    init_from, control = recipe.checkpoints.init_from, recipe.checkpoints.control
    if not init_from:
        return
    if control:
        yield (
            f"checkpoints.init_from: a branch has one start, but checkpoints.control = {control!r} names another; set "
            'control = "" (it may be inherited), or remove init_from'
        )
    folder, _, run = init_from.partition("/")
    if folder != RESULTS or not run or "/" in run:
        yield f"checkpoints.init_from: must be {RESULTS}/<run>, found {init_from!r}"


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
    gives_frames = recipe.objective.max_condition_frames > 0 or recipe.objective.main_view_given
    if gives_frames and not recipe.takes_given_frames:
        yield (
            f"objective.max_condition_frames: must be 0 where network.base.in_channels = "
            f"{recipe.network.base.in_channels} leaves no channel for given frames, "
            f"found {recipe.objective.max_condition_frames}"
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
        "n_views",
        "crossattn_emb_channels",
        "patch_spatial",
        "patch_temporal",
    ):
        if getattr(base, key) != getattr(control, key):
            yield (
                f"network.control.{key}: must equal network.base.{key} = {getattr(base, key)}, "
                f"found {getattr(control, key)}"
            )
    given = [network.in_channels + int(network.is_extend_model) for network in (base, control)]
    if given[0] != given[1]:
        yield (
            "network.control.in_channels: both networks must take the same channels, but network.base takes "
            f"{given[0]} and network.control {given[1]} (in_channels, and one more with is_extend_model)"
        )
    if control.num_control_blocks > base.num_blocks:
        yield (
            f"network.control.num_control_blocks: at most network.base.num_blocks = {base.num_blocks}, "
            f"found {control.num_control_blocks}"
        )
    needed = LATENT_CHANNELS * len(recipe.control.kinds)
    if control.hint_channels < needed:
        yield (
            f"network.control.hint_channels: must be at least the {needed} channels of the latents of "
            f"{' and '.join(recipe.control.kinds)} ({LATENT_CHANNELS} a control input), found {control.hint_channels}"
        )


def _one_network_problems(recipe: Recipe, prefix: str, network: NetworkConfig) -> Iterator[str]:
    if network.model_channels % network.num_heads:
        yield f"{prefix}.num_heads: must divide model_channels = {network.model_channels}, found {network.num_heads}"
    if network.add_augment_sigma_embedding:
        yield f"{prefix}.add_augment_sigma_embedding: no recipe trains with it; must be false, found true"
    if network.out_channels != LATENT_CHANNELS:
        yield f"{prefix}.out_channels: the latents have {LATENT_CHANNELS} channels, found {network.out_channels}"
    if recipe.num_latent_frames % network.patch_temporal:
        yield (
            f"{prefix}.patch_temporal: must divide the {recipe.num_latent_frames} latent frames of data.num_frames, "
            f"found {network.patch_temporal}"
        )
    parallel = recipe.parallel
    if network.num_heads % (parallel.tensor * parallel.context):
        yield (
            f"parallel.tensor: parallel.tensor x parallel.context must divide {prefix}.num_heads = "
            f"{network.num_heads}, found {parallel.tensor} x {parallel.context}"
        )
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


def _view_problems(recipe: Recipe) -> Iterator[str]:
    data, base = recipe.data, recipe.network.base
    if base.n_views == 1:
        if data.views or recipe.objective.main_view_given:
            yield "data.views, objective.main_view_given: only for networks of several views (network.base.n_views)"
        return
    if len(set(data.views)) < base.n_views:
        yield (
            f"data.views: must name at least network.base.n_views = {base.n_views} different camera views, "
            f"found {list(data.views)}"
        )
    if len(data.view_indices) != len(data.views) or len(set(data.view_indices)) != len(data.view_indices):
        yield f"data.view_indices: must hold one number of its own for each of {list(data.views)}"
    if any(index >= base.n_views_emb for index in data.view_indices):
        yield (
            f"data.view_indices: each must be below network.base.n_views_emb = {base.n_views_emb}, "
            f"found {list(data.view_indices)}"
        )


def _layout_problems(recipe: Recipe) -> Iterator[str]:
    base = recipe.network.base
    parallel = recipe.parallel
    chunks = parallel.context * (parallel.tensor if parallel.sequence else 1)
    if recipe.data.num_frames % LATENT_FRAMES == 1:
        patch = LATENT_PIXELS * base.patch_spatial
        for aspect, (width, height) in recipe.video_sizes_wh.items():
            tokens = recipe.num_views * recipe.num_latent_frames * (height // patch) * (width // patch)
            if tokens % chunks:
                yield (
                    f"parallel.tensor, parallel.context: sequence and context parallelism need their product to "
                    f"divide the {tokens} tokens of a {width}x{height} ({aspect}) clip, found {chunks}; change it, "
                    "data.num_frames or data.resolution"
                )
    if parallel.attention not in ("measured", "sdpa") and recipe.training.precision == "float32":
        yield (
            f"parallel.attention: {parallel.attention!r} computes in half precision, but training.precision = float32; "
            'set "sdpa" or "measured"'
        )
    per_node = recipe.cluster.gpus_per_node
    if recipe.world_size > per_node and recipe.world_size % per_node:
        yield (
            f"cluster.gpus_per_node: the {recipe.world_size} processes of parallel.tensor x parallel.context x "
            f"parallel.data do not fill whole nodes of {per_node}"
        )
    if recipe.cluster.save_seconds >= 60 * recipe.cluster.runtime_minutes:
        yield (
            f"cluster.save_seconds: must be below the {60 * recipe.cluster.runtime_minutes} seconds of "
            f"cluster.runtime_minutes, found {recipe.cluster.save_seconds}"
        )


def _control_problems(control: Control) -> Iterator[str]:
    for table in type(control).model_fields:
        section = getattr(control, table)
        names = type(section).model_fields if isinstance(section, Section) else ()
        for low in names:
            high = low.removesuffix("_min") + "_max"
            if low.endswith("_min") and high in names and getattr(section, low) > getattr(section, high):
                yield (
                    f"control.{table}.{low}: must not be above control.{table}.{high} = {getattr(section, high)}, "
                    f"found {getattr(section, low)}"
                )
    if control.edge.threshold_low_max > 255:
        yield f"control.edge.threshold_low_max: at most 255, found {control.edge.threshold_low_max}"
    vis, upscale = control.vis, control.upscale
    for probabilities, of, values, chances in (
        ("control.vis.blur_probabilities", "control.vis.blurs", vis.blurs, vis.blur_probabilities),
        ("control.upscale.probabilities", "control.upscale.divisors", upscale.divisors, upscale.probabilities),
    ):
        yield from _sum_problems(probabilities, chances)
        if len(chances) != len(values):
            yield f"{probabilities}: must be as many as the {len(values)} of {of}, found {len(chances)}"


def _several_controls_problems(recipe: Recipe) -> Iterator[str]:
    control = recipe.control
    if len(set(control.kinds)) < len(control.kinds):
        yield f"control.also: names each further control input once and not control.kind, found {list(control.kinds)}"
    if control.also and "upscale" in control.kinds:
        yield (
            "control.also: 'upscale' cannot be learnt together with others, since its samples are parts of the frames, "
            f"found {list(control.kinds)}"
        )


def _cache_problems(recipe: Recipe) -> Iterator[str]:
    if recipe.data.cache_latents and recipe.control.kind == "upscale":
        yield (
            "data.cache_latents: must be false where control.kind is 'upscale', which trains on another part of the "
            "frames in each sample"
        )


def _sum_problems(name: str, probabilities: Sequence[float]) -> Iterator[str]:
    if not math.isclose(sum(probabilities), 1.0, abs_tol=1e-6):
        yield f"{name}: must add up to 1, found {' + '.join(map(str, probabilities))} = {sum(probabilities):g}"


def _range_problems(recipe: Recipe) -> Iterator[str]:
    for index, beta in enumerate(recipe.optimizer.betas):
        if not 0 <= beta < 1:
            yield f"optimizer.betas[{index}]: must lie in [0, 1), found {beta}"
    if recipe.sampling.sigma_min >= recipe.sampling.sigma_max:
        yield (
            f"sampling.sigma_min: must be below sampling.sigma_max = {recipe.sampling.sigma_max}, "
            f"found {recipe.sampling.sigma_min}"
        )
    health = recipe.health
    if health.first_loss_min >= health.first_loss_max:
        yield (
            f"health.first_loss_min: must be below health.first_loss_max = {health.first_loss_max}, "
            f"found {health.first_loss_min}"
        )
    if any(not 0 < rate < 0.288 for rate in recipe.ema.rates):
        yield f"ema.rates: each must lie in (0, 0.288), where the power function is defined, found {recipe.ema.rates}"
    named = {
        "ema.rates": recipe.ema.rates,
        "validation.sigmas": recipe.validation.sigmas,
        "previews.guidances": recipe.previews.guidances,
    }
    for key, values in named.items():
        for one, other in itertools.combinations(values, 2):
            if f"{one:g}" == f"{other:g}":
                yield f"{key}: each needs a name of its own, but {one} and {other} have the name {one:g}; remove one"
