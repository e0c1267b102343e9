"""A stage's code and its VERSION are pinned together, so that a change of the code is a decision about re-running it.

python tests/workflow/test_stage_versions.py      # records the present digests, once VERSION has been decided on
"""

import json
from pathlib import Path

from worldtune.common.versions import code_digest, stage_version
from worldtune.dataset.parameters import STAGE_MODULES

CONTROLS = Path(__file__).parents[2] / "src/worldtune/controls"
PINNED = Path(__file__).with_name("stage_versions.json")
CONTROL_MODULES = sorted(path.stem for path in CONTROLS.glob("[a-z]*.py"))
LISTING = [f"dataset/{name}.py" for name in ("listing", "source_clips", "folder_listing", "caption_list")]
STAGES = {
    "render_synthetic": [
        "demo/write.py",
        *(
            "demo/scenes.py",
            "demo/render.py",
            "demo/figure.py",
            "demo/whole_body.py",
            "demo/driving.py",
            "dataset/scenes.py",
            "formats/rle.py",
            "formats/keypoints.py",
            "annotate/depth_files.py",
        ),
    ],
    "make_demo_checkpoints": [
        "demo/checkpoints.py",
        "demo/base_training.py",
        "demo/codec.py",
        "demo/text_encoder.py",
    ],
    "make_demo_driving_checkpoints": ["demo/driving_checkpoints.py"],
    "list_repository": [
        *("dataset/repository.py", "dataset/embedded.py", "dataset/replaced.py", "dataset/records.py"),
        *("common/hub.py", "formats/parquet_pages.py"),
    ],
    "fetch_videos": ["dataset/download.py"],
    "cuts": ["dataset/cuts.py", *LISTING, "media/scene_changes.py", "media/video.py"],
    "ingest": ["dataset/ingest.py", *LISTING, "dataset/records.py", "media/looks.py", "media/video.py"],
    "captions": ["dataset/captions.py", *LISTING, "dataset/caption_text.py"],
    "make_captions": [
        *("dataset/make_captions.py", "dataset/captioner.py", "dataset/captions.py", "dataset/caption_text.py"),
        *LISTING,
        *("annotate/answers.py", "annotate/chat_server.py", "annotate/vision_language.py"),
        "formats/structured_caption.py",
    ],
    "t5": [
        "dataset/t5.py",
        *("annotate/t5.py", "annotate/t5_parallel.py", "dataset/text.py", "dataset/text_files.py", "dataset/layout.py"),
    ],
    "controls": [
        *("dataset/controls.py", "dataset/control_checks.py", "formats/controls.py", "media/looks.py"),
        *("controls/edge.py", "controls/shrink.py", "formats/rle.py", "media/geometry.py", "media/video.py"),
    ],
    "annotate": ["dataset/annotation.py"],
    "annotate/depth": ["annotate/depth.py", "annotate/depth_files.py", "media/grey16.py", "media/video.py"],
    "annotate/keypoint": ["annotate/keypoint.py", "formats/keypoints.py", "media/video.py"],
    "annotate/seg": [
        "annotate/seg.py",
        *(f"annotate/{name}.py" for name in ("detection", "objects", "sam2_package", "sam2_transformers")),
        *("annotate/seg_prompts.py", "annotate/tracking.py", "formats/rle.py", "formats/segmentation.py"),
        "media/video.py",
    ],
    "cache_latents": [
        *("dataset/latents.py", "transfer1/latents.py", "transfer1/tokenizer.py", "media/geometry.py"),
        "media/video.py",
    ],
    "validate": [
        *(f"dataset/{name}.py" for name in ("validate", "details", "lookalikes", "verification", "views")),
        "dataset/control_checks.py",
        "formats/controls.py",
    ],
    "dataset_report": ["dataset/fitting.py"],
    "split_checkpoint": [
        *("checkpoint/splitting.py", "checkpoint/reading.py", "checkpoint/writing.py", "parallel/axes.py"),
    ],
    "estimate": ["recipe/capacity.py", "recipe/memory.py", "recipe/estimate.py"],
    "preflight": ["training/preflight.py", "training/hardware.py", "transfer1/largest.py"],
    "load_report": ["transfer1/load_report.py", "transfer1/loading.py"],
    "train": [
        "training/trainer.py",
        *(f"training/{name}.py" for name in ("data", "ema", "gradients", "optimizer", "order", "random", "sharding")),
        "training/state.py",
        *(f"transfer1/{name}.py" for name in ("batch", "conditions", "control", "denoiser", "embeddings", "layers")),
        *(f"transfer1/{name}.py" for name in ("loading", "logvar", "network", "objective", "parallelize", "rotary")),
        *(f"transfer1/{name}.py" for name in ("task", "tokenizer", "latents")),
        *(f"controls/{name}.py" for name in CONTROL_MODULES),
        *(f"dataset/{name}.py" for name in ("fitting", "text")),
        *(f"formats/{name}.py" for name in ("pickles", "rle")),
        "media/geometry.py",
        "media/video.py",
        "parallel/shards.py",
        "parallel/tokens.py",
    ],
    "export": ["transfer1/export.py", "transfer1/model_card.py"],
    "report": [
        *(f"evaluate/{name}.py" for name in ("report", "figures", "notebook", "preview_figures")),
        *("transfer1/drawing.py", "transfer1/pictures.py"),
        "transfer1/sampler.py",
    ],
    "dataset_overview": [
        *(f"evaluate/{name}.py" for name in ("dataset_overview", "control_pictures", "figures", "notebook")),
    ],
    "comparison": ["evaluate/comparison.py", "evaluate/figures.py", "evaluate/notebook.py"],
}
"""Modules whose code makes a stage's results; the first one holds VERSION."""


def present() -> dict[str, dict[str, object]]:
    return {
        stage: {"version": stage_version(modules[0]), "code": [code_digest(module) for module in modules]}
        for stage, modules in STAGES.items()
    }


def test_the_versions_that_rules_use_are_pinned() -> None:
    assert {stage: modules[0] for stage, modules in STAGES.items() if stage in STAGE_MODULES} == STAGE_MODULES


def test_code_and_version_are_as_recorded() -> None:
    recorded = json.loads(PINNED.read_text())
    now = present()
    assert sorted(recorded) == sorted(now)
    changed = [stage for stage in now if recorded[stage] != now[stage]]
    assert not changed, (
        f"{', '.join(changed)} changed. If its results change, raise its VERSION, which runs the stage again for "
        f"everybody. Then run `python {Path(__file__).name}` in tests/workflow and commit stage_versions.json."
    )


def test_docstrings_and_comments_do_not_count(tmp_path: Path) -> None:
    source = '"""Old."""\n# old\nVERSION = 1\n\ndef f():\n    """Old."""\n    return 1\n'
    same = '"""New."""\nVERSION = 2\n\n\ndef f():\n    # new\n    return 1\n'
    other = '"""Old."""\nVERSION = 1\n\ndef f():\n    return 2\n'
    digests = []
    for text in (source, same, other):
        path = tmp_path / "module.py"
        path.write_text(text)
        digests.append(code_digest(str(path)))
    assert digests[0] == digests[1] != digests[2]


if __name__ == "__main__":
    PINNED.write_text(json.dumps(present(), indent=1, sort_keys=True) + "\n")
