from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.identity import (
    affects_by_key,
    check_fingerprint,
    dataset_report_values,
    fingerprint,
    identity,
    keys_that_affect,
    values_that_affect,
)
from worldtune.recipe.load import known_keys, load_recipe
from worldtune.recipe.schema import Recipe

REPOSITORY = Path(__file__).parents[2]
HASHES = {
    "base_sha256": "a" * 64,
    "control_sha256": None,
    "tokenizer_sha256": "b" * 64,
    "dataset_digest": "c" * 64,
    "latents_version": None,
    "trainer_version": 1,
}


def load(*overrides: str) -> Recipe:
    return load_recipe("demo_edge_posttrain", overrides, REPOSITORY)


def test_every_key_affects_something_stated() -> None:
    assert sorted(affects_by_key()) == sorted(known_keys(Recipe))
    assert sorted(keys_that_affect("weights", "outcome", "report", "nothing")) == sorted(known_keys(Recipe))


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.learning_rate=2e-3",
        "ema.rates=[0.05]",
        "control.edge.threshold_low_min=30",
        "training.seed=5",
        "network.rope_angles=exact",
        "network.base.num_blocks=5",
        "objective.text_dropout_rate=0.1",
        "data.cache_latents=true",
    ],
)
def test_what_shapes_the_weights_changes_the_identity(override: str) -> None:
    overrides = [override]
    if "num_blocks" in override:
        overrides.append("network.control.num_blocks=5")
    assert identity(load(), **HASHES) != identity(load(*overrides), **HASHES)


@pytest.mark.parametrize(
    "override",
    [
        "training.max_iter=1000",
        "parallel.tensor=4",
        "logging.wandb=offline",
        "previews.guidances=[1.0]",
        "cluster.runtime_minutes=15",
        "saving.every=7",
        "experiment.description=other",
        "validation.every=10",
        "data.num_workers=3",
        "sampling.guidance=3.0",
        "objective.hint_dropout_rate=0.1",
        "network.control.dropout_ctrl_branch=0.1",
    ],
)
def test_what_does_not_keeps_it(override: str) -> None:
    assert identity(load(), **HASHES) == identity(load(override), **HASHES)


@pytest.mark.parametrize("name", sorted(HASHES))
def test_every_input_hash_changes_the_identity(name: str) -> None:
    changed = {**HASHES, name: 2 if name.endswith("_version") else "d" * 64}
    assert identity(load(), **HASHES) != identity(load(), **changed)


@pytest.mark.parametrize("kind", ["edge", "vis", "depth", "seg", "keypoint", "upscale", "hdmap", "lidar"])
def test_of_the_controls_only_the_chosen_kinds_table_counts(kind: str) -> None:
    keys = [key for key in values_that_affect(load(f"control.kind={kind}"), "weights") if key.startswith("control.")]
    own = [key for key in keys_that_affect("weights") if key.startswith(f"control.{kind}.")]
    assert keys == sorted(["control.kind", "control.grayscale", *own])
    assert bool(own) == (kind in ("edge", "vis", "seg", "keypoint", "upscale"))
    chosen = f"control.kind={kind}"
    assert (identity(load(chosen), **HASHES) == identity(load(chosen, "control.vis.downscale_max=9"), **HASHES)) == (
        kind != "vis"
    )
    assert identity(load(chosen), **HASHES) != identity(load(chosen, "control.grayscale=true"), **HASHES)


def test_the_blur_of_evaluation_is_measured_with_and_shapes_no_weights() -> None:
    chosen, key = "control.kind=vis", "control.vis.evaluation_preset"
    assert identity(load(chosen), **HASHES) == identity(load(chosen, f"{key}=high"), **HASHES)
    assert values_that_affect(load(chosen), "outcome")[key] == "medium"
    assert key not in values_that_affect(load(), "outcome")
    with pytest.raises(WorldtuneError, match=rf"{key}.*very_high"):
        load(chosen, f"{key}=strong")


def test_of_several_controls_each_counts() -> None:
    both = ("control.kind=edge", "control.also=[vis]")
    values = values_that_affect(load(*both), "weights")
    tables = {key.split(".")[1] for key in values if key.startswith("control.")}
    assert tables == {"kind", "also", "grayscale", "edge", "vis"}
    assert values["control.also"] == ["vis"]
    assert dataset_report_values(load(*both))["control.also"] == ["vis"]
    identities = {
        identity(load(*overrides), **HASHES)
        for overrides in (
            both[:1],
            both,
            ("control.kind=vis", "control.also=[edge]"),
            (*both, "control.vis.downscale_max=9"),
            (*both, "objective.hint_dropout_rate=0.1"),
        )
    }
    assert len(identities) == 5


def test_a_single_control_has_no_values_of_several() -> None:
    """So that runs from before there were several keep their identity."""
    values = values_that_affect(load(), "weights", "outcome", "report", "nothing")
    assert not {"control.also", "objective.hint_dropout_rate"} & set(values)
    assert "control.also" not in dataset_report_values(load())


def test_cluster_and_logging_are_in_no_params() -> None:
    keys = values_that_affect(load(), "weights", "outcome")
    assert not [key for key in keys if key.startswith(("cluster.", "logging.", "saving."))]


values = st.dictionaries(st.text(min_size=1), st.one_of(st.integers(), st.text(), st.lists(st.integers())), min_size=1)


@given(values)
def test_equal_values_pass(found: dict[str, object]) -> None:
    check_fingerprint(fingerprint(found), dict(reversed(found.items())), "a test")


@given(values, st.data())
def test_a_changed_key_is_named(found: dict[str, object], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(found)))
    changed = {**found, key: "another value, never drawn \x00"}
    with pytest.raises(WorldtuneError) as caught:
        check_fingerprint(fingerprint(found), changed, "a test")
    assert key in str(caught.value) or "a value" in str(caught.value)


def test_a_run_by_hand_checks_nothing() -> None:
    check_fingerprint(None, {"key": 1}, "a test")
