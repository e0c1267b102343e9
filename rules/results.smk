rule export:
    input:
        "results/{run}/manifest.json",
    output:
        directory("results/{run}/model"),
    log:
        "logs/export/{run}.log",
    benchmark:
        "benchmark_records/export/{run}.tsv"
    params:
        version=stage_version("transfer1/export.py"),
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=64000,
        runtime=120,
    message:
        "Exporting the model of {wildcards.run}"
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
    params:
        version=stage_version("evaluate/report.py"),
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=8000,
        runtime=30,
    message:
        "Writing the report of {wildcards.run}"
    shell:
        "{PYTHON} src/scripts/report.py --run {wildcards.run} --output {output} > {log} 2>&1"
