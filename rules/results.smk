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


def no_such_recipe(wildcards):
    """Say which recipes there are: loading one that does not exist names the nearest."""
    return load_recipe(wildcards.name)


# Snakemake's own message for a misspelt run names no run.
rule misspelt_run:
    input:
        no_such_recipe,
    output:
        "results/{name}/{what}",
    wildcard_constraints:
        name=f"(?!(?:{'|'.join(map(re.escape, RUNS))}|datasets|comparisons)/)[^/]+",
        what=r"model|report\.html|manifest\.json",
    localrule: True
