import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.recipe import load as load_module
from worldtune.recipe.identity import values_that_affect
from worldtune.recipe.load import load_recipe, recipe_path
from worldtune.recipe.schema import Control, Recipe, VisControl

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (REPOSITORY / "config/recipes").glob("*.toml"))


def load(*overrides: str, name: str = "demo_edge_posttrain") -> Recipe:
    return load_recipe(name, overrides, REPOSITORY)


def write(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


CONTROL_FILES = {"upscale": "4kupscaler_control"}
GENERIC = ("vis", "edge", "depth", "seg", "keypoint", "upscale")
AV = ("hdmap", "lidar")
STAGES = ("pretrain", "posttrain")
REPOSITORIES = {
    "generic": "nvidia/Cosmos-Transfer1-7B",
    "av": "nvidia/Cosmos-Transfer1-7B-Sample-AV",
    "multiview": "nvidia/Cosmos-Transfer1-7B-Sample-AV-Single2MultiView",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One experiment of spec/transfer1-training.md 1.4 with its column of table 1.5."""

    recipe: str
    original_name: str
    family: Literal["generic", "av", "multiview"]
    kind: str
    stage: str
    num_frames: int = 121
    prefix: str = ""


PUBLISHED = [
    *(
        Published(
            recipe=f"{kind}_{stage}",
            original_name=f"CTRL_7Bv1pt3_lvg_tp_121frames_control_input_{kind}_block3_{stage}",
            family="generic",
            kind=kind,
            stage=stage,
        )
        for kind in GENERIC
        for stage in STAGES
    ),
    *(
        Published(
            recipe=f"av_{kind}_{frames}frames_{stage}",
            original_name=f"CTRL_7Bv1pt3_t2w_{frames}frames_control_input_{kind}_block3_{stage}",
            family="av",
            kind=kind,
            stage=stage,
            num_frames=frames,
        )
        for kind in AV
        for frames in (57, 121)
        for stage in STAGES
    ),
    *(
        Published(
            recipe=f"av_multiview_{mode}_{kind}_{stage}",
            original_name=f"CTRL_7Bv1pt3_{mode}_sv2mv_57frames_control_input_{kind}_block3_{stage}",
            family="multiview",
            kind=kind,
            stage=stage,
            num_frames=57,
            prefix=f"{mode}_",
        )
        for kind in AV
        for mode in ("t2w", "v2w")
        for stage in STAGES
    ),
]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_finite_and_seeded(name: str) -> None:
    recipe = load(name=name)
    assert recipe.training.max_iter <= 1_000_000
    assert recipe.experiment.description


def test_every_published_experiment_has_a_recipe_and_a_demo_twin() -> None:
    assert len(PUBLISHED) == 28
    names = {published.recipe for published in PUBLISHED}
    assert set(RECIPES) == names | {f"demo_{name}" for name in names} | {"edge_posttrain_80gb"}


def test_the_recipe_for_one_gpu_trains_the_same_weights() -> None:
    small, whole = load(name="edge_posttrain_80gb"), load(name="edge_posttrain")
    assert small.world_size == 1
    assert values_that_affect(small, "weights") == values_that_affect(whole, "weights")


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.recipe)
def test_resolved_values_of_the_published_recipes(published: Published) -> None:
    recipe = load(name=published.recipe)
    assert recipe_path(published.original_name, REPOSITORY).stem == published.recipe
    generic, multiview = published.family == "generic", published.family == "multiview"
    assert math.isclose(recipe.optimizer.learning_rate, 2**-14.3)
    assert recipe.optimizer.weight_decay == 0.1
    assert recipe.optimizer.betas == (0.9, 0.99)
    assert recipe.optimizer.eps == 1e-10
    assert recipe.optimizer.max_grad_norm == 1.0
    assert (recipe.schedule.warmup_steps, recipe.schedule.warmup_start_factor) == (2500 if generic else 1000, 1e-6)
    assert recipe.ema.rates == (0.1,)
    assert (recipe.parallel.tensor, recipe.parallel.sequence, recipe.parallel.data) == (8, True, 1)
    assert (recipe.training.global_batch_size, recipe.training.gradient_accumulation) == (1, 1)
    assert recipe.saving.every == 1000
    assert (recipe.data.num_frames, recipe.data.resolution) == (published.num_frames, "720")
    assert (recipe.data.num_workers, recipe.data.text_tokens) == (8, 512)
    assert recipe.video_sizes_wh["16:9"] == (1280, 704)
    assert recipe.num_latent_frames == {57: 8, 121: 16}[published.num_frames]
    assert recipe.training.precision == "bfloat16"
    objective = recipe.objective
    assert (objective.log_sigma_mean, objective.log_sigma_std) == (0.0, 1.0)
    assert (objective.sigma_data, objective.loss_scale) == (0.5, 1.0)
    assert objective.adjust_video_noise
    assert objective.use_logvar
    assert (objective.text_dropout_rate, objective.hint_dropout_rate) == (0.2, 0.3 if generic else 0.15)
    assert objective.max_condition_frames == (2 if generic or published.prefix == "v2w_" else 0)
    assert objective.main_view_given == multiview
    assert (objective.condition_log_sigma_mean, objective.condition_log_sigma_std) == (-3.0, 2.0)
    # The values of the original; its filter runs where it does not hold loaders up.
    place = "device" if published.kind == "vis" else "loader"
    assert recipe.control == Control(kind=published.kind, vis=VisControl(bilateral_on=place))
    repository = REPOSITORIES[published.family]
    file = CONTROL_FILES.get(published.kind, f"{published.kind}_control")
    assert recipe.checkpoints.base == f"{repository}/{published.prefix}base_model.pt"
    released = f"{repository}/{published.prefix}{file}.pt"
    assert recipe.checkpoints.control == (released if published.stage == "posttrain" else "")
    assert recipe.checkpoints.tokenizer == "nvidia/Cosmos-Tokenize1-CV8x8x8-720p"


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.recipe)
def test_resolved_networks_of_the_published_recipes(published: Published) -> None:
    recipe = load(name=published.recipe)
    base, branch = recipe.network.base, recipe.network.control
    multiview = published.family == "multiview"
    for network in (base, branch):
        assert (network.out_channels, network.model_channels, network.mlp_ratio) == (16, 4096, 4.0)
        assert (network.num_blocks, network.num_heads, network.adaln_lora_dim) == (28, 32, 256)
        assert (network.max_img_h, network.max_img_w, network.max_frames) == (240, 240, 128)
        assert (network.rope_h_extrapolation_ratio, network.rope_w_extrapolation_ratio) == (1.0, 1.0)
        views = (network.n_views, network.n_views_emb, network.view_condition_dim, network.add_repeat_frame_embedding)
        assert views == ((3, 7, 6, True) if multiview else (1, 0, 0, False))
        assert network.extra_per_block_abs_pos_emb_type == ("sincos" if multiview else "learnable")
    generic = published.family == "generic"
    assert (base.rope_t_extrapolation_ratio, branch.rope_t_extrapolation_ratio) == (2.0 if generic else 1.0, 1.0)
    in_channels = {"generic": (17, 17), "av": (16, 16), "multiview": (17, 16)}[published.family]
    assert (base.in_channels, branch.in_channels) == in_channels
    assert (base.is_extend_model, branch.is_extend_model) == (False, multiview)
    assert (branch.num_control_blocks, branch.hint_channels) == (3, 128 if generic else 16)
    assert recipe.network.rope_angles == "bfloat16"
    if multiview:
        assert recipe.data.views == (
            "pinhole_front",
            *("pinhole_front_left", "pinhole_front_right", "pinhole_side_left", "pinhole_side_right"),
        )
        assert recipe.data.view_indices == (0, 1, 2, 4, 5)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.recipe)
def test_a_demo_twin_is_wired_like_its_recipe(published: Published) -> None:
    recipe, demo = load(name=published.recipe), load(name=f"demo_{published.recipe}")
    assert demo.objective == recipe.objective
    # Where a filter runs is no wiring.
    vis = demo.control.vis.model_copy(update={"bilateral_on": recipe.control.vis.bilateral_on})
    assert demo.control.model_copy(update={"vis": vis}) == recipe.control
    assert bool(demo.checkpoints.control) == bool(recipe.checkpoints.control)
    wiring = ("in_channels", "n_views", "n_views_emb", "view_condition_dim", "is_extend_model")
    wiring += ("rope_t_extrapolation_ratio", "extra_per_block_abs_pos_emb_type", "add_repeat_frame_embedding")
    for name in ("base", "control"):
        ours, theirs = getattr(demo.network, name), getattr(recipe.network, name)
        assert {key: getattr(ours, key) for key in wiring} == {key: getattr(theirs, key) for key in wiring}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nlearning_rte = 1e-4\n", r"optimizer\.learning_rte: unknown key.*optimizer\.learning_rate"),
        ("[optimiser]\nlearning_rate = 1e-4\n", r"\[optimiser\]: unknown section; did you mean \[optimizer\]\?"),
        ("[trainings]\nmax_iter = 3\n", r"\[trainings\]: unknown section; did you mean \[training\]\?"),
        ("trainings = 3\n", r"trainings: unknown key"),
        ('[control]\nkind = "egde"\n', r"control\.kind: Input should be 'edge'.*'egde'; the nearest known: edge"),
        ('[data]\nresolution = "721"\n', r"data\.resolution: .*'720'.*found '721'"),
        ('[network]\nsize = "transfer1_8b"\n', r"transfer1_8b.*nearest known: transfer1_7b"),
        ("[network.base]\nnum_head = 8\n", r"network\.base\.num_head: unknown key.*network\.base\.num_heads"),
        ("[training]\nseed = -1\n", r"training\.seed: .*greater than or equal to 0"),
        ("[optimizer]\nlearning_rate = nan\n", r"optimizer\.learning_rate: .*finite"),
        ("[previews]\nguidances = 3.0\n", r"previews\.guidances: expected a list, such as \[3\.0\], found 3\.0"),
        ('[cluster]\npartition = "gpu"\n', r"cluster\.partition: .* under cluster in config/config\.yaml"),
        ("[saving]\nkeep_every = 75\n", r"saving\.keep_every: must be a multiple of saving\.every = 50"),
        ("[data\n", "no valid TOML"),
    ],
)
def test_wrong_files_are_refused_with_advice(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, 'extends = "demo_edge_posttrain"\n' + text)
    with pytest.raises(WorldtuneError, match=message):
        load_recipe(path, root=REPOSITORY)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.num_frames=18", "nearest are 17 and 25"),
        ("data.num_frames=1", "max_condition_frames"),
        ("training.global_batch_size=3", "= 2 x 1 x 1 = 2, found 3"),
        ("parallel.tensor=3", "must divide network.base.num_heads = 8"),
        ("network.control.model_channels=64", "must equal network.base.model_channels = 128"),
        ("network.base.max_img_w=16", "position tables"),
        ("control.edge.threshold_low_min=120", "threshold_low_max"),
        ("control.edge.threshold_low_max=256", "at most 255, found 256"),
        ("control.kind=keypoints", "control.kind: .*'keypoints'; the nearest known: keypoint"),
        ("control.vis.downscale_min=18", "control.vis.downscale_min: must not be above .*downscale_max = 17, found 18"),
        ("control.vis.gaussian_sigma_max=3.5", "gaussian_sigma_min: must not be above"),
        ("control.vis.blur_probabilities=[0.5,0.3,0.3]", r"control.vis.blur_probabilities: .* add up to 1, .* = 1.1"),
        ("control.vis.blur_probabilities=[0.5,0.5]", "must be as many as the 3 of control.vis.blurs, found 2"),
        ("control.vis.blurs=[[bilinear]]", "control.vis.blurs"),
        ("control.vis.downscale_min=0", "control.vis.downscale_min"),
        ("control.upscale.probabilities=[0.5,0.2,0.2]", "control.upscale.probabilities: must add up to 1"),
        ("control.upscale.probabilities=[0.5,0.5]", "must be as many as the 3 of control.upscale.divisors, found 2"),
        ("control.upscale.probabilities=[1.5,-0.7,0.2]", "control.upscale.probabilities.1"),
        ("control.seg.max_objects=1001", "control.seg.max_objects"),
        ("control.seg.saturation_min=1.1", "control.seg.saturation_min"),
        ("control.seg.value_min=0", "control.seg.value_min"),
        ("control.keypoint.confidence_min=0", "control.keypoint.confidence_min"),
        ("control.keypoint.line_width=0", "control.keypoint.line_width"),
        ("ema.rates=[0.5]", "ema.rates"),
        ("ema.rates=[0.1,0.1]", "ema.rates: .* 0.1 and 0.1 have the name 0.1"),
        ("ema.rates=[0.05,0.1,0.1000001]", "ema.rates: .* 0.1 and 0.1000001 have the name 0.1"),
        ("validation.sigmas=[1,2,1.0]", "validation.sigmas: .* 1.0 and 1.0 have the name 1"),
        ("previews.guidances=[1,1.0]", "previews.guidances: .* 1.0 and 1.0 have the name 1"),
        ("network.control.hint_channels=8", "network.control.hint_channels: .* at least .* 16 .* found 8"),
        ("optimizer.betas=[0.9,1.0]", r"optimizer.betas\[1\]"),
        ("sampling.sigma_min=100", "sampling.sigma_max"),
        ("cluster.gpus_per_node=1.5", "cluster.gpus_per_node"),
        ("cluster.runtime_minutes=10", "save_seconds: must be below the 600 seconds"),
        ("optimizer.lr=1", "optimizer.lr"),
        ("nonsense", "key.path=value"),
        ("checkpoints.base=", r"checkpoints\.base: (must be <organization>/<repository>/<name>\.pt|.*valid string)"),
        ("checkpoints.base=''", r"checkpoints\.base: must be <organization>/<repository>/<name>\.pt.*found ''"),
        ("checkpoints.base=../../etc/x.pt", r"checkpoints\.base: must be .* found '\.\./\.\./etc/x\.pt'"),
        ("checkpoints.base=mine/models/x.safetensors", r"checkpoints\.base: must be .*x\.safetensors"),
        ("checkpoints.control=/mine/models/x.pt", r"checkpoints\.control: must be "),
        ("checkpoints.tokenizer=mine/models/x.pt", r"checkpoints\.tokenizer: must be <organization>/<repository>,"),
        ("checkpoints.tokenizer=mine/..", r"checkpoints\.tokenizer: must be "),
        ("data.num_frames=[", r"override 'data\.num_frames=\[': its value is no YAML"),
    ],
)
def test_values_that_do_not_fit_are_refused(override: str, message: str) -> None:
    with pytest.raises(WorldtuneError, match=message):
        load(override)


def test_upscale_samples_cannot_have_cached_latents() -> None:
    assert load("data.cache_latents=true").data.cache_latents
    with pytest.raises(WorldtuneError, match=r"data.cache_latents: must be false where control.kind is 'upscale'"):
        load("data.cache_latents=true", "control.kind=upscale")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["control.also=[edge]"], r"control\.also: names each further .* once and not control\.kind, .*'edge', 'edge'"),
        (["control.also=[vis,vis]"], r"control\.also: names each further .*\['edge', 'vis', 'vis'\]"),
        (["control.also=[upscale]"], r"control\.also: 'upscale' cannot be learnt together with others"),
        (["control.kind=upscale", "control.also=[edge]"], r"control\.also: 'upscale' cannot be learnt together"),
        (["control.also=[egde]"], r"control\.also\.0: .*'egde'; the nearest known: edge"),
        (
            ["control.also=[vis,depth]", "network.control.hint_channels=32"],
            r"network\.control\.hint_channels: must be at least the 48 channels of the latents of edge and vis and "
            r"depth \(16 a control input\), found 32",
        ),
    ],
)
def test_several_controls_that_do_not_fit_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(WorldtuneError, match=message):
        load(*overrides)


def test_several_controls_have_an_order_and_a_name() -> None:
    recipe = load("control.also=[vis,depth]")
    assert recipe.control.kinds == ("edge", "vis", "depth")
    assert recipe.control.label == "edge-vis-depth"
    assert (load().control.kinds, load().control.label) == (("edge",), "edge")


def test_tokens_must_divide_under_sequence_parallelism() -> None:
    overrides = ["data.resolution=128", "parallel.tensor=8"]
    with pytest.raises(WorldtuneError, match="need their product to divide the 180 tokens"):
        load(*overrides)
    assert load(*overrides, "parallel.sequence=false").parallel.tensor == 8


def test_whole_nodes() -> None:
    with pytest.raises(WorldtuneError, match="whole nodes of 3"):
        load("parallel.tensor=4", "cluster.gpus_per_node=3")


def test_a_forgotten_extends_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "[training]\nmax_iter = 3\n")
    with pytest.raises(WorldtuneError, match=r"mine\.toml: network\.size is missing; did you forget extends"):
        load_recipe(path, root=REPOSITORY)


def test_a_recipe_cannot_extend_itself(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b"\n', "a")
    path = write(tmp_path, 'extends = "a"\n', "b")
    with pytest.raises(WorldtuneError, match="extends itself"):
        load_recipe(path, root=REPOSITORY)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(WorldtuneError, match="edge_posttrain"):
        load(name="edge_postrain")


@pytest.mark.parametrize("experiment", ['"x"', '{original_name = ["x"]}'])
def test_a_wrong_recipe_beside_it_does_not_hide_the_nearest_name(root: Path, experiment: str) -> None:
    write(root / "config/recipes", f"experiment = {experiment}\n", "wrong")
    with pytest.raises(WorldtuneError, match="nearest known: edge_posttrain"):
        load_recipe("edge_postrain", root=root)


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ("parts/transfer1_7", r"there is no recipe 'parts/transfer1_7' in .*nearest known: parts/transfer1_7b"),
        ("transfer1_7b", r"nearest known: parts/transfer1_7b"),
        ("edge_postrain", r"nearest known: edge_posttrain"),
        ("gone.toml", r"no recipe file gone\.toml"),
    ],
)
def test_a_misspelt_parent_is_named_with_its_file_and_the_nearest(root: Path, parent: str, message: str) -> None:
    path = write(root / "config/recipes", f'extends = "{parent}"\n')
    with pytest.raises(WorldtuneError, match=rf"mine\.toml: extends: .*{message}") as caught:
        load_recipe("mine", root=root)
    assert path in str(caught.value)


def test_a_part_is_no_recipe_by_its_own_name(root: Path) -> None:
    with pytest.raises(WorldtuneError) as caught:
        load_recipe("transfer1_7b", root=root)
    assert "parts/" not in str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    return tmp_path


def start_from(root: Path, name: str, init_from: str, more: str = 'control = ""') -> None:
    text = f'extends = "demo_edge_posttrain"\n[checkpoints]\ninit_from = "{init_from}"\n{more}\n'
    write(root / "config/recipes", text, name)


def test_a_run_may_start_from_another_ones_export(root: Path) -> None:
    start_from(root, "second", "results/demo_edge_posttrain")
    start_from(root, "third", "results/second")
    recipe = load_recipe("third", root=root)
    assert recipe.checkpoints.start == "results/second/control.pt"
    assert load_recipe("demo_edge_posttrain", root=root).checkpoints.start.endswith("edge_control.pt")
    first, third = (values_that_affect(load_recipe(name, root=root), "outcome") for name in ("second", "third"))
    assert first["checkpoints.init_from"] != third["checkpoints.init_from"]


@pytest.mark.parametrize(
    ("init_from", "more", "message"),
    [
        ("results/demo_edge_posttrain", "", r"checkpoints\.init_from: .*checkpoints\.control = .*control = \"\""),
        ("demo_edge_posttrain", 'control = ""', r"must be results/<run>, found 'demo_edge_posttrain'"),
        ("results/demo_edge_posttrain/model", 'control = ""', r"must be results/<run>"),
        ("results/demo_edge_postrain", 'control = ""', r"there is no .*nearest known: demo_edge_posttrain"),
        ("results/mine", 'control = ""', r"in a circle: mine from mine"),
        ("results/other", 'control = ""', r"in a circle: mine from other from mine"),
    ],
)
def test_a_start_that_cannot_be_is_refused(root: Path, init_from: str, more: str, message: str) -> None:
    start_from(root, "mine", init_from, more)
    start_from(root, "other", "results/mine")
    with pytest.raises(WorldtuneError, match=message):
        load_recipe("mine", root=root)


@pytest.mark.parametrize(("changed", "label"), [({"kind": "depth"}, "depth"), ({"also": ("vis",)}, "edge-vis")])
def test_a_start_of_another_kind_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], label: str
) -> None:
    start_from(root, "mine", "results/other")
    start_from(root, "other", "results/demo_edge_posttrain")
    resolve = load_module._resolve

    def other_kind(path: Path, overrides: Sequence[str], folder: Path) -> Recipe:
        recipe = resolve(path, overrides, folder)
        if path.stem != "other":
            return recipe
        return recipe.model_copy(update={"control": recipe.control.model_copy(update=changed)})

    monkeypatch.setattr(load_module, "_resolve", other_kind)
    with pytest.raises(WorldtuneError, match=rf"results/other, which trains the {label} control, but mine trains edge"):
        load_recipe("mine", root=root)
