import math
from pathlib import Path

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.load import load_recipe, recipe_path
from worldtune.recipe.schema import Recipe

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (REPOSITORY / "config/recipes").glob("*.toml"))


def load(*overrides: str, name: str = "demo_edge_posttrain") -> Recipe:
    return load_recipe(name, overrides, REPOSITORY)


def write(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_finite_and_seeded(name: str) -> None:
    recipe = load(name=name)
    assert recipe.training.max_iter <= 1_000_000
    assert recipe.experiment.original_name.startswith("CTRL_7Bv1pt3_lvg_tp_121frames_control_input_edge_block3_")


@pytest.mark.parametrize(("name", "control"), [("edge_pretrain", ""), ("edge_posttrain", "edge_control.pt")])
def test_resolved_values_of_the_published_recipes(name: str, control: str) -> None:
    recipe = load(name=name)
    assert math.isclose(recipe.optimizer.learning_rate, 2**-14.3)
    assert recipe.optimizer.weight_decay == 0.1
    assert recipe.optimizer.betas == (0.9, 0.99)
    assert recipe.optimizer.eps == 1e-10
    assert recipe.optimizer.max_grad_norm == 1.0
    assert (recipe.schedule.warmup_steps, recipe.schedule.warmup_start_factor) == (2500, 1e-6)
    assert recipe.ema.rates == (0.1,)
    assert (recipe.parallel.tensor, recipe.parallel.sequence, recipe.parallel.data) == (8, True, 1)
    assert recipe.training.global_batch_size == 1
    assert (recipe.data.dataset, recipe.data.num_frames, recipe.data.resolution) == ("hdvila", 121, "720")
    assert recipe.video_sizes_wh["16:9"] == (1280, 704)
    assert recipe.num_latent_frames == 16
    assert recipe.training.precision == "bfloat16"
    assert (recipe.objective.log_sigma_mean, recipe.objective.log_sigma_std) == (0.0, 1.0)
    assert recipe.objective.sigma_data == 0.5
    assert recipe.objective.adjust_video_noise
    assert recipe.objective.use_logvar
    assert (recipe.objective.text_dropout_rate, recipe.objective.hint_dropout_rate) == (0.2, 0.3)
    assert recipe.objective.max_condition_frames == 2
    assert (recipe.objective.condition_log_sigma_mean, recipe.objective.condition_log_sigma_std) == (-3.0, 2.0)
    base, branch = recipe.network.base, recipe.network.control
    for network in (base, branch):
        assert (network.in_channels, network.out_channels, network.model_channels) == (17, 16, 4096)
        assert (network.num_blocks, network.num_heads, network.adaln_lora_dim) == (28, 32, 256)
        assert (network.max_img_h, network.max_img_w, network.max_frames) == (240, 240, 128)
    assert (base.rope_h_extrapolation_ratio, base.rope_w_extrapolation_ratio) == (1.0, 1.0)
    assert (base.rope_t_extrapolation_ratio, branch.rope_t_extrapolation_ratio) == (2.0, 1.0)
    assert (branch.hint_channels, branch.num_control_blocks) == (128, 3)
    assert recipe.checkpoints.control.endswith(control)
    edge = recipe.control.edge
    assert (edge.threshold_low_min, edge.threshold_low_max) == (20, 99)
    assert (edge.threshold_gap_min, edge.threshold_gap_max) == (50, 149)


def test_original_experiment_name_finds_the_recipe() -> None:
    name = "CTRL_7Bv1pt3_lvg_tp_121frames_control_input_edge_block3_posttrain"
    assert recipe_path(name, REPOSITORY).name == "edge_posttrain.toml"


def test_original_name_of_several_recipes_is_refused_and_an_inherited_one_is_not_counted(tmp_path: Path) -> None:
    folder = tmp_path / "config/recipes"
    folder.mkdir(parents=True)
    named = '[experiment]\noriginal_name = "THE_ORIGINAL"\n'
    write(folder, named, "edge_posttrain")
    write(folder, 'extends = "edge_posttrain"\n', "a_run")
    assert recipe_path("THE_ORIGINAL", tmp_path).stem == "edge_posttrain"
    write(folder, named, "b_copy")
    with pytest.raises(WorldtuneError, match=r"original_name of 2 recipes in .*: b_copy, edge_posttrain\. Or remove"):
        recipe_path("THE_ORIGINAL", tmp_path)
    assert recipe_path("b_copy", tmp_path).stem == "b_copy"


def test_overrides_go_over_the_file() -> None:
    recipe = load("optimizer.learning_rate=3e-4", "ema.rates=[0.1, 0.05]", "logging.wandb=offline")
    assert recipe.optimizer.learning_rate == 3e-4
    assert recipe.ema.rates == (0.1, 0.05)
    assert recipe.logging.wandb == "offline"


def test_environment_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 'extends = "demo_edge_posttrain"\n[logging]\nwandb_project = "${oc.env:MY_PROJECT}"\n')
    monkeypatch.setenv("MY_PROJECT", "windows")
    assert load_recipe(path, root=REPOSITORY).logging.wandb_project == "windows"
    monkeypatch.delenv("MY_PROJECT")
    with pytest.raises(WorldtuneError, match="MY_PROJECT"):
        load_recipe(path, root=REPOSITORY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nlearning_rte = 1e-4\n", r"optimizer\.learning_rte: unknown key.*optimizer\.learning_rate"),
        ("[optimiser]\nlearning_rate = 1e-4\n", r"optimiser: unknown key"),
        ('[control]\nkind = "egde"\n', r"control\.kind: Input should be 'edge'.*'egde'"),
        ('[data]\nresolution = "721"\n', r"data\.resolution: .*'720'.*found '721'"),
        ('[network]\nsize = "transfer1_8b"\n', r"transfer1_8b.*nearest known: transfer1_7b"),
        ("[network.base]\nnum_head = 8\n", r"network\.base\.num_head: unknown key.*network\.base\.num_heads"),
        ("[training]\nseed = -1\n", r"training\.seed: .*greater than or equal to 0"),
        ("[optimizer]\nlearning_rate = nan\n", r"optimizer\.learning_rate: .*finite"),
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
        ("ema.rates=[0.5]", "ema.rates"),
        ("optimizer.betas=[0.9,1.0]", r"optimizer.betas\[1\]"),
        ("sampling.sigma_min=100", "sampling.sigma_max"),
        ("cluster.gpus_per_node=1.5", "cluster.gpus_per_node"),
        ("cluster.runtime_minutes=10", "save_seconds: must be below the 600 seconds"),
        ("optimizer.lr=1", "optimizer.lr"),
        ("nonsense", "key.path=value"),
    ],
)
def test_values_that_do_not_fit_are_refused(override: str, message: str) -> None:
    with pytest.raises(WorldtuneError, match=message):
        load(override)


def test_tokens_must_divide_under_sequence_parallelism() -> None:
    overrides = ["data.resolution=128", "parallel.tensor=8"]
    with pytest.raises(WorldtuneError, match="sequence parallelism needs it to divide the 180 tokens"):
        load(*overrides)
    assert load(*overrides, "parallel.sequence=false").parallel.tensor == 8


def test_whole_nodes() -> None:
    with pytest.raises(WorldtuneError, match="whole nodes of 3"):
        load("parallel.tensor=4", "cluster.gpus_per_node=3")


def test_a_recipe_cannot_extend_itself(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b"\n', "a")
    path = write(tmp_path, 'extends = "a"\n', "b")
    with pytest.raises(WorldtuneError, match="extends itself"):
        load_recipe(path, root=REPOSITORY)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(WorldtuneError, match="edge_posttrain"):
        load(name="edge_postrain")
