"""What jobs ask of SLURM. Snakemake reads None as "not set"."""

from typing import Any

from worldtune.recipe.project import ClusterNames
from worldtune.recipe.schema import Recipe

PREFLIGHT_MINUTES = 60


def slurm_extra(cluster: ClusterNames) -> str:
    """Return sbatch options of a GPU job for what the plugin has no resource for."""
    # A requeued job writes to the same log file; without append it would start by emptying it.
    options = ["--open-mode=append"]
    if cluster.container:
        options.append(f"--container-image={cluster.container}")
    return " ".join(options)


def sample_gres(recipe: Recipe, cluster: ClusterNames) -> str | None:
    """Return the GPU of a job that draws samples; None where the recipe computes on the CPU."""
    return None if recipe.training.device == "cpu" else f"{cluster.gpu_gres}:1"


def train_resources(recipe: Recipe, cluster: ClusterNames) -> dict[str, Any]:
    """Return the resources of a training job: one task a node, torchrun inside it.

    On one node `mpi`, `tasks` and `tasks_per_gpu` must be unset: the plugin would turn `tasks` into tasks per GPU. On
    several, `mpi` keeps the plugin from wrapping the job in a single-task srun, and `tasks_per_gpu = 0` from
    multiplying.
    """
    nodes, processes = recipe.num_nodes, recipe.processes_per_node
    several = nodes > 1
    return {
        "nodes": nodes,
        "gres": f"{cluster.gpu_gres}:{processes}",
        "mpi": "srun" if several else None,
        "tasks": nodes if several else None,
        "tasks_per_gpu": 0 if several else None,
        "cpus_per_task": recipe.cluster.cpus_per_gpu * processes,
        "mem_mb": int(recipe.cluster.mem_gb_per_gpu * 1024) * processes,
        "runtime": recipe.cluster.runtime_minutes,
        "slurm_extra": f"{slurm_extra(cluster)} --signal=TERM@{recipe.cluster.save_seconds}",
    }


def preflight_runtime(recipe: Recipe) -> int:
    """Return the time limit in minutes of a job that ends before the first step: loading, compilation, two steps."""
    return min(PREFLIGHT_MINUTES, recipe.cluster.runtime_minutes)
