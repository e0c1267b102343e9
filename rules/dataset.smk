rule render_synthetic:
    output:
        source="datasets/{dataset}/source/{shard}.json",
    log:
        "logs/render_synthetic/{dataset}_{shard}.log",
    benchmark:
        "benchmark_records/render_synthetic/{dataset}_{shard}.tsv"
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=2000,
        runtime=30,
    params:
        **stage_params("render_synthetic"),
    shell:
        "{PYTHON:q} src/scripts/render_synthetic.py --dataset {wildcards.dataset:q} --shard {wildcards.shard:q}"
        " --expect {params.expect} > {log:q} 2>&1"


rule fetch_metadata:
    output:
        metadata="datasets/{dataset}/source/metadata.jsonl",
    log:
        "logs/fetch_metadata/{dataset}.log",
    localrule: PROJECT.cluster.partitions.network is None
    resources:
        slurm_partition=partition("network"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=4000,
        runtime=240,
    shell:
        "HF_HUB_OFFLINE=0 {PYTHON:q} src/scripts/fetch_metadata.py --dataset {wildcards.dataset:q} > {log:q} 2>&1"


rule list_repository:
    output:
        files="datasets/{dataset}/source/repository.jsonl",
    log:
        "logs/list_repository/{dataset}.log",
    localrule: PROJECT.cluster.partitions.network is None
    resources:
        slurm_partition=partition("network"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=4000,
        runtime=60,
    params:
        **stage_params("list_repository"),
    shell:
        "HF_HUB_OFFLINE=0 {PYTHON:q} src/scripts/list_repository.py --dataset {wildcards.dataset:q}"
        " --expect {params.expect} > {log:q} 2>&1"


def list_of_downloads(wildcards):
    """The list of what a dataset downloads."""
    name = {"hdvila": "metadata.jsonl", "huggingface": "repository.jsonl"}
    return (
        f"datasets/{wildcards.dataset}/source/{name[DATASETS[wildcards.dataset].kind]}"
    )


rule fetch_videos:
    input:
        metadata=list_of_downloads,
    output:
        manifest="datasets/{dataset}/manifests/fetch_videos/{shard}.parquet",
    log:
        "logs/fetch_videos/{dataset}_{shard}.log",
    benchmark:
        "benchmark_records/fetch_videos/{dataset}_{shard}.tsv"
    localrule: PROJECT.cluster.partitions.network is None
    threads: 4
    resources:
        slurm_partition=partition("network"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=4000,
        runtime=720,
    params:
        **stage_params("fetch_videos"),
    shell:
        "HF_HUB_OFFLINE=0 {PYTHON:q} src/scripts/fetch_videos.py --dataset {wildcards.dataset:q} --shard {wildcards.shard:q}"
        " --threads {threads} --expect {params.expect} > {log:q} 2>&1"


def source_of_shard(wildcards):
    """What must exist before the videos and captions of a shard can be read."""
    return {
        "folder": [],
        "synthetic": f"datasets/{wildcards.dataset}/source/{wildcards.shard}.json",
        "hdvila": f"datasets/{wildcards.dataset}/manifests/fetch_videos/{wildcards.shard}.parquet",
        "huggingface": f"datasets/{wildcards.dataset}/manifests/fetch_videos/{wildcards.shard}.parquet",
    }[DATASETS[wildcards.dataset].kind]


rule cuts:
    input:
        source=source_of_shard,
    output:
        manifest="datasets/{dataset}/manifests/cuts/{shard}.parquet",
    log:
        "logs/cuts/{dataset}_{shard}.log",
    benchmark:
        "benchmark_records/cuts/{dataset}_{shard}.tsv"
    threads: 8
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=8000,
        runtime=240,
    params:
        **stage_params("cuts"),
    shell:
        "{PYTHON:q} src/scripts/cuts.py --dataset {wildcards.dataset:q} --shard {wildcards.shard:q} --threads {threads}"
        " --expect {params.expect} > {log:q} 2>&1"


def clips_of_shard(wildcards):
    """What must exist before the clips of a shard are known."""
    if DATASETS[wildcards.dataset].cut is not None:
        return f"datasets/{wildcards.dataset}/manifests/cuts/{wildcards.shard}.parquet"
    return source_of_shard(wildcards)


rule ingest:
    input:
        source=clips_of_shard,
    output:
        manifest="datasets/{dataset}/manifests/ingest/{shard}.parquet",
    log:
        "logs/ingest/{dataset}_{shard}.log",
    benchmark:
        "benchmark_records/ingest/{dataset}_{shard}.tsv"
    threads: 8
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=8000,
        runtime=240,
    params:
        **stage_params("ingest"),
    shell:
        "{PYTHON:q} src/scripts/ingest.py --dataset {wildcards.dataset:q} --shard {wildcards.shard:q} --threads {threads}"
        " --expect {params.expect} > {log:q} 2>&1"


rule captions:
    input:
        source=clips_of_shard,
    output:
        manifest="datasets/{dataset}/manifests/captions/{shard}.parquet",
    log:
        "logs/captions/{dataset}_{shard}.log",
    benchmark:
        "benchmark_records/captions/{dataset}_{shard}.tsv"
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=2000,
        runtime=60,
    params:
        **stage_params("captions"),
    shell:
        "{PYTHON:q} src/scripts/captions.py --dataset {wildcards.dataset:q} --shard {wildcards.shard:q}"
        " --expect {params.expect} > {log:q} 2>&1"


rule make_captions:
    input:
        ingest="datasets/{dataset}/manifests/ingest/{shard}.parquet",
        model=captioner_model,
    output:
        manifest="datasets/{dataset}/manifests/make_captions/{shard}.parquet",
    log:
        "logs/make_captions/{dataset}_{shard}.log",
    benchmark:
        "benchmark_records/make_captions/{dataset}_{shard}.tsv"
    threads: captioner_threads
    resources:
        slurm_partition=captioner_partition,
        slurm_account=PROJECT.cluster.account,
        constraint=captioner_constraint,
        slurm_extra=slurm_extra(PROJECT.cluster),
        gres=captioner_gres,
        cpus_per_task=4,
        mem_mb=captioner_mem_mb,
        runtime=720,
    params:
        **stage_params("make_captions"),
    shell:
        "({OWN_THREADS} {PYTHON:q} src/scripts/make_captions.py --dataset {wildcards.dataset:q}"
        " --shard {wildcards.shard:q} --expect {params.expect}) > {log:q} 2>&1"


rule t5:
    input:
        captions=lambda wildcards: (
            f"datasets/{wildcards.dataset}/manifests/{caption_stage(DATASETS[wildcards.dataset])[0]}"
            f"/{wildcards.shard}.parquet"
        ),
        encoder=text_encoder,
    output:
        manifest="datasets/{dataset}/manifests/t5/{shard}.parquet",
    log:
        "logs/t5/{dataset}_{shard}.log",
    benchmark:
        "benchmark_records/t5/{dataset}_{shard}.tsv"
    threads: 2
    resources:
        slurm_partition=partition("gpu"),
        slurm_account=PROJECT.cluster.account,
        constraint=PROJECT.cluster.constraint,
        slurm_extra=slurm_extra(PROJECT.cluster),
        gres=text_gres,
        mem_mb=text_mem_mb,
        runtime=240,
    params:
        **stage_params("t5"),
    shell:
        "{PYTHON:q} src/scripts/t5.py --dataset {wildcards.dataset:q} --shard {wildcards.shard:q}"
        " --expect {params.expect} > {log:q} 2>&1"


rule controls:
    input:
        ingest="datasets/{dataset}/manifests/ingest/{shard}.parquet",
    output:
        manifest="datasets/{dataset}/manifests/controls-{control}/{shard}.parquet",
    log:
        "logs/controls/{dataset}_{control}_{shard}.log",
    benchmark:
        "benchmark_records/controls/{dataset}_{control}_{shard}.tsv"
    threads: 8
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=8000,
        runtime=240,
    params:
        **stage_params("controls"),
    shell:
        "{PYTHON:q} src/scripts/controls.py --dataset {wildcards.dataset:q} --shard {wildcards.shard:q}"
        " --control {wildcards.control:q} --threads {threads} --expect {params.expect} > {log:q} 2>&1"


def annotator_inputs(wildcards):
    """What an annotating job reads: the shard's clips, its networks and, where those tell what to look for, captions."""
    config = DATASETS[wildcards.dataset]
    annotator = config.annotate.find(wildcards.control)
    shard = f"{wildcards.dataset}/manifests/{{stage}}/{wildcards.shard}.parquet"
    stages = [
        "ingest",
        *([caption_stage(config)[0]] if annotator.reads_captions else []),
    ]
    return {
        "manifests": [f"datasets/{shard.format(stage=stage)}" for stage in stages],
        "models": [
            path
            for model in annotator.models
            for path in network_files(
                model, f"datasets.{wildcards.dataset}.annotate.{wildcards.control}"
            )
        ],
    }


rule annotate:
    input:
        unpack(annotator_inputs),
    output:
        manifest="datasets/{dataset}/manifests/annotate-{control}/{shard}.parquet",
    log:
        "logs/annotate/{dataset}_{control}_{shard}.log",
    benchmark:
        "benchmark_records/annotate/{dataset}_{control}_{shard}.tsv"
    # Two jobs would share this machine's first GPU. On SLURM cpus_per_task holds.
    threads: ALL_CORES
    resources:
        slurm_partition=partition("gpu"),
        slurm_account=PROJECT.cluster.account,
        constraint=PROJECT.cluster.constraint,
        slurm_extra=slurm_extra(PROJECT.cluster),
        gres=latents_gres,
        cpus_per_task=8,
        mem_mb=16000,
        runtime=480,
    params:
        **stage_params("annotate"),
    shell:
        "({OWN_THREADS} {PYTHON:q} src/scripts/annotate.py --dataset {wildcards.dataset:q} --shard {wildcards.shard:q}"
        " --control {wildcards.control:q} --expect {params.expect}) > {log:q} 2>&1"


# Names of recipes are not in it: those of one tokenizer, window and size share the files.
rule cache_latents:
    input:
        ingest="datasets/{dataset}/manifests/ingest/{shard}.parquet",
        tokenizer="checkpoints/{tokenizer}/files.json",
    output:
        manifest="datasets/{dataset}/manifests/latents/{tokenizer}/{num_frames}_{resolution}_{precision}/{shard}.parquet",
    log:
        "logs/cache_latents/{tokenizer}/{dataset}_{num_frames}_{resolution}_{precision}_{shard}.log",
    benchmark:
        "benchmark_records/cache_latents/{tokenizer}/{dataset}_{num_frames}_{resolution}_{precision}_{shard}.tsv"
    wildcard_constraints:
        tokenizer=r"[^/]+(?:/[^/]+)*",
        num_frames=r"\d+",
        resolution=r"\d+",
        precision=r"[a-z]+\d+",
    # Two jobs would share this machine's first GPU. On SLURM cpus_per_task holds.
    threads: ALL_CORES
    resources:
        slurm_partition=partition("gpu"),
        slurm_account=PROJECT.cluster.account,
        constraint=PROJECT.cluster.constraint,
        slurm_extra=slurm_extra(PROJECT.cluster),
        gres=latents_gres,
        cpus_per_task=8,
        mem_mb=latents_mem_mb,
        runtime=240,
    params:
        version=stage_version("dataset/latents.py"),
    shell:
        "({OWN_THREADS} {PYTHON:q} src/scripts/cache_latents.py --dataset {wildcards.dataset:q}"
        " --shard {wildcards.shard:q} --tokenizer {wildcards.tokenizer:q} --num-frames {wildcards.num_frames}"
        " --resolution {wildcards.resolution} --precision {wildcards.precision} --workers 4) > {log:q} 2>&1"


def dataset_manifests(wildcards):
    """The manifests of all shards and stages of a dataset."""
    stages = dataset_stages(DATASETS[wildcards.dataset])
    shards = dataset_shards(wildcards.dataset)
    return [
        f"datasets/{wildcards.dataset}/manifests/{stage}/{shard}.parquet"
        for stage in stages
        for shard in shards
    ]


# A checkpoint, so that training stands where a repeated validation finds equal content.
checkpoint validate:
    input:
        manifests=dataset_manifests,
    output:
        dataset="datasets/{dataset}/dataset.json",
        clips="datasets/{dataset}/clips.parquet",
    log:
        "logs/validate/{dataset}.log",
    benchmark:
        "benchmark_records/validate/{dataset}.tsv"
    threads: 8
    resources:
        slurm_partition=partition("cpu"),
        slurm_account=PROJECT.cluster.account,
        mem_mb=8000,
        runtime=60,
    params:
        **stage_params("validate"),
    shell:
        "{PYTHON:q} src/scripts/validate.py --dataset {wildcards.dataset:q} --threads {threads}"
        " --expect {params.expect} > {log:q} 2>&1"
