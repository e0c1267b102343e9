rule export:
    input:
        manifest="results/{run}/manifest.json",
    output:
        model=directory("results/{run}/model"),
    log:
        "logs/export/{run}.log",
    benchmark:
        "benchmark_records/export/{run}.tsv"
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=64000,
        runtime=120,
    params:
        version=stage_version("transfer1/export.py"),
        expect_trained=expected("export", "weights", "outcome"),
    shell:
        "{PYTHON:q} src/scripts/export.py --run {wildcards.run:q} --expect-trained {params.expect_trained}"
        " > {log:q} 2>&1"


rule report:
    input:
        manifest="results/{run}/manifest.json",
        model="results/{run}/model",
    output:
        report="results/{run}/report.html",
    log:
        "logs/report/{run}.log",
    benchmark:
        "benchmark_records/report/{run}.tsv"
    # Samples are drawn from the export on one GPU, on this machine beside no training; SLURM counts GPUs itself.
    threads: ALL_CORES
    resources:
        slurm_partition=partition("gpu"),
        slurm_account=PROJECT.cluster.account,
        constraint=PROJECT.cluster.constraint,
        slurm_extra=slurm_extra(PROJECT.cluster),
        gres=lambda wildcards: sample_gres(recipe(wildcards), PROJECT.cluster),
        cpus_per_task=lambda wildcards: recipe(wildcards).cluster.cpus_per_gpu,
        mem_mb=lambda wildcards: int(recipe(wildcards).cluster.mem_gb_per_gpu * 1024),
        runtime=240,
    params:
        **recipe_params("report", "report"),
        version=stage_version("evaluate/report.py"),
        expect_trained=expected("report_trained", "weights", "outcome"),
    shell:
        "({OWN_THREADS} {PYTHON:q} src/scripts/sample.py --run {wildcards.run:q} --expect {params.expect}"
        " --expect-trained {params.expect_trained}"
        " && {PYTHON:q} src/scripts/report.py --run {wildcards.run:q} --output {output.report:q}"
        " --expect-trained {params.expect_trained}) > {log:q} 2>&1"


@plainly
def no_such_recipe(wildcards):
    """Say which recipes there are: looking for one that does not exist names the nearest."""
    run = recipe_path(wildcards.name).stem
    raise WorldtuneError(
        f"results/{wildcards.name} is no run. Ask for results/{run}/{wildcards.what}, which is the run of that recipe."
    )


# Snakemake's own message for a misspelt run names no run.
rule misspelt_run:
    input:
        no_such_recipe,
    output:
        "results/{name}/{what}",
    wildcard_constraints:
        name=f"(?!(?:{'|'.join(map(re.escape, RUNS))}|datasets|comparisons)/)[^/]+",
        what=r"model|report\.html|(?:manifest|preflight)\.json",
    localrule: True


@plainly
def known_dataset(wildcards):
    """The dataset that is asked for; an unknown one is an error that names the nearest."""
    find_dataset(config_path(), wildcards.dataset)
    return wildcards.dataset


# Snakemake's own message for a misspelt dataset names no dataset.
rule misspelt_dataset:
    input:
        known_dataset,
    output:
        "datasets/{dataset}/dataset.json",
    wildcard_constraints:
        dataset=f"(?!(?:{'|'.join(map(re.escape, DATASETS))})/)[^/]+",
    localrule: True


rule dataset_overview:
    input:
        dataset=lambda wildcards: f"datasets/{known_dataset(wildcards)}/dataset.json",
        clips=lambda wildcards: f"datasets/{known_dataset(wildcards)}/clips.parquet",
    output:
        overview="results/datasets/{dataset}/overview.html",
    log:
        "logs/dataset_overview/{dataset}.log",
    benchmark:
        "benchmark_records/dataset_overview/{dataset}.tsv"
    # Any name, so that a wrong one reaches the check above and not snakemake's "no rule".
    wildcard_constraints:
        dataset=r"[^/]+",
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=8000,
        runtime=60,
    params:
        version=stage_version("evaluate/dataset_overview.py"),
    shell:
        "{PYTHON:q} src/scripts/dataset_overview.py --dataset {wildcards.dataset:q} --output {output.overview:q}"
        " > {log:q} 2>&1"


@plainly
def compared_runs(wildcards):
    """The runs of a comparison, which its name joins by "+"; an unknown one is an error that names the nearest."""
    return check_runs(wildcards.runs.split("+"), RUNS)


def of_compared_runs(pattern):
    return lambda wildcards: [
        pattern.format(run=run) for run in compared_runs(wildcards)
    ]


def expected_of_compared_runs(wildcards):
    """The fingerprint of the values that each compared run is planned with."""
    return [
        PLAN.fingerprint(
            f"comparison/{wildcards.runs}/{run}",
            values_of_run(run, "weights", "outcome"),
        )
        for run in compared_runs(wildcards)
    ]


rule comparison:
    input:
        manifests=of_compared_runs("results/{run}/manifest.json"),
        models=of_compared_runs("results/{run}/model"),
        # Samples are drawn with the report.
        reports=of_compared_runs("results/{run}/report.html"),
    output:
        comparison="results/comparisons/{runs}.html",
    log:
        "logs/comparison/{runs}.log",
    benchmark:
        "benchmark_records/comparison/{runs}.tsv"
    wildcard_constraints:
        runs=r"[^/]+",
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=8000,
        runtime=60,
    params:
        runs=compared_runs,
        version=stage_version("evaluate/comparison.py"),
        expect_trained=expected_of_compared_runs,
    shell:
        "{PYTHON:q} src/scripts/comparison.py --runs {params.runs:q} --output {output.comparison:q}"
        " --expect-trained {params.expect_trained} > {log:q} 2>&1"
