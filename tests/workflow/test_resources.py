from pathlib import Path

from worldtune.recipe.load import load_recipe
from worldtune.recipe.project import ClusterNames
from worldtune.workflow.resources import num_nodes, processes_per_node, train_resources

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
    assert (num_nodes(recipe), processes_per_node(recipe)) == (3, 8)
    resources = train_resources(recipe, ClusterNames(constraint="h100", container="image.sqsh", gpu_gres="gpu:h100"))
    assert [resources[key] for key in ("mpi", "tasks", "tasks_per_gpu")] == ["srun", 3, 0]
    assert resources["gres"] == "gpu:h100:8"
    assert "--constraint=h100" in resources["slurm_extra"]
    assert "--container-image=image.sqsh" in resources["slurm_extra"]


def test_fewer_processes_than_a_node_has_gpus() -> None:
    recipe = load_recipe("demo_edge_posttrain", root=REPOSITORY)
    assert train_resources(recipe, ClusterNames())["gres"] == "gpu:2"
