def train_resource(name):
    """One resource of the training job, as a function of its recipe."""
    return lambda wildcards: train_resources(recipe(wildcards), PROJECT.cluster)[name]


@functools.cache
def show_summary(dataset):
    """Say on the terminal what validation found, where it has just run: on a cluster its own output is in a log."""
    path = Path("datasets") / dataset / SUMMARY
    if path.exists():
        print(path.read_text(encoding="utf-8").strip(), file=sys.stderr)


@functools.cache
@plainly
def check_dataset(run):
    dataset_of(run, recipe_of(run), DATASETS)


def dataset_gate(wildcards):
    """The dataset's digest file; asking the checkpoint for it lets an unchanged dataset start nothing."""
    chosen = recipe(wildcards)
    check_dataset(wildcards.run)
    validated = checkpoints.validate.get(dataset=chosen.data.dataset).output.dataset
    # Before jobs are scheduled, this is asked of datasets that an earlier call has validated.
    if LOCK.held:
        show_summary(chosen.data.dataset)
    return validated


def latents_manifests(wildcards):
    """The manifests of the latents that a run reads, or nothing where it encodes videos."""
    chosen = recipe(wildcards)
    if not chosen.data.cache_latents:
        return []
    folder = f"datasets/{chosen.data.dataset}/manifests/{LatentsKind.of(chosen).stage}"
    return [
        f"{folder}/{shard}.parquet" for shard in dataset_shards(chosen.data.dataset)
    ]


# Here and at once: before anything is fetched, and before a job waits for a GPU that would be too small.
rule estimate:
    output:
        estimate="results/{run}/estimate.json",
    log:
        "logs/estimate/{run}.log",
    priority: 100
    localrule: True
    params:
        version=stage_version("recipe/capacity.py"),
        needs=lambda wildcards: capacity_values(recipe(wildcards)),
        expect=lambda wildcards: PLAN.fingerprint(
            f"estimate/{wildcards.run}", capacity_values(recipe(wildcards))
        ),
    shell:
        "{PYTHON:q} src/scripts/estimate.py --run {wildcards.run:q} --output {output.estimate:q} --expect {params.expect}"
        " > {log:q} 2>&1"


# What training depends on in its recipe, as a file: where only an ancient input's job is due, such as `estimate`, Snakemake
# does not look at the params of the jobs that follow.
rule training_values:
    output:
        values="results/{run}/training_values.json",
    log:
        "logs/training_values/{run}.log",
    priority: 100
    localrule: True
    params:
        **recipe_params("training_values", "weights", "outcome"),
        version=stage_version("training/trainer.py"),
    shell:
        "{PYTHON:q} src/scripts/training_values.py --run {wildcards.run:q} --output {output.values:q}"
        " --expect {params.expect} > {log:q} 2>&1"


rule dataset_report:
    input:
        dataset=dataset_gate,
    output:
        report="results/{run}/dataset_report.json",
    log:
        "logs/dataset_report/{run}.log",
    benchmark:
        "benchmark_records/dataset_report/{run}.tsv"
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=4000,
        runtime=20,
    params:
        version=stage_version("dataset/fitting.py"),
        recipe=lambda wildcards: dataset_report_values(recipe(wildcards)),
        expect=lambda wildcards: PLAN.fingerprint(
            f"dataset_report/{wildcards.run}", dataset_report_values(recipe(wildcards))
        ),
    shell:
        "{PYTHON:q} src/scripts/dataset_report.py --run {wildcards.run:q} --output {output.report:q}"
        " --expect {params.expect} > {log:q} 2>&1"


TRAIN_INPUT = dict(
    # It says whether the job may start, and nothing of what comes out.
    estimate=ancient("results/{run}/estimate.json"),
    values="results/{run}/training_values.json",
    dataset=dataset_gate,
    dataset_report="results/{run}/dataset_report.json",
    base=lambda wildcards: split_manifest(wildcards, "base"),
    control=lambda wildcards: split_manifest(wildcards, "control"),
    load_report="results/{run}/load_report.json",
    tokenizer=tokenizer_files,
    latents=latents_manifests,
)
TRAIN_RESOURCES = dict(
    slurm_partition=partition("gpu"),
    slurm_account=PROJECT.cluster.account,
    constraint=PROJECT.cluster.constraint,
    slurm_extra=train_resource("slurm_extra"),
    nodes=train_resource("nodes"),
    gres=train_resource("gres"),
    mpi=train_resource("mpi"),
    tasks=train_resource("tasks"),
    tasks_per_gpu=train_resource("tasks_per_gpu"),
    cpus_per_task=train_resource("cpus_per_task"),
    mem_mb=train_resource("mem_mb"),
    runtime=train_resource("runtime"),
    processes_per_node=lambda wildcards: recipe(wildcards).processes_per_node,
)


rule train:
    input:
        **TRAIN_INPUT,
    output:
        manifest="results/{run}/manifest.json",
    log:
        "logs/train/{run}.log",
    benchmark:
        "benchmark_records/train/{run}.tsv"
    # Two jobs would share this machine's GPUs. On SLURM cpus_per_task holds.
    threads: ALL_CORES
    resources:
        **TRAIN_RESOURCES,
    params:
        **recipe_params("train", "weights", "outcome"),
        version=stage_version("training/trainer.py"),
    # exec, so that SLURM's signals reach the launcher and not a shell that waits for it.
    shell:
        "echo 'training; loss and time left, about 2 minutes for a demo recipe on 2 cores: tail -f' {log:q};"
        " {OWN_THREADS} exec bash src/scripts/launch.sh"
        " --nodes {resources.nodes} --processes-per-node {resources.processes_per_node}"
        " --python {PYTHON:q} src/scripts/train.py {wildcards.run:q} --expect {params.expect} --manifest {output.manifest:q}"
        " >> {log:q} 2>&1"


# What training does before its first step, alone; a training job of the same recipe then finds it done.
rule preflight:
    input:
        **TRAIN_INPUT,
    output:
        preflight="results/{run}/preflight.json",
    log:
        "logs/preflight/{run}.log",
    threads: ALL_CORES
    resources:
        **{
            **TRAIN_RESOURCES,
            "runtime": lambda wildcards: preflight_runtime(recipe(wildcards)),
        },
    params:
        **recipe_params("preflight", "weights", "outcome"),
        version=stage_version("training/preflight.py"),
    shell:
        "{OWN_THREADS} exec bash src/scripts/launch.sh"
        " --nodes {resources.nodes} --processes-per-node {resources.processes_per_node}"
        " --python {PYTHON:q} src/scripts/train.py {wildcards.run:q} --preflight --expect {params.expect}"
        " --manifest results/{wildcards.run:q}/manifest.json >> {log:q} 2>&1"
