"""config/config.yaml without its datasets: which runs to make, and what the cluster is called."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml import MarkedYAMLError, YAMLError

from worldtune.common.errors import WorldtuneError

CONFIG_VARIABLE = "WORLDTUNE_CONFIG"
DEFAULT_CONFIG = "config/config.yaml"


def config_path() -> Path:
    """Return the project's config file: the variable WORLDTUNE_CONFIG, or config/config.yaml."""
    return Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG))


class Partitions(BaseModel):
    """SLURM partitions by what a job needs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    cpu: str | None = None
    """Jobs without a GPU. null takes the cluster's default partition."""
    gpu: str | None = None
    """Training, text embedding and caching of latents. null takes the cluster's default partition."""
    network: str | None = None
    """Jobs that download. null runs them where snakemake runs, since compute nodes often have no way out."""


class ClusterNames(BaseModel):
    """Names that a cluster wants to hear; none of them is in any rule's params, so changing them re-runs nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    account: str | None = None
    """SLURM account. null lets SLURM choose."""
    partitions: Partitions = Partitions()
    """Partitions."""
    constraint: str | None = None
    """Node features that GPU jobs ask for, such as "h100"."""
    container: str | None = None
    """Container image of GPU jobs, where the cluster has Pyxis."""
    gpu_gres: str = "gpu"
    """Generic resource of GPUs, with a type where the cluster wants one, such as "gpu:h200"."""
    text_gpus: int = Field(default=1, ge=0)
    """GPUs of a text embedding job, each with an encoder in a process of its own; 0 embeds on CPUs."""


class ProjectConfig(BaseModel):
    """The keys of config/config.yaml apart from `datasets`, which the dataset room reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    runs: tuple[str, ...]
    """Recipes that `snakemake` without a target makes, and that `make dryrun` shows."""
    cluster: ClusterNames = ClusterNames()
    """What the cluster is called."""


def read_config(path: Path, *, resolve: bool = True) -> dict[str, Any]:
    """Read a YAML file.

    Args:
        path: the file.
        resolve: whether `${oc.env:NAME}` is replaced by the variable's value, or left as it is.

    Raises:
        WorldtuneError: the file is missing, is no YAML, or names an environment variable that is not set.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=resolve)
    except FileNotFoundError as error:
        raise WorldtuneError(
            f"{path} does not exist; run from the repository's root, or set {CONFIG_VARIABLE}."
        ) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise WorldtuneError(f"{path}{where}: this is no YAML: {error.problem}. Mend that line.") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise WorldtuneError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise WorldtuneError(f"{path} must be a table of keys.")
    return {str(key): value for key, value in values.items()}


def load_project(values: Mapping[str, Any], path: Path) -> ProjectConfig:
    """Check the project's keys.

    Raises:
        WorldtuneError: a key is unknown or a value is wrong; the message names each.
    """
    try:
        return ProjectConfig.model_validate({key: value for key, value in values.items() if key != "datasets"})
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}" for detail in error.errors()]
        raise WorldtuneError(f"{path}:\n  " + "\n  ".join(lines)) from error
