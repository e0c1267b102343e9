rule export:
    input:
        "results/{run}/manifest.json",
    output:
        directory("results/{run}/model"),
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
    shell:
        "{PYTHON} src/scripts/export.py --run {wildcards.run} > {log} 2>&1"


rule report:
    input:
        manifest="results/{run}/manifest.json",
        model="results/{run}/model",
    output:
        "results/{run}/report.html",
    log:
        "logs/report/{run}.log",
    benchmark:
        "benchmark_records/report/{run}.tsv"
    # Samples are drawn from the export on one GPU.
    resources:
        slurm_partition=partition("gpu"),
        slurm_account=PROJECT.cluster.account,
        slurm_extra=slurm_extra(PROJECT.cluster, gpus=True),
        gres=lambda wildcards: sample_gres(recipe(wildcards), PROJECT.cluster),
        mem_mb=lambda wildcards: int(recipe(wildcards).cluster.mem_gb_per_gpu * 1024),
        runtime=240,
    params:
        **recipe_params("report"),
        version=stage_version("evaluate/report.py"),
    shell:
        "({PYTHON} src/scripts/sample.py --run {wildcards.run} --expect {params.expect}"
        " && {PYTHON} src/scripts/report.py --run {wildcards.run} --output {output}) > {log} 2>&1"
