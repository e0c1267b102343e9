"""Documentation that is generated: config/README.md from the fields, the picture of the graph from the rules."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.config import DatasetConfig
from worldtune.recipe.identity import affects_by_key
from worldtune.recipe.load import load_recipe
from worldtune.recipe.project import ProjectConfig
from worldtune.recipe.schema import VIDEO_SIZES_WH, Recipe

INTRODUCTION = """# Configuration

`config.yaml` says which runs to make, on which datasets and which cluster. `recipes/*.toml` say how a model is trained,
one file a model; `models/*.toml` hold network sizes; `checkpoints.toml` lists every released file that a recipe may
name. This page is generated from the fields by `make docs`.

A recipe may start from another one with `extends = "name"`; tables are merged key by key. `${oc.env:NAME}` is the value
of an environment variable. `key.path=value` on a script's command line goes over the file. Unknown keys are errors.

The column *affects* says what a change does: **weights** starts a new attempt, **outcome** continues the attempt with
other limits, layout or measurements, **report** draws the report's samples again, **nothing** re-runs nothing.
"""

DEPARTURES = """## Departures from the published recipes

* `training.max_iter` is finite (published: 999999999) and `training.seed` is fixed (published: the time of day, drawn
  by each process for itself).
* Held-out clips are set apart and measured; the published recipes validate on nothing.
* Optimizer master weights and the order of samples survive a resume; the published trainer rebuilds or forgets them.
* A step whose gradient is not finite is skipped and counted; the published trainer sets such gradients to zero and
  steps.
* The noise of given frames is the same on all tensor-parallel ranks; the published trainer draws it on each rank.
"""


def config_readme(root: Path) -> str:
    """Return the text of config/README.md.

    Raises:
        WorldtuneError: a recipe is not valid.
    """
    parts = [INTRODUCTION, "## Recipes\n", _recipe_table(root), DEPARTURES, "## config.yaml\n"]
    parts += [_table("", ProjectConfig), "### datasets.NAME\n", _table("", DatasetConfig), "## Recipe keys\n"]
    affects = affects_by_key()
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        parts += [f"### {name}\n", (section.__doc__ or "") + "\n", _table(name + ".", section, affects)]
    parts += ["## Video sizes\n", _size_table()]
    return "\n".join(parts)


def _recipe_table(root: Path) -> str:
    rows = ["| recipe | what it is | original experiment |", "|---|---|---|"]
    for path in sorted((root / "config/recipes").glob("*.toml")):
        experiment = load_recipe(path.stem, root=root).experiment
        rows.append(f"| {path.stem} | {experiment.description} | {experiment.original_name} |")
    return "\n".join(rows) + "\n"


def _size_table() -> str:
    aspects = list(next(iter(VIDEO_SIZES_WH.values())))
    rows = [f"| resolution | {' | '.join(aspects)} |", "|---" * (len(aspects) + 1) + "|"]
    for resolution, sizes in VIDEO_SIZES_WH.items():
        rows.append(f"| {resolution} | {' | '.join(f'{w}x{h}' for w, h in sizes.values())} |")
    return "\n".join(rows) + "\n"


def _table(prefix: str, model: type[BaseModel], affects: dict[str, Any] | None = None) -> str:
    header = ["key", "type", "default", *(["affects"] if affects else []), "meaning"]
    rows = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for key, field in _fields(prefix, model):
        cells = [f"`{key}`", _type(field), _default(field)]
        cells += [affects[key]] if affects else []
        rows.append(f"| {' | '.join([*cells, ' '.join((field.description or '').split())])} |")
    return "\n".join(rows) + "\n"


def _fields(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(f"{prefix}{name}.", field.annotation)
        else:
            yield prefix + name, field


def _type(field: FieldInfo) -> str:
    text = getattr(field.annotation, "__name__", "") if isinstance(field.annotation, type) else str(field.annotation)
    text = re.sub(r"typing\.|annotated_types\.", "", text or str(field.annotation))
    text = re.sub(r"Annotated\[(\w+), [^\]]*\]", r"\1", text)
    text = re.sub(r"Literal\[(.*?)\]", lambda match: match.group(1).replace("'", '"').replace(", ", " or "), text)
    return text.replace("|", "or")


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return f"`{field.default_factory()!r}`"  # type: ignore[call-arg]
    return "required" if field.default is PydanticUndefined else f"`{field.default!r}`"


TARGET_RULE = "all"
GRAPH_BEGIN = "<!-- graph: generated by make docs -->"
GRAPH_END = "<!-- end of graph -->"


def readme_with_graph(root: Path) -> str:
    """Return README.md with the picture of the configured runs' graph, as the rules give it, between its two marks.

    Raises:
        WorldtuneError: README.md lacks the marks, or snakemake fails; the message has its output.
    """
    text = (root / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(GRAPH_BEGIN)
    _, end, after = rest.partition(GRAPH_END)
    if not begin or not end:
        raise WorldtuneError(f"README.md must hold the lines {GRAPH_BEGIN!r} and {GRAPH_END!r}.")
    return f"{before}{GRAPH_BEGIN}\n\n```mermaid\n{rule_graph(root)}```\n\n{GRAPH_END}{after}"


def rule_graph(root: Path) -> str:
    """Return the rules that make all configured runs as a mermaid graph: one line a rule and an edge, sorted."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "dot", "--quiet", "all"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if result.returncode:
        raise WorldtuneError(f"{' '.join(command)} failed:\n{result.stderr}")
    names = dict(re.findall(r"^\s*(\d+)\[\s*label\s*=\s*\"([^\"]+)\"", result.stdout, re.MULTILINE))
    pairs = re.findall(r"(\d+)\s*->\s*(\d+)", result.stdout)
    edges = sorted((names[a], names[b]) for a, b in pairs if names[b] != TARGET_RULE)
    if not edges:
        raise WorldtuneError(f"{' '.join(command)} printed no graph:\n{result.stdout}")
    return "graph LR\n" + "".join(f"  {a} --> {b}\n" for a, b in edges)
