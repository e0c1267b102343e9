from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_common.exceptions import WorkflowError

from worldtune.recipe.load import load_recipe
from worldtune.recipe.project import ClusterNames
from worldtune.workflow.resources import preflight_runtime, train_resources

REPOSITORY = Path(__file__).parents[2]


def test_one_node_leaves_tasks_unset() -> None:
    resources = train_resources(load_recipe("edge_posttrain", root=REPOSITORY), ClusterNames())
    assert resources["nodes"] == 1
    assert resources["gres"] == "gpu:8"
    assert [resources[key] for key in ("mpi", "tasks", "tasks_per_gpu")] == [None, None, None]
    assert resources["cpus_per_task"] == 96
    assert resources["mem_mb"] == 8 * 120 * 1024


def test_several_nodes_take_one_task_each() -> None:
    overrides = ["parallel.data=3", "training.global_batch_size=3"]
    recipe = load_recipe("edge_posttrain", overrides, REPOSITORY)
    assert (recipe.num_nodes, recipe.processes_per_node) == (3, 8)
    resources = train_resources(recipe, ClusterNames(constraint="h100", container="image.sqsh", gpu_gres="gpu:h100"))
    assert [resources[key] for key in ("mpi", "tasks", "tasks_per_gpu")] == ["srun", 3, 0]
    assert resources["gres"] == "gpu:h100:8"
    assert resources["slurm_extra"] == "--open-mode=append --container-image=image.sqsh --signal=TERM@600"


def test_the_plugin_takes_the_options_that_no_resource_stands_for() -> None:
    recipe = load_recipe("edge_posttrain", root=REPOSITORY)
    extra = train_resources(recipe, ClusterNames(constraint="h100", container="image.sqsh"))["slurm_extra"]
    validate_slurm_extra(SimpleNamespace(resources=SimpleNamespace(slurm_extra=extra)))
    with pytest.raises(WorkflowError, match="constraint"):
        validate_slurm_extra(SimpleNamespace(resources=SimpleNamespace(slurm_extra="--constraint=h100")))


def test_fewer_processes_than_a_node_has_gpus() -> None:
    recipe = load_recipe("demo_edge_posttrain", root=REPOSITORY)
    assert train_resources(recipe, ClusterNames())["gres"] == "gpu:2"


def test_a_preflight_asks_for_an_hour_at_most() -> None:
    assert preflight_runtime(load_recipe("edge_posttrain", root=REPOSITORY)) == 60
    short = load_recipe("edge_posttrain", ["cluster.runtime_minutes=20"], REPOSITORY)
    assert preflight_runtime(short) == 20
