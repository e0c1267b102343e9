rule fetch_checkpoint:
    output:
        entry="checkpoints/{entry}",
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
        "HF_HUB_OFFLINE=0 {PYTHON:q} src/scripts/fetch_checkpoint.py {wildcards.entry:q} > {log:q} 2>&1"


def model_sizes(name):
    """The canonical content of a file below config/models/."""
    path = Path(f"config/models/{name}.toml")
    return json.dumps(tomllib.loads(path.read_text(encoding="utf-8")), sort_keys=True)


rule make_demo_checkpoints:
    output:
        base="checkpoints/worldtune/demo-transfer1/base_model.pt",
        controls=expand(
            "checkpoints/worldtune/demo-transfer1/{control}_control.pt",
            control=["vis", "edge", "depth", "seg", "keypoint", "4kupscaler"],
        ),
        text_encoder="checkpoints/worldtune/demo-t5/files.json",
        tokenizer="checkpoints/worldtune/demo-tokenizer/files.json",
    log:
        "logs/make_demo_checkpoints/all.log",
    benchmark:
        "benchmark_records/make_demo_checkpoints/all.tsv"
    threads: 2
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=4000,
        runtime=30,
    params:
        version=stage_version("demo/checkpoints.py"),
        sizes=lambda wildcards: model_sizes("transfer1_demo"),
    shell:
        "echo 'making the tiny networks of the demo, once: about 5 minutes on 2 cores; to watch: tail -f' {log:q};"
        " {PYTHON:q} src/scripts/make_demo_checkpoints.py --checkpoints checkpoints > {log:q} 2>&1"


rule make_demo_driving_checkpoints:
    input:
        text_encoder="checkpoints/worldtune/demo-t5/files.json",
        tokenizer="checkpoints/worldtune/demo-tokenizer/files.json",
    output:
        av_base="checkpoints/worldtune/demo-transfer1-av/base_model.pt",
        av_controls=expand(
            "checkpoints/worldtune/demo-transfer1-av/{control}_control.pt",
            control=["hdmap", "lidar"],
        ),
        multiview_bases=expand(
            "checkpoints/worldtune/demo-transfer1-multiview/{mode}_base_model.pt",
            mode=["t2w", "v2w"],
        ),
        multiview_controls=expand(
            "checkpoints/worldtune/demo-transfer1-multiview/{mode}_{control}_control.pt",
            mode=["t2w", "v2w"],
            control=["hdmap", "lidar"],
        ),
    log:
        "logs/make_demo_driving_checkpoints/all.log",
    benchmark:
        "benchmark_records/make_demo_driving_checkpoints/all.tsv"
    threads: 2
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=4000,
        runtime=30,
    params:
        version=stage_version("demo/driving_checkpoints.py"),
        av=lambda wildcards: model_sizes("transfer1_demo_av"),
        multiview=lambda wildcards: model_sizes("transfer1_demo_multiview"),
    shell:
        "echo 'making the tiny driving networks, once: some minutes on 2 cores; to watch: tail -f' {log:q};"
        " {PYTHON:q} src/scripts/make_demo_driving_checkpoints.py --checkpoints checkpoints > {log:q} 2>&1"


rule take_export:
    input:
        model="results/{run}/model",
    output:
        checkpoint="checkpoints/results/{run}/control.pt",
    log:
        "logs/take_export/{run}.log",
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=2000,
        runtime=60,
    params:
        expect_trained=expected("take_export", "weights", "outcome"),
    shell:
        "{PYTHON:q} src/scripts/take_export.py --run {wildcards.run:q} --output {output.checkpoint:q}"
        " --expect-trained {params.expect_trained} > {log:q} 2>&1"


rule split_checkpoint:
    input:
        checkpoint="checkpoints/{repo}/{stem}.pt",
    output:
        manifest="checkpoints/{repo}/checkpoints_tp_{degree}/{stem}.split.json",
    log:
        "logs/split_checkpoint/{repo}/{stem}_{degree}.log",
    benchmark:
        "benchmark_records/split_checkpoint/{repo}/{stem}_{degree}.tsv"
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=4000,
        runtime=60,
    params:
        version=stage_version("checkpoint/splitting.py"),
    shell:
        "{PYTHON:q} src/scripts/split_checkpoint.py {input.checkpoint:q} --degree {wildcards.degree:q}"
        " --output-dir checkpoints/{wildcards.repo:q}/checkpoints_tp_{wildcards.degree:q} > {log:q} 2>&1"


rule load_report:
    input:
        base=lambda wildcards: split_manifest(wildcards, "base"),
        control=lambda wildcards: split_manifest(wildcards, "control"),
    output:
        report="results/{run}/load_report.json",
    log:
        "logs/load_report/{run}.log",
    benchmark:
        "benchmark_records/load_report/{run}.tsv"
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=8000,
        runtime=20,
    params:
        version=stage_version("transfer1/load_report.py"),
        network=lambda wildcards: load_report_values(recipe(wildcards)),
        expect=lambda wildcards: PLAN.fingerprint(
            f"load_report/{wildcards.run}", load_report_values(recipe(wildcards))
        ),
    shell:
        "{PYTHON:q} src/scripts/load_report.py --run {wildcards.run:q} --output {output.report:q} --expect {params.expect} > {log:q} 2>&1"
