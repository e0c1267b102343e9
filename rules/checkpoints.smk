rule fetch_checkpoint:
    output:
        "checkpoints/{entry}",
    log:
        "logs/fetch_checkpoint/{entry}.log",
    wildcard_constraints:
        entry="|".join(hub_outputs()),
    localrule: PROJECT.cluster.partitions.network is None
    resources:
        slurm_partition=partition("network"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=4000,
        runtime=720,
    params:
        revision=lambda wildcards: CATALOGUE.find(wildcards.entry).repository.revision,
    shell:
        "HF_HUB_OFFLINE=0 {PYTHON} src/scripts/fetch_checkpoint.py {wildcards.entry} > {log} 2>&1"


rule make_demo_checkpoints:
    output:
        base="checkpoints/worldtune/demo-transfer1/base_model.pt",
        control="checkpoints/worldtune/demo-transfer1/edge_control.pt",
        text_encoder="checkpoints/worldtune/demo-t5/files.json",
        tokenizer="checkpoints/worldtune/demo-tokenizer/files.json",
    log:
        "logs/make_demo_checkpoints/all.log",
    threads: 2
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=4000,
        runtime=30,
    params:
        version=stage_version("demo/checkpoints.py"),
    shell:
        "{PYTHON} src/scripts/make_demo_checkpoints.py --checkpoints checkpoints > {log} 2>&1"


rule split_checkpoint:
    input:
        "checkpoints/{repo}/{stem}.pt",
    output:
        "checkpoints/{repo}/checkpoints_tp_{degree}/{stem}.split.json",
    log:
        "logs/split_checkpoint/{repo}/{stem}_{degree}.log",
    benchmark:
        "benchmark_records/split_checkpoint/{repo}/{stem}_{degree}.tsv"
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=24000,
        runtime=60,
    params:
        version=stage_version("checkpoint/splitting.py"),
    shell:
        "{PYTHON} src/scripts/split_checkpoint.py {input} --degree {wildcards.degree}"
        " --output-dir checkpoints/{wildcards.repo}/checkpoints_tp_{wildcards.degree} > {log} 2>&1"


rule load_report:
    input:
        base=lambda wildcards: split_manifest(wildcards, "base"),
        control=lambda wildcards: split_manifest(wildcards, "control"),
    output:
        "results/{run}/load_report.json",
    log:
        "logs/load_report/{run}.log",
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=8000,
        runtime=20,
    params:
        network=lambda wildcards: load_report_values(recipe(wildcards)),
        expect=lambda wildcards: fingerprint(load_report_values(recipe(wildcards))),
    shell:
        "{PYTHON} src/scripts/load_report.py --run {wildcards.run} --output {output} --expect {params.expect} > {log} 2>&1"
