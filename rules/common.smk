import functools
import json
import re
import signal
import sys
import tomllib
from pathlib import Path

from snakemake.common.configfile import load_configfile

from worldtune.checkpoint.catalogue import load_catalogue
from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import SUMMARY
from worldtune.dataset.config import (
    dataset_of,
    find_dataset,
    load_datasets,
    missing_folder,
    missing_list,
)
from worldtune.common.versions import stage_version
from worldtune.dataset.latents import LatentsKind
from worldtune.dataset.make_captions import caption_stage
from worldtune.dataset.parameters import STAGE_KEYS, stage_values
from worldtune.dataset.stages import dataset_stages
from worldtune.evaluate.places import check_runs
from worldtune.recipe.capacity import capacity_values
from worldtune.recipe.identity import (
    dataset_report_values,
    keys_that_affect,
    load_report_values,
    values_that_affect,
)
from worldtune.recipe.load import load_recipe, recipe_path
from worldtune.recipe.project import config_path, load_project, read_config
from worldtune.workflow.lock import WorkflowLock
from worldtune.workflow.plan import Plan
from worldtune.workflow.resources import (
    preflight_runtime,
    sample_gres,
    slurm_extra,
    train_resources,
)
from worldtune.workflow.unfinished import UnfinishedWork

PYTHON = sys.executable
# Snakemake lowers it to the cores that it has here.
ALL_CORES = 4096
# Cores of a job that runs a network: two on this machine would share its first GPU, or its memory and cores where there
# is none. On SLURM gres gives each job GPUs of its own, and cpus_per_task the cores.
NETWORK_THREADS = ALL_CORES
# Snakemake sets the numbers of threads to a job's cores: too many where processes share them, and on a cluster where
# ALL_CORES is not lowered.
OWN_THREADS = "unset OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS;"
PROJECT = load_project(read_config(config_path()), config_path())
DATASETS = load_datasets(config_path())
CATALOGUE = load_catalogue(Path("config/checkpoints.toml"))
RUNS = sorted(path.stem for path in Path("config/recipes").glob("*.toml"))
# What is wrong with the sources of the datasets that the graph asks for.
MISSING_FOLDERS = set()
LOCK = WorkflowLock(Path(".snakemake"))
PLAN = Plan(
    Path(".snakemake/worldtune_plan"),
    scheduling=lambda: LOCK.held,
    inside_job=not workflow.is_main_process,
)
UNFINISHED = UnfinishedWork()

if not workflow.is_main_process:
    # `scancel --signal=USR1` reaches the snakemake around a job's command too, which would die of it and take the job
    # with it. A handler, not SIG_IGN: that one would be inherited by the command.
    signal.signal(signal.SIGUSR1, lambda *_: None)

# By snakemake's own reader: others take 5e-2 for a number, which YAML 1.1 takes for a text.
if config != load_configfile(config_path()):
    raise WorldtuneError(
        f"--config and --configfile reach snakemake but not the scripts, which read {config_path()}. "
        "Edit that file, or set the environment variable WORLDTUNE_CONFIG to another one."
    )

# Compute nodes have no way out, and a hub that cannot be reached costs minutes of retries.
shell.prefix("export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1; ")


wildcard_constraints:
    run="|".join(map(re.escape, RUNS)),
    dataset="|".join(map(re.escape, DATASETS)),
    shard=r"\d{4}",
    control=r"[a-z]+",
    repo=r"[^/]+/[^/]+",
    stem=r"[^/]+",
    degree=r"\d+",


onstart:
    # Jobs on a cluster run this file too; only the process that schedules them takes the lock.
    if workflow.is_main_process:
        # Not before: a dry run shows the graph of videos that are not there yet.
        if MISSING_FOLDERS:
            raise WorldtuneError("\n".join(sorted(MISSING_FOLDERS)))
        LOCK.acquire()
        PLAN.write()
        UNFINISHED.mark(workflow.dag, workflow.persistence)


onsuccess:
    if workflow.is_main_process:
        UNFINISHED.settle(workflow.dag, workflow.persistence)


onerror:
    if workflow.is_main_process:
        UNFINISHED.settle(workflow.dag, workflow.persistence)


def plainly(function):
    """Let a mistake of the user's end the planning with its message alone: Snakemake would add a traceback."""

    @functools.wraps(function)
    def call(*arguments, **keywords):
        try:
            return function(*arguments, **keywords)
        except WorldtuneError as error:
            # With jobs under way, it is Snakemake that ends them.
            if LOCK.held:
                raise
            raise SystemExit(f"error: {error}") from error

    return call


@functools.cache
@plainly
def recipe_of(run):
    return load_recipe(run)


def recipe(wildcards):
    return recipe_of(wildcards.run)


@functools.cache
@plainly
def values_of_stage(stage, dataset, shard, control):
    if shard is not None and (problem := missing_folder(dataset, DATASETS[dataset])):
        MISSING_FOLDERS.add(problem)
    # It names the clips, so that without it there is no graph to look at.
    if problem := missing_list(dataset, DATASETS[dataset]):
        raise WorldtuneError(problem)
    return stage_values(stage, dataset, DATASETS[dataset], shard=shard, control=control)


@functools.cache
def values_of_run(run, *kinds):
    return values_that_affect(recipe_of(run), *kinds)


def get_final_output():
    return [
        path
        for run in PROJECT.runs
        for path in (f"results/{run}/model", f"results/{run}/report.html")
    ]


def dataset_shards(name):
    return [f"{shard:04d}" for shard in range(DATASETS[name].num_shards)]


def stage_params(stage):
    """Named params of a stage, one for each value that can change its output, and their fingerprint."""

    def values(wildcards):
        return values_of_stage(
            stage, wildcards.dataset, wildcards.get("shard"), wildcards.get("control")
        )

    params = {
        key: (lambda wildcards, key=key: values(wildcards)[key])
        for key in STAGE_KEYS[stage]
    }
    return {
        **params,
        "expect": lambda wildcards: PLAN.fingerprint(
            "/".join([stage, *map(str, wildcards)]), values(wildcards)
        ),
    }


def recipe_params(rule, *kinds):
    """Named params of a run's rule, one for each recipe key that can change its output, and their fingerprint."""

    def value(wildcards, key):
        values = values_of_run(wildcards.run, *kinds)
        return f"{key} = {values[key]!r}" if key in values else f"{key} is not used"

    params = {
        key.replace(".", "__"): (lambda wildcards, key=key: value(wildcards, key))
        for key in keys_that_affect(*kinds)
    }
    return {
        **params,
        "expect": expected(rule, *kinds),
    }


def expected(rule, *kinds):
    """A function of wildcards that gives the fingerprint of the run's values that a rule is planned with."""

    def planned(wildcards):
        # What lies behind a validation is known to be due once that has ended.
        if LOCK.held:
            UNFINISHED.mark(workflow.dag, workflow.persistence)
        values = values_of_run(wildcards.run, *kinds)
        return PLAN.fingerprint(f"{rule}/{wildcards.run}", values)

    return planned


def hub_outputs():
    """Paths below checkpoints/ that can be downloaded, as regular expressions."""
    requests = [
        request for request in CATALOGUE.requests if request.repository.kind == "hub"
    ]
    return [re.escape(str(request.output(Path()))) for request in requests]


def split_manifest(wildcards, which):
    """The split file that a run reads for its base or control checkpoint, or nothing where it has none."""
    chosen = recipe(wildcards)
    path = {
        "base": chosen.checkpoints.base,
        "control": chosen.checkpoints.start,
    }[which]
    if not path:
        return []
    folder, _, name = path.rpartition("/")
    split = f"checkpoints/{folder}/checkpoints_tp_{chosen.parallel.tensor}/{Path(name).stem}.split.json"
    # What is split needs no source any more, and another run's export is made by a rule.
    if not Path(split).exists() and path in (
        chosen.checkpoints.base,
        chosen.checkpoints.control,
    ):
        check_checkpoint(wildcards, which)
    return split


def tokenizer_files(wildcards):
    """The list of files of a run's tokenizer."""
    check_checkpoint(wildcards, "tokenizer")
    return f"checkpoints/{recipe(wildcards).checkpoints.tokenizer}/files.json"


@plainly
def check_checkpoint(wildcards, key):
    """Raise where nothing can provide a checkpoint that a run's recipe names."""
    CATALOGUE.check_available(
        getattr(recipe(wildcards).checkpoints, key),
        f"Recipe {wildcards.run}: checkpoints.{key}",
        Path("checkpoints"),
    )


def partition(kind):
    return getattr(PROJECT.cluster.partitions, kind)


def text_encoder(wildcards):
    """The files of a dataset's text encoder; nothing where its embeddings are given."""
    config = DATASETS[wildcards.dataset]
    if config.text == "given":
        return []
    key = f"{config_path()}: datasets.{wildcards.dataset}.text_encoder"
    return network_files(config.text_encoder, key)


def needs_text_gpus(config):
    """Whether the text embeddings of a dataset are made by an encoder of full size."""
    return config.kind != "synthetic" and config.text == "made"


def text_threads(wildcards):
    """Cores of a text embedding job: few where embeddings are given, or the encoder is the small one of a demo."""
    return NETWORK_THREADS if needs_text_gpus(DATASETS[wildcards.dataset]) else 2


def text_gres(wildcards):
    """GPUs of a text embedding job; None embeds on the CPU."""
    gpus = (
        PROJECT.cluster.text_gpus if needs_text_gpus(DATASETS[wildcards.dataset]) else 0
    )
    return f"{PROJECT.cluster.gpu_gres}:{gpus}" if gpus else None


def latents_gres(wildcards):
    """The GPU of a job that caches latents; None encodes on the CPU, which does for rendered scenes."""
    is_rendered = DATASETS[wildcards.dataset].kind == "synthetic"
    return None if is_rendered else f"{PROJECT.cluster.gpu_gres}:1"


def latents_mem_mb(wildcards):
    """Main memory for the windows that are read ahead: a third of a GiB for each of 121 frames of 1280x704."""
    return 2000 if DATASETS[wildcards.dataset].kind == "synthetic" else 32000


def text_mem_mb(wildcards):
    """Main memory for loading the encoder: eleven billion parameters in float32 at the worst, in a process a GPU."""
    if not needs_text_gpus(DATASETS[wildcards.dataset]):
        return 2000
    return 48000 * max(PROJECT.cluster.text_gpus, 1)


@plainly
def network_files(name, key):
    """What a job waits for of a network's folder: the list of a fetched one, or the files put there by hand."""
    return list(map(str, CATALOGUE.network_files(name, key, Path("checkpoints"))))


def captioner_model(wildcards):
    """The files of the model that makes a dataset's captions here; nothing where a server is asked."""
    captioner = DATASETS[wildcards.dataset].captioner
    if captioner is None or captioner.server:
        return []
    key = f"{config_path()}: datasets.{wildcards.dataset}.captioner.model"
    return network_files(captioner.model, key)


def captioner_threads(wildcards):
    """Cores of a job that makes captions: few where a server has the model."""
    return NETWORK_THREADS if captioner_model(wildcards) else 4


def captioner_partition(wildcards):
    """The partition of a job that makes captions; a server has GPUs of its own."""
    return partition("gpu" if captioner_model(wildcards) else "cpu")


def captioner_constraint(wildcards):
    """The constraint on a node with GPUs, where captions are made on one."""
    return PROJECT.cluster.constraint if captioner_model(wildcards) else None


def captioner_gres(wildcards):
    """GPUs of a job that makes captions, as for text embeddings."""
    return text_gres(wildcards) if captioner_model(wildcards) else None


def captioner_mem_mb(wildcards):
    """Main memory: for loading a model as for text embeddings, else for the frames of the requests under way."""
    return text_mem_mb(wildcards) if captioner_model(wildcards) else 8000
