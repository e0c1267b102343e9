from pathlib import Path

import pytest

from worldtune.checkpoint.catalogue import load_catalogue
from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import COMPUTED_CONTROLS, COMPUTED_IN_TRAINING
from worldtune.dataset.config import TEXT_CHANNELS, dataset_of, find_dataset, load_datasets, parse_datasets
from worldtune.demo.text_encoder import CHANNELS
from worldtune.recipe.load import load_recipe

FOLDER = {"kind": "folder", "path": "videos", "num_shards": 2}
HDVILA = {"kind": "hdvila", "num_shards": 1, "max_clips": 3}
ROOT = Path(__file__).parents[2]
DEMO_T5 = "worldtune/demo-t5"
DRIVING = {"kind": "synthetic", "world": "driving", "num_shards": 1, "num_clips": 3}


def message(table: dict[str, object]) -> str:
    with pytest.raises(WorldtuneError) as caught:
        parse_datasets({"mine": table}, "config.yaml")
    return str(caught.value)


def test_typing_error_is_named_with_the_nearest_key():
    text = message(FOLDER | {"min_frame": 3})
    assert "config.yaml" in text
    assert "mine.min_frame" in text
    assert "'min_frames'" in text


def test_all_problems_are_named_at_once():
    text = message({"kind": "folder", "num_shards": 0, "controls": ["egde"]})
    assert "num_shards" in text
    assert "did you mean 'edge'" in text


@pytest.mark.parametrize(
    ("table", "part"),
    [
        ({"kind": "folder", "num_shards": 1}, "needs path"),
        ({"kind": "synthetic", "num_shards": 1}, "needs num_clips"),
        (FOLDER | {"num_clips": 3}, "belongs to kind 'synthetic'"),
        ({"kind": "hdvila", "num_shards": 1}, "needs max_clips"),
        ({"kind": "hdvila", "num_shards": 1, "path": "videos"}, "belongs to kind 'folder'"),
        (
            HDVILA | {"controls": ["edge", "depth", "seg"]},
            "for which depth, seg cannot be given. Let a network",
        ),
        (FOLDER | {"captions": "list.xlsx"}, r".csv, .jsonl, .parquet"),
        (FOLDER | {"controls": ["edge", "edge"]}, "twice"),
        (FOLDER | {"controls": ["vis"]}, "training computes it"),
        (FOLDER | {"controls": ["keypoints"]}, "did you mean 'keypoint'"),
        (FOLDER | {"text_encoder": "../outside"}, "no folder below checkpoints"),
        (FOLDER | {"captioner": {}}, "mine.captioner.model: Field required"),
        (
            FOLDER | {"captioner": {"model": "q", "serve": "x"}},
            "captioner.serve: there is no such key (did you mean 'server'",
        ),
        (FOLDER | {"captioner": {"model": "../outside"}}, "no name of a model"),
        (FOLDER | {"captioner": {"model": "q", "server": "gpu-node:8000"}}, "no address"),
        (FOLDER | {"captioner": {"model": "q", "concurrency": 4}}, "concurrency belongs to a captioner with a server"),
        (FOLDER | {"captioner": {"model": "q", "server": "http://h/v1", "batch_size": 2}}, "batch_size belongs to"),
        (FOLDER | {"views": {"front": ""}}, "at least two views"),
        (FOLDER | {"views": {"front": "", "left": " "}}, "'left' needs a caption"),
        (FOLDER | {"views": {"front": "", "hdmap": "Left."}}, "folder of a control"),
        (FOLDER | {"views": {"front": "", "a/b": "Left."}}, "no folder of a view"),
        (FOLDER | {"world": "driving"}, "belongs to kind 'synthetic'"),
        (DRIVING | {"views": {"pinhole_front": "", "pinhole_left": "Left."}}, "no camera 'pinhole_left'"),
        (DRIVING | {"world": "objects", "views": {"front": "", "left": "Left."}}, "has no camera 'front'"),
        (DRIVING | {"controls": ["edge", "depth"]}, "has no depth, only edge, hdmap, lidar"),
        (FOLDER | {"held_out_fraction": 0}, "held_out_fraction"),
        (FOLDER | {"held_out_fraction": float("nan")}, "held_out_fraction"),
    ],
)
def test_what_does_not_fit_together(table, part):
    assert part in message(table)


@pytest.mark.parametrize("name", ["../x", "a b", "", "a/b", "-x"])
def test_names_that_are_no_folder_names(name):
    with pytest.raises(WorldtuneError, match="letters, digits"):
        parse_datasets({name: FOLDER}, "config.yaml")


def test_environment_variables_are_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", "/data/videos")
    path = tmp_path / "config.yaml"
    path.write_text("runs: []\ndatasets:\n  mine: {kind: folder, num_shards: 3, path: '${oc.env:WHERE}'}\n")
    assert load_datasets(path)["mine"].path == "/data/videos"
    with pytest.raises(WorldtuneError, match="did you mean 'mine'"):
        find_dataset(path, "mime")


def test_a_config_without_datasets(tmp_path):
    (tmp_path / "config.yaml").write_text("runs: []\n")
    assert load_datasets(tmp_path / "config.yaml") == {}
    with pytest.raises(WorldtuneError, match=r"has no dataset 'mine'; it has none yet\."):
        find_dataset(tmp_path / "config.yaml", "mine")


def test_a_name_that_is_not_near_gets_the_list(tmp_path):
    (tmp_path / "config.yaml").write_text("datasets:\n  waymo_views: {kind: folder, num_shards: 3, path: x}\n")
    with pytest.raises(WorldtuneError, match=r"no dataset 'my_videos'; expected one of waymo_views\."):
        find_dataset(tmp_path / "config.yaml", "my_videos")


def test_a_line_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("runs: []\ndatasets:\n  mine: {kind: folder\n  other: 3\n")
    with pytest.raises(WorldtuneError, match=r"config\.yaml, line 4, column 8: this is no YAML"):
        load_datasets(tmp_path / "config.yaml")


def test_the_width_of_the_catalogues_encoders_is_known():
    encoders = [entry.id for entry in load_catalogue(ROOT / "config/checkpoints.toml").repository if "t5" in entry.id]
    assert sorted(encoders) == sorted(TEXT_CHANNELS)
    assert TEXT_CHANNELS[DEMO_T5] == CHANNELS


@pytest.mark.parametrize(
    ("name", "table", "parts"),
    [
        ("synthetics", {}, ("did you mean 'synthetic'",)),
        ("videos_of_mine", {}, ("; expected one of synthetic",)),
        ("synthetic", {"controls": ["depth"]}, ("edge", "['depth']", "config.yaml")),
        (
            "synthetic",
            {"text_encoder": "google-t5/t5-11b"},
            ("64 channels (network.base.crossattn_emb_channels)", "1024", "datasets.synthetic.text_encoder", "demo-t5"),
        ),
        ("synthetic", {"text_max_tokens": 65}, ("64", "65", "data.text_tokens", "text_max_tokens")),
    ],
)
def test_a_recipe_whose_dataset_will_not_fit_is_told_before_anything_runs(name, table, parts):
    root = Path(__file__).parents[2]
    recipe = load_recipe("demo_edge_posttrain", [f"data.dataset={name}"], root=root)
    fitting = {"kind": "synthetic", "num_shards": 1, "num_clips": 4, "text_max_tokens": 64, "text_encoder": DEMO_T5}
    assert dataset_of("run", load_recipe("demo_edge_posttrain", root=root), parse_datasets({"synthetic": fitting}, ""))
    with pytest.raises(WorldtuneError) as caught:
        dataset_of("run", recipe, parse_datasets({"synthetic": fitting | table}, "config.yaml"))
    assert all(part in str(caught.value) for part in ("run", *parts))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "config/recipes").glob("*.toml")))
def test_a_recipes_dataset_can_have_the_control_that_it_trains(name):
    recipe = load_recipe(name, root=ROOT)
    config = dataset_of(name, recipe, load_datasets(ROOT / "config/config.yaml"))
    # The rest can only be given, and only beside whole videos.
    if recipe.control.kind not in COMPUTED_IN_TRAINING | COMPUTED_CONTROLS:
        assert config.kind != "hdvila"
        assert not config.captions


@pytest.mark.parametrize("kind", ["vis", "upscale", "depth", "seg", "keypoint", "hdmap", "lidar"])
def test_only_controls_with_files_are_asked_of_the_dataset(kind):
    root = Path(__file__).parents[2]
    recipe = load_recipe("demo_edge_posttrain", [f"control.kind={kind}"], root=root)
    table = {**FOLDER, "text_max_tokens": 64, "controls": [], "text_encoder": DEMO_T5}
    without = parse_datasets({"synthetic": table}, "")
    if kind in COMPUTED_IN_TRAINING:
        assert dataset_of("run", recipe, without) is without["synthetic"]
        return
    with pytest.raises(WorldtuneError, match=f"Add '{kind}' to its controls"):
        dataset_of("run", recipe, without)
    with_it = parse_datasets({"synthetic": table | {"controls": [kind]}}, "")
    assert dataset_of("run", recipe, with_it)
    both = load_recipe("demo_edge_posttrain", ["control.kind=vis", f"control.also=[{kind}]"], root=root)
    assert dataset_of("run", both, with_it)
    with pytest.raises(WorldtuneError, match=f"trains the vis-{kind} control.*Add '{kind}' to its controls"):
        dataset_of("run", both, without)
