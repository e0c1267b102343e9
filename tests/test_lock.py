import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from worldtune.common.errors import WorldtuneError
from worldtune.workflow import dependencies

ROOT = Path(__file__).parents[1]

NOT_IMPORTED = {
    "imageio-ffmpeg": "asked for its binary",
    "ipykernel": "runs the notebook",
    "sentencepiece": "transformers reads T5's vocabulary with it",
    "snakemake": "a program",
    "snakemake-executor-plugin-slurm": "snakemake finds it",
    "wandb": "imported where a recipe asks for it",
}
"""Runtime dependencies that the library may use without importing them."""

BROUGHT = {
    "ipython": "ipykernel",
    "matplotlib-inline": "ipykernel",
    "pydantic-core": "pydantic",
    "tokenizers": "transformers",
}
"""Imports whose version another dependency fixes; a pin of their own could only contradict it."""
OPTIONAL = {"flash_attn": "flash-attn-4", "onnx": "onnx", "sam2": "sam2", "torchvision": "sam2", "hydra": "sam2"}
"""Modules of optional dependencies, which may not be installed -> the requirement that brings them."""


def imported() -> set[str]:
    """Distributions, other than the standard library, that src/ and the notebooks import."""
    known = packages_distributions()
    modules = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.add(node.module.split(".")[0])
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        modules |= set(re.findall(r'"\s*(?:import|from) (\w+)', path.read_text()))
    modules -= set(sys.stdlib_module_names) | {"worldtune"}
    return {canonicalize_name(known[module][0]) for module in modules if module not in OPTIONAL}


def test_the_generated_files_are_current() -> None:
    dependencies.check(ROOT)


def test_torch_is_pinned_without_a_build() -> None:
    assert "torch==2.13.0\n" in (ROOT / dependencies.LOCK).read_text()


def test_the_lock_is_sorted_exact_and_names_no_host() -> None:
    text = (ROOT / dependencies.LOCK).read_text()
    # Packages without content are named by their folders.
    lines = [line for line in text.splitlines() if not line.startswith(("#", "./"))]
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.!]+", line) for line in lines)
    locked = {line.split("==")[0] for line in lines}
    project = dependencies.read_project(ROOT)
    assert {canonicalize_name(item.name) for item in dependencies.declared(project)} <= locked
    assert "worldtune" not in locked


def test_the_conda_environment_follows_the_project() -> None:
    environment = yaml.safe_load((ROOT / dependencies.CONDA).read_text())
    project = dependencies.read_project(ROOT)
    assert environment["name"] == project["name"]
    *conda, pip = environment["dependencies"]
    assert conda == [f"python={project['requires-python'].removeprefix('>=')}", "pip"]
    assert pip == {"pip": [f"-r {dependencies.LOCK}", "-e ."]}


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in dependencies.read_project(ROOT)["dependencies"]}
    used = {BROUGHT.get(name, name) for name in imported()}
    assert used - declared == set()
    assert declared - used - set(NOT_IMPORTED) == set()
    extras = dependencies.read_project(ROOT)["optional-dependencies"].values()
    assert set(OPTIONAL.values()) <= {canonicalize_name(Requirement(text).name) for extra in extras for text in extra}


def test_each_dependency_says_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    pinned = [line for line in lines if re.match(r'\s+"[\w-]+==', line)]
    assert len(pinned) > 20
    assert [line for line in pinned if not re.search(r'",  # \S', line)] == []


def project(*requirements: str) -> dict[str, object]:
    return {"dependencies": list(requirements), "optional-dependencies": {}}


def test_a_loose_requirement_is_refused() -> None:
    with pytest.raises(WorldtuneError, match="pin an exact version of numpy>=2"):
        dependencies.declared(project("numpy>=2"))


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(WorldtuneError, match="no-such-package==1"):
        dependencies.closure(dependencies.declared(project("no-such-package==1")))
    with pytest.raises(WorldtuneError, match=r"asks for numpy==1\.0, but 2\.4\.6 is installed"):
        dependencies.closure(dependencies.declared(project("numpy==1.0")))


def test_markers_and_extras_are_followed() -> None:
    plain = dependencies.closure([Requirement("omegaconf")])
    assert set(plain) == {"omegaconf", "antlr4-python3-runtime", "pyyaml"}
    assert "colorama" not in dependencies.closure([Requirement("tqdm")])


def test_a_stale_lock_is_shown_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    dependencies.write(tmp_path)
    dependencies.check(tmp_path)
    lock = tmp_path / dependencies.LOCK
    lock.write_text(lock.read_text().replace("numpy==2.4.6", "numpy==2.4.5"))
    with pytest.raises(WorldtuneError, match=r"(?s)- numpy==2\.4\.5.*\+ numpy==2\.4\.6"):
        dependencies.check(tmp_path)
