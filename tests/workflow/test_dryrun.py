"""A dry run shows the whole graph of a checkout that has no data, no checkpoints and no GPU."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from workspace import Workspace

from worldtune.dataset.advice import force_command, rule_of
from worldtune.dataset.clips import shard_of
from worldtune.dataset.config import load_datasets
from worldtune.dataset.parameters import STAGE_KEYS
from worldtune.dataset.reasons import PASSING
from worldtune.dataset.stages import dataset_stages


def counts(labels: tuple[str, ...]) -> Counter[str]:
    return Counter(label.partition("[")[0] for label in labels)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("dryrun"))


def test_configured_runs_from_their_sources_on(workspace: Workspace) -> None:
    planned = counts(workspace.planned())
    runs = 3
    for rule in ("train", "export", "report", "estimate", "training_values", "load_report", "dataset_report"):
        assert planned[rule] == runs, planned
    assert planned["validate"] == 2  # synthetic and hdvila
    assert planned["fetch_metadata"] == 1
    assert planned["fetch_videos"] == 16
    assert planned["render_synthetic"] == 2
    for rule in ("ingest", "captions", "t5"):
        assert planned[rule] == 2 + 16, planned
    assert planned["controls"] == 4 * 2 + 16  # the rendered scenes have four kinds of them
    # Two 7B files, tokenizer and text encoder; the demo's are made in one job.
    assert planned["fetch_checkpoint"] == 4
    assert planned["make_demo_checkpoints"] == 1
    assert planned["split_checkpoint"] == 4
    assert not (workspace.root / "datasets").exists()
    assert not (workspace.root / "checkpoints").exists()


def test_every_recipe_has_a_graph(workspace: Workspace) -> None:
    recipes = sorted(path.stem for path in (workspace.root / "config/recipes").glob("*.toml"))
    targets = [f"results/{name}/{what}" for name in recipes for what in ("model", "report.html")]
    planned = counts(workspace.planned(*targets))
    for rule in ("train", "export", "report", "estimate", "training_values", "load_report", "dataset_report"):
        assert planned[rule] == len(recipes), planned


def test_a_missing_folder_of_videos_still_shows_its_graph(workspace: Workspace) -> None:
    recipe = 'extends = "edge_pretrain"\n[data]\ndataset = "my_videos"\n'
    (workspace.root / "config/recipes/mine.toml").write_text(recipe)
    planned = counts(workspace.planned("results/mine/model"))
    assert planned["ingest"] == 4
    assert planned["fetch_checkpoint"] == 3
    assert planned["train"] == 1
    result = workspace.snakemake("results/mine/model", check=False)
    assert result.returncode
    folder = workspace.root / "my_videos"
    assert f"config/config.yaml: datasets.my_videos.path = 'my_videos' is {folder}, which is no folder" in result.text
    assert result.finished == ()


def test_videos_of_a_repository_are_listed_fetched_and_cut_before_they_are_read(workspace: Workspace) -> None:
    stages = ("fetch_videos", "cuts", "ingest", "captions", "t5", "controls")
    planned = counts(workspace.planned("datasets/hub_videos/dataset.json"))
    assert planned == {"list_repository": 1, **dict.fromkeys(stages, 4), "fetch_checkpoint": 1, "validate": 1}


def test_a_text_encoder_that_was_put_there_by_hand_is_not_fetched(workspace: Workspace) -> None:
    target, path = "datasets/my_videos/manifests/t5/0000.parquet", workspace.root / "config/config.yaml"
    before = path.read_text()
    # The first dataset that is not rendered.
    path.write_text(before.replace("google-t5/t5-11b", "mine/encoder", 1))
    result = workspace.snakemake("--dryrun", target, check=False)
    assert result.returncode
    assert "datasets.my_videos.text_encoder = 'mine/encoder', but there is no checkpoints/mine/encoder" in result.text
    folder = workspace.root / "checkpoints/mine/encoder"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    assert counts(workspace.planned(target)) == {"captions": 1, "t5": 1}
    shutil.rmtree(workspace.root / "checkpoints")
    path.write_text(before)


def test_edited_prompts_beside_a_fetched_video_plan_their_shard_anew(workspace: Workspace) -> None:
    before, line = (workspace.root / "config/config.yaml").read_text(), "    cut: {min_s: 5.1, max_s: 10}\n"
    annotators = "    annotate: {seg: {}}\n"
    workspace.edit(
        "config/config.yaml",
        {
            f"{line}    num_shards: 4\n    min_frames: 121\n    controls: [edge]\n": (
                f"    num_shards: 4\n    min_frames: 121\n    controls: [seg]\n{annotators}"
            )
        },
    )
    target = f"datasets/hub_videos/manifests/annotate-seg/{shard_of('train/a.mp4', 4)}.parquet"
    prompts = workspace.root / "datasets/hub_videos/source/train/a.seg.json"
    prompts.parent.mkdir(parents=True)

    def expected() -> str:
        """The fingerprint of the values that the annotating job is planned for."""
        text = workspace.snakemake("--dryrun", "--printshellcmds", target).text
        (found,) = re.findall(r"annotate\.py .* --expect (\S+)\)", text)
        return found

    prompts.write_text("{}")
    first = expected()
    prompts.write_text("{ }")
    assert expected() != first
    shutil.rmtree(workspace.root / "datasets/hub_videos")
    (workspace.root / "config/config.yaml").write_text(before)


def test_a_text_encoder_of_another_width_stops_the_parse(workspace: Workspace) -> None:
    recipe = workspace.root / "config/recipes/narrow.toml"
    recipe.write_text('extends = "demo_edge_posttrain"\n[data]\ndataset = "my_videos"\ntext_tokens = 512\n')
    result = workspace.snakemake("--dryrun", "results/narrow/model", check=False)
    assert result.returncode
    assert "network.base.crossattn_emb_channels" in result.text
    assert "datasets.my_videos.text_encoder in config/config.yaml" in result.text
    recipe.unlink()


def test_a_line_of_the_configuration_that_is_no_yaml_is_named(workspace: Workspace) -> None:
    path = workspace.root / "config/config.yaml"
    text = path.read_text()
    path.write_text(text.replace("kind: folder", "kind: folder\n  - x", 1))
    result = workspace.snakemake("--dryrun", check=False)
    path.write_text(text)
    assert result.returncode
    assert "config/config.yaml, line " in result.text
    assert "this is no YAML" in result.text


def test_a_run_that_starts_from_another_one_waits_for_its_export(workspace: Workspace) -> None:
    recipe = workspace.root / "config/recipes/second.toml"
    checkpoints = '[checkpoints]\ninit_from = "results/demo_edge_posttrain"\ncontrol = ""\n'
    recipe.write_text(f'extends = "demo_edge_posttrain"\n{checkpoints}')
    planned = counts(workspace.planned("results/second/model"))
    assert (planned["train"], planned["export"], planned["take_export"]) == (2, 2, 1)
    # Base and released control for the first run, and the export for the second one.
    assert planned["split_checkpoint"] == 3
    recipe.write_text('extends = "demo_edge_posttrain"\n' + checkpoints.replace("demo_edge_posttrain", "second"))
    result = workspace.snakemake("--dryrun", "results/second/model", check=False)
    assert result.returncode
    assert "in a circle: second from second" in result.text
    recipe.unlink()


def test_cached_latents_are_one_job_a_shard_and_kind(workspace: Workspace) -> None:
    recipes = workspace.root / "config/recipes"
    cached = "[data]\ncache_latents = true\n"
    (recipes / "cached.toml").write_text('extends = "demo_edge_posttrain"\n' + cached)
    (recipes / "cached_depth.toml").write_text('extends = "demo_depth_posttrain"\n' + cached)
    plain = counts(workspace.planned("results/demo_edge_posttrain/manifest.json"))
    planned = counts(workspace.planned("results/cached/manifest.json"))
    assert planned - plain == Counter({"cache_latents": 2})
    # Recipes of one tokenizer, window, size and precision share them.
    targets = [f"results/{name}/manifest.json" for name in ("cached", "cached_depth")]
    planned = counts(workspace.planned(*targets))
    assert (planned["train"], planned["cache_latents"]) == (2, 2)
    (recipes / "cached_depth.toml").write_text('extends = "demo_depth_posttrain"\n' + cached + "num_frames = 25\n")
    assert counts(workspace.planned(*targets))["cache_latents"] == 4
    # A recipe is in no way between the videos and their latents.
    planned = counts(workspace.planned("results/cached/dataset_report.json"))
    assert planned["cache_latents"] == 0
    for name in ("cached", "cached_depth"):
        (recipes / f"{name}.toml").unlink()


def test_one_edited_caption_plans_one_shard(workspace: Workspace) -> None:
    """Needs no job to have run: a touched output with recorded params is what a run leaves."""
    clips = workspace.root / "my_videos"
    clips.mkdir(exist_ok=True)
    for number in range(20):
        (clips / f"{number}.mp4").write_bytes(b"0")
        (clips / f"{number}.txt").write_text(f"Caption {number}.")
    targets = [f"datasets/my_videos/manifests/captions/{shard:04d}.parquet" for shard in range(4)]
    workspace.snakemake(*targets)
    assert workspace.planned(*targets) == ()
    (clips / "7.txt").write_text("Another caption.")
    assert len(workspace.planned(*targets)) == 1


def test_unknown_dataset_and_recipe_keys_stop_the_parse(workspace: Workspace) -> None:
    recipe = workspace.root / "config/recipes/wrong.toml"
    recipe.write_text('extends = "edge_pretrain"\n[optimizer]\nlearning_rte = 1.0\n')
    result = workspace.snakemake("--dryrun", "results/wrong/model", check=False)
    assert result.returncode
    assert "optimizer.learning_rte: unknown key; the nearest known: optimizer.learning_rate" in result.text
    recipe.write_text('extends = "edge_pretrain"\n[data]\ndataset = "hdvla"\n')
    result = workspace.snakemake("--dryrun", "results/wrong/model", check=False)
    assert result.returncode
    assert "hdvila" in result.text
    recipe.unlink()


def test_a_preflight_has_the_inputs_of_training_and_no_training(workspace: Workspace) -> None:
    planned = counts(workspace.planned("results/edge_posttrain/preflight.json"))
    training = counts(workspace.planned("results/edge_posttrain/manifest.json"))
    assert planned - training == Counter({"preflight": 1})
    assert training - planned == Counter({"train": 1})
    assert planned["estimate"] == 1


def test_a_recipe_that_does_not_fit_stops_before_anything_is_fetched(workspace: Workspace) -> None:
    recipe = workspace.root / "config/recipes/large.toml"
    recipe.write_text('extends = "edge_posttrain"\n[parallel]\ntensor = 1\n')
    result = workspace.snakemake("results/large/estimate.json", check=False)
    assert result.returncode
    assert "error: The recipe does not fit:" in result.text
    assert "cluster.gpu_memory_gb = 79" in result.text
    assert not (workspace.root / "results/large/estimate.json").exists()
    # One that asks for little room on this machine's disk.
    recipe.write_text('extends = "demo_edge_posttrain"\n')
    assert workspace.snakemake("results/large/estimate.json").finished == ("estimate",)
    recipe.unlink()


def test_pages_that_are_asked_for_by_name(workspace: Workspace) -> None:
    planned = counts(workspace.planned("results/datasets/synthetic/overview.html"))
    assert (planned["dataset_overview"], planned["validate"], planned["train"]) == (1, 1, 0)
    planned = counts(workspace.planned("results/comparisons/demo_edge_posttrain+edge_posttrain.html"))
    assert (planned["comparison"], planned["report"], planned["train"]) == (1, 2, 2)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "datasets/synthetics/dataset.json",
            "config/config.yaml has no dataset 'synthetics' (did you mean 'synthetic'?)",
        ),
        (
            "results/datasets/synthetics/overview.html",
            "config/config.yaml has no dataset 'synthetics' (did you mean 'synthetic'?)",
        ),
        (
            "results/comparisons/edge_postrain+edge_pretrain.html",
            "there is no recipe 'edge_postrain'; the nearest known: edge_posttrain",
        ),
        ("results/comparisons/edge_pretrain.html", "a comparison needs two or more runs"),
        ("results/comparisons/edge_pretrain+edge_pretrain.html", "edge_pretrain is there more than once"),
    ],
)
def test_targets_of_unknown_names_name_the_nearest(workspace: Workspace, target: str, message: str) -> None:
    result = workspace.snakemake("--dryrun", target, check=False)
    assert result.returncode
    assert message in result.text
    assert "Traceback" not in result.text


def test_a_list_of_captions_that_is_not_there_is_named_with_its_dataset(workspace: Workspace) -> None:
    line = "    path: my_videos\n"
    workspace.edit("config/config.yaml", {line: line + "    captions: clips.csv\n"})
    result = workspace.snakemake("--dryrun", "datasets/my_videos/dataset.json", check=False)
    assert result.returncode
    place = workspace.root / "clips.csv"
    assert f"error: config/config.yaml: datasets.my_videos.captions = 'clips.csv' is {place}" in result.text
    assert "Traceback" not in result.text
    workspace.edit("config/config.yaml", {line + "    captions: clips.csv\n": line})


@pytest.mark.parametrize(
    ("key", "name", "near"),
    [
        ("base", "nvidia/Cosmos-Transfer1-7B/base_modle.pt", "nvidia/Cosmos-Transfer1-7B/base_model.pt"),
        ("control", "nvidia/Cosmos-Transfer1-7B/egde_control.pt", "nvidia/Cosmos-Transfer1-7B/edge_control.pt"),
        ("tokenizer", "nvidia/Cosmos-Tokenize1-CV8x8x8", "nvidia/Cosmos-Tokenize1-CV8x8x8-720p"),
    ],
)
def test_a_misspelt_checkpoint_names_the_nearest(workspace: Workspace, key: str, name: str, near: str) -> None:
    recipe = workspace.root / "config/recipes/wrong.toml"
    recipe.write_text(f'extends = "edge_posttrain"\n[checkpoints]\n{key} = "{name}"\n')
    result = workspace.snakemake("--dryrun", "results/wrong/model", check=False)
    assert result.returncode
    assert f"Recipe wrong: checkpoints.{key} = '{name}', but there is no checkpoints/{name}" in result.text
    assert re.search(rf"did you mean .*{re.escape(near)}", result.text)
    if key != "tokenizer":
        own = workspace.root / "checkpoints" / name
        own.parent.mkdir(parents=True)
        own.write_bytes(b"")
        assert "split_checkpoint" in counts(workspace.planned("results/wrong/model"))
        shutil.rmtree(workspace.root / "checkpoints")
    recipe.unlink()


def test_networks_of_annotators_are_fetched_or_put_there_by_hand(workspace: Workspace) -> None:
    targets = [f"datasets/annotated/manifests/annotate-{kind}/0000.parquet" for kind in ("depth", "keypoint")]
    annotators = "    annotate: {depth: {}, keypoint: {model: mine/networks}}\n"
    before, line = (workspace.root / "config/config.yaml").read_text(), "    controls: [depth, seg, keypoint]\n"
    workspace.edit("config/config.yaml", {line: line + annotators})
    result = workspace.snakemake("--dryrun", *targets, check=False)
    assert result.returncode
    assert "datasets.annotated.annotate.keypoint = 'mine/networks', but there is no checkpoints/mine" in result.text
    own = workspace.root / "checkpoints/mine/networks"
    own.mkdir(parents=True)
    (own / "pose.onnx").write_bytes(b"")
    assert counts(workspace.planned(*targets)) == {"fetch_checkpoint": 1, "ingest": 1, "annotate": 2}
    shutil.rmtree(workspace.root / "checkpoints")
    (workspace.root / "config/config.yaml").write_text(before)


@pytest.mark.parametrize("what", ["model", "report.html", "preflight.json"])
def test_an_original_name_names_the_run_to_ask_for(workspace: Workspace, what: str) -> None:
    original = "CTRL_7Bv1pt3_lvg_tp_121frames_control_input_edge_block3_pretrain"
    result = workspace.snakemake("--dryrun", f"results/{original}/{what}", check=False)
    assert result.returncode
    assert f"results/{original} is no run. Ask for results/edge_pretrain/{what}" in result.text
    assert "Function did not return str" not in result.text


def test_numbers_that_readers_of_yaml_take_differently_are_no_change(workspace: Workspace) -> None:
    number = {"held_out_fraction: 0.33": "held_out_fraction: 33e-2"}
    workspace.edit("config/config.yaml", number)
    assert workspace.planned("datasets/synthetic/dataset.json")
    workspace.edit("config/config.yaml", {new: old for old, new in number.items()})


def test_config_on_the_command_line_is_refused(workspace: Workspace) -> None:
    result = workspace.snakemake("--dryrun", "--config", "runs=[edge_pretrain]", check=False)
    assert result.returncode
    assert "WORLDTUNE_CONFIG" in result.text


def test_scripts_have_the_names_of_their_rules() -> None:
    root = Path(__file__).parents[2]
    texts = [path.read_text() for path in sorted((root / "rules").glob("*.smk"))]
    blocks = [block for text in texts for block in re.split(r"^(?=(?:rule|checkpoint) \w+:)", text, flags=re.MULTILINE)]
    # A rule without a command only explains why it cannot run.
    rules = {block.split()[1].rstrip(":"): block for block in blocks[1:] if "    shell:\n" in block}
    assert {"train", "export", "ingest"} <= set(rules)
    # What training does before its first step is a part of its script.
    assert "src/scripts/train.py {wildcards.run:q} --preflight" in rules.pop("preflight")
    for rule in rules:
        assert (root / "src/scripts" / f"{rule}.py").is_file(), rule


def test_captions_are_made_by_a_model_of_the_catalogue_one_put_there_by_hand_or_a_server(workspace: Workspace) -> None:
    recipe = 'extends = "edge_pretrain"\n[data]\ndataset = "my_videos"\n'
    (workspace.root / "config/recipes/mine.toml").write_text(recipe)
    model = "path: my_videos\n    captioner:\n      model: Qwen/Qwen3-VL-8B-Instruct\n"
    workspace.edit("config/config.yaml", {"path: my_videos\n": model})
    planned = workspace.planned("results/mine/model")
    assert counts(planned)["make_captions"] == 4
    assert counts(planned)["captions"] == 0
    assert counts(planned)["fetch_checkpoint"] == 4
    own = workspace.root / "checkpoints/mine/model"
    own.mkdir(parents=True)
    (own / "model.safetensors").write_bytes(b"")
    workspace.edit("config/config.yaml", {"Qwen/Qwen3-VL-8B-Instruct\n": "mine/model\n"})
    assert counts(workspace.planned("results/mine/model"))["fetch_checkpoint"] == 3
    shutil.rmtree(workspace.root / "checkpoints")
    workspace.edit("config/config.yaml", {"mine/model\n": "Qwen/Qwen3-VL-8B-Instruct\n"})
    workspace.edit("config/config.yaml", {model: model + "      server: http://gpu-node:8000/v1\n"})
    assert counts(workspace.planned("results/mine/model"))["fetch_checkpoint"] == 3


def test_messages_name_rules_that_exist(workspace: Workspace) -> None:
    root = workspace.root
    rules = {
        name
        for path in (root / "rules").glob("*.smk")
        for name in re.findall(r"^(?:rule|checkpoint) (\w+):", path.read_text(), re.MULTILINE)
    }
    texts = [
        root / "README.md",
        root / "config/README.md",
        *(root / "src").rglob("*.py"),
        *(root / "rules").glob("*.smk"),
    ]
    named = {name for path in texts for name in re.findall(r"(?:--forcerun|snakemake -R) ([a-z]\w*)", path.read_text())}
    assert {"t5", "controls", "annotate", "make_captions"} <= named <= rules
    datasets = load_datasets(root / "config/config.yaml").values()
    stages = sorted({stage for config in datasets for stage in dataset_stages(config)})
    assert set(map(rule_of, stages)) | set(STAGE_KEYS) | set().union(*PASSING.values()) <= rules
    command = force_command("hub_videos", *stages).strip("`").split()
    assert "datasets/hub_videos/dataset.json" in command
    # Not of the configured runs, which are planned where the target is taken for a rule.
    planned = counts(workspace.planned(*command[1:]))
    assert (planned["validate"], planned["train"]) == (1, 0)
