"""The real graph on a real SLURM: two nodes, eight pretended GPUs each, started and stopped here."""

import pytest
from sandbox import NODES, Sandbox
from slurm_jobs import accounted, add_recipe, finish, last_job, launch_of, start, watch
from workspace import Workspace

from worldtune.recipe.load import load_recipe

pytestmark = pytest.mark.slurm

RULES = {
    *("make_demo_checkpoints", "split_checkpoint", "load_report", "dataset_report"),
    *("render_synthetic", "ingest", "captions", "t5", "controls", "validate"),
    *("train", "export"),
}


def test_the_pipeline_runs_on_a_node_with_eight_gpus(sandbox: Sandbox, workspace: Workspace) -> None:
    add_recipe(workspace, "on_one_node", tensor=8)
    process = start(workspace, "results/on_one_node/model", "one_node")
    queue = watch(process, workspace, "one_node", seconds=900)
    output = finish(process, "one_node", seconds=900)
    jobs = accounted(sandbox, "one_node")

    assert list((workspace.root / "results/on_one_node/model").glob("*.safetensors")), output[-3000:]
    assert [job.fields["gpus"] for job in queue if job.rule == "train"] == ["gres:gpu:8"]
    assert {job.rule for job in jobs} == RULES
    for job in jobs:
        assert job.state == "COMPLETED", job
        assert job.partition == ("gpu" if job.rule in ("train", "t5") else "cpu"), job
        assert job.account == "sandbox", job
        assert job.minutes.isdigit(), job
        assert job.memory.endswith("M") or job.memory.endswith("G"), job
        assert ("gres/gpu" in job.resources) == (job.rule == "train"), job
    (train,) = [job for job in jobs if job.rule == "train"]
    recipe = load_recipe("on_one_node", root=workspace.root)
    assert train.comment == "rule_train_wildcards_on_one_node"
    assert (train.minutes, train.nodes) == ("37", "1")
    assert (train.resources["gres/gpu"], train.resources["cpu"]) == ("8", str(8 * recipe.cluster.cpus_per_gpu))
    assert tasks_of_step(sandbox, train.job) == "1|1"
    (launch,) = launch_of(workspace, "on_one_node")
    assert launch["world_size"] == 8
    logs = workspace.root / "logs/slurm"
    assert {path.parent.parent.name for path in logs.glob("*/*/*.log")} >= {"rule_train"}, (
        "the profile keeps SLURM's logs"
    )


def test_training_spans_two_nodes(sandbox: Sandbox, workspace: Workspace) -> None:
    add_recipe(workspace, "on_two_nodes", tensor=2, data=2, accumulation=1, gpus_per_node=2)
    before = last_job(sandbox)
    process = start(workspace, "results/on_two_nodes/manifest.json", "two_nodes")
    queue = watch(process, workspace, "two_nodes", seconds=600)
    finish(process, "two_nodes", seconds=600)
    jobs = accounted(sandbox, "two_nodes", after=before)

    assert [job.fields["nodes"] for job in queue if job.rule == "train"] == [str(NODES)]
    (train,) = [job for job in jobs if job.rule == "train"]
    assert (train.state, train.nodes, train.resources["gres/gpu"]) == ("COMPLETED", "2", "4")
    assert tasks_of_step(sandbox, train.job) == "2|2"
    (launch,) = launch_of(workspace, "on_two_nodes")
    assert launch["world_size"] == 4


def tasks_of_step(sandbox: Sandbox, job: str) -> str:
    """Return tasks and nodes of a job's first step."""
    return sandbox.client("sacct", "-j", f"{job}.0", "--noheader", "--parsable2", "--format=ntasks,nnodes")
