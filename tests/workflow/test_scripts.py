"""Every script explains itself, and ends wrong or missing input with one line and status 1."""

import contextlib
import io
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worldtune.recipe.capacity import capacity_values
from worldtune.recipe.identity import fingerprint, load_report_values, values_that_affect
from worldtune.recipe.load import load_recipe
from worldtune.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "src" / "scripts").glob("*.py"))


def run(script: str, *arguments: str) -> tuple[int, str, str]:
    """Run a script in this process; returns status, standard output, and standard error with the last words."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patched.setattr(sys, "argv", [f"{script}.py", *arguments])
        # Any other exception would be a traceback.
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "src" / "scripts" / f"{script}.py"), run_name="__main__")
    code = ended.value.code
    if isinstance(code, str):
        return 1, out.getvalue(), f"{err.getvalue()}{code}\n"
    return code or 0, out.getvalue(), err.getvalue()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with the repository's configuration and nothing else, and no network."""
    for name in ("config", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for name in ("WORLDTUNE_CONFIG", "OUTPUT_ROOT", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str) -> None:
    status, out, err = run(script, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_option(script: str) -> None:
    status, _, err = run(script, "--nonsense")
    assert status == 2
    assert "error: " in err


RUN = "demo_edge_posttrain"
TOKENIZER = ("--tokenizer", "me/codec", "--num-frames", "17", "--resolution", "128", "--precision", "float32")
NOTHING: dict[str, list[tuple[tuple[str, ...], str]]] = {
    "annotate": [(("--dataset", "synthetic", "--shard", "0000", "--control", "depth"), "synthetic.annotate")],
    "cache_latents": [
        (("--dataset", "no", "--shard", "0000", *TOKENIZER), "datasets/no/manifests/ingest/0000.parquet"),
        (("--dataset", "synthetic", "--shard", "0000", *TOKENIZER), "synthetic"),
    ],
    "captions": [(("--dataset", "no", "--shard", "0000"), "'no'"), (("--dataset", "synthetic", "--shard", "9"), "'9'")],
    "clean": [
        (("attempts",), "--run"),
        (("attempts", "--run", RUN), "results/ has no run with attempts"),
        (("all",), "'all'"),
    ],
    "comparison": [(("--runs", "no", RUN), "no")],
    "controls": [(("--dataset", "synthetic", "--shard", "0000", "--control", "egde"), "'egde'")],
    "cuts": [(("--dataset", "no", "--shard", "0000"), "'no'"), (("--dataset", "synthetic", "--shard", "0000"), "cut")],
    "dag": [(("now",), "now")],
    "dataset_overview": [(("--dataset", "no"), "'no'")],
    "dataset_report": [
        (("--run", RUN, "--output", "r.json"), "dataset.json"),
        (("--run", "no", "--output", "r.json"), "no"),
    ],
    "docs": [(("--check",), "README.md")],
    "estimate": [
        (("--run", "no", "--output", "e.json"), "no"),
        (("--run", RUN, "--output", "e.json", "--expect", "0"), "changed after this job was planned"),
    ],
    "export": [(("--run", RUN), "results/demo_edge_posttrain/manifest.json")],
    "export_dataset": [
        (("--dataset", "no", "--output", "o"), "'no'"),
        (("--dataset", "synthetic", "--output", "o"), "dataset.json"),
    ],
    "export_original": [(("--run", RUN, "--output", "o"), "no trained run yet"), (("--run", RUN), "--output")],
    "fetch_checkpoint": [((), "name"), (("nvidia/no/base.pt",), "nvidia/no/base.pt")],
    "fetch_metadata": [(("--dataset", "no"), "'no'"), (("--dataset", "synthetic"), "synthetic")],
    "fetch_videos": [(("--dataset", "no", "--shard", "0000"), "'no'")],
    "ingest": [(("--dataset", "no", "--shard", "0000"), "'no'")],
    "launch": [((), "training_script")],
    "list_repository": [(("--dataset", "no"), "'no'"), (("--dataset", "synthetic"), "synthetic")],
    "load_report": [(("--run", RUN, "--output", "r.json"), "split.json"), (("--run", "no", "--output", "r"), "no")],
    "lock": [(("--check",), "pyproject.toml")],
    "make_demo_annotators": [(("--checkpoints", "config/config.yaml"), "is a file; expected a folder")],
    "make_demo_checkpoints": [(("--checkpoints", "c", "--model", "no.toml"), "no.toml")],
    "make_demo_driving_checkpoints": [(("--checkpoints", "c"), "checkpoints")],
    "make_captions": [
        (("--dataset", "no", "--shard", "0000"), "'no'"),
        (("--dataset", "synthetic", "--shard", "0000"), "synthetic has no captioner"),
    ],
    "measure_depth": [(("--dataset", "no"), "'no'"), (("--dataset", "synthetic"), "synthetic.annotate.depth")],
    "merge_checkpoint": [
        (("no.split.json", "--output", "a.pt"), "no.split.json"),
        (("no_model_mp_0.pt", "--output", "a.pt"), "no_model_mp_0.pt"),
        (("no.split.json", "--output", "a.txt"), "a.txt"),
    ],
    "push": [(("--run", RUN), "results/ has no run 'demo_edge_posttrain'; there is none yet")],
    "render_synthetic": [(("--dataset", "no", "--shard", "0000"), "'no'")],
    "report": [(("--run", RUN, "--output", "r.html"), "manifest.json")],
    "retry": [(("--dataset", "no"), "'no'")],
    "sample": [(("--run", RUN), "provenance.json"), (("--run", "no"), "no"), (("--run", RUN, "--steps", "0"), "steps")],
    "slurm_queue": [((), "squeue")],
    "split_checkpoint": [
        (("no.pt", "--degree", "2", "--output-dir", "out"), "no.pt"),
        (("no.pt", "--degree", "0", "--output-dir", "out"), "--degree 0"),
    ],
    "t5": [(("--dataset", "synthetic", "--shard", "0000", "--device", "cpu"), "synthetic")],
    "take_export": [(("--run", RUN, "--output", "a.pt"), "results/demo_edge_posttrain")],
    "train": [
        (("no",), "no"),
        ((RUN, "--", "data.num_frames=18"), "data.num_frames"),
        ((RUN, "--", "trainer.max_iter=18"), "trainer"),
        ((RUN, "--", "training.max_iter"), "key.path=value"),
        ((RUN,), "processes"),
        ((RUN, "--", "parallel.tensor=1"), "dataset.json"),
        ((RUN, "--preflight"), "processes"),
    ],
    "training_values": [
        (("--run", "no", "--output", "v.json"), "no"),
        (("--run", RUN, "--output", "v.json", "--expect", "0"), "changed after this job was planned"),
    ],
    "unlock": [(("now",), "now")],
    "validate": [(("--dataset", "no"), "'no'"), (("--dataset", "synthetic"), "parquet")],
    "why": [(("--run", "no"), "no"), (("--run", "no.toml"), "no recipe file no.toml")],
}


def test_every_script_is_tried() -> None:
    assert sorted(NOTHING) == SCRIPTS


@pytest.mark.parametrize(
    ("script", "arguments", "named"), [(script, *case) for script, cases in NOTHING.items() for case in cases]
)
def test_missing_or_wrong_input(
    project: Path, monkeypatch: pytest.MonkeyPatch, script: str, arguments: tuple[str, ...], named: str
) -> None:
    if script == "slurm_queue":
        # This machine may belong to a cluster.
        monkeypatch.setenv("PATH", str(project))
    before = sorted(project.rglob("*"))
    status, _, err = run(script, *arguments)
    assert status == 1 or (status == 2 and err.startswith("usage: "))
    assert named in err[err.index("error: ") :]
    new = [path for path in project.rglob("*") if path not in before and path.is_file()]
    # A stage takes its ledger's lock, an empty file, before it looks for what it reads.
    assert [path for path in new if path.suffix != ".lock" or path.stat().st_size] == []


@pytest.mark.parametrize(
    ("script", "options", "values", "key", "value"),
    [
        (
            "train",
            (RUN, "--manifest", f"results/{RUN}/manifest.json"),
            lambda recipe: values_that_affect(recipe, "weights", "outcome"),
            "optimizer.learning_rate",
            "0.002",
        ),
        ("sample", ("--run", RUN), lambda recipe: values_that_affect(recipe, "report"), "sampling.seed", "12345"),
        ("load_report", ("--run", RUN, "--output", "r.json"), load_report_values, "objective.use_logvar", "false"),
        ("estimate", ("--run", RUN, "--output", "r.json"), capacity_values, "cluster.mem_gb_per_gpu", "2.5"),
    ],
    ids=["train", "sample", "load_report", "estimate"],
)
def test_a_recipe_that_was_edited_while_its_job_waited(
    project: Path,
    script: str,
    options: tuple[str, ...],
    values: Callable[[Recipe], dict[str, Any]],
    key: str,
    value: str,
) -> None:
    (project / "config").unlink()
    shutil.copytree(ROOT / "config", project / "config")
    older = project / "results" / RUN / "manifest.json"
    older.parent.mkdir(parents=True)
    older.write_text("older")
    planned = fingerprint(values(load_recipe(RUN, root=project)))
    path = project / "config" / "recipes" / f"{RUN}.toml"
    path.rename(path.with_name("planned.toml"))
    section, _, name = key.partition(".")
    path.write_text(f'extends = "planned"\n[{section}]\n{name} = {value}\n')
    status, _, err = run(script, *options, "--expect", planned)
    assert status == 1
    assert f"{RUN}.toml changed after this job was planned: {key}" in err
    assert "run the same snakemake command again" in err
    assert older.read_text() == "older"
    assert [file for file in (project / "results").rglob("*") if file.is_file()] == [older]
    assert not (project / "r.json").exists()
