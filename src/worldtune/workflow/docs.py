"""Documentation that is generated: config/README.md from the fields, the picture of the graph from the rules."""

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_text
from worldtune.dataset.annotators import DepthAnnotator, KeypointAnnotator, SegAnnotator
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.reasons import MENDS
from worldtune.formats.controls import CONTROLS
from worldtune.recipe.estimate import estimate
from worldtune.recipe.identity import affects_by_key
from worldtune.recipe.load import load_recipe
from worldtune.recipe.project import ProjectConfig
from worldtune.recipe.schema import VIDEO_SIZES_WH, Recipe

INTRODUCTION = """# Configuration

`config.yaml` says which runs to make, on which datasets and which cluster. `recipes/*.toml` say how a model is trained,
one file a model; `models/*.toml` hold network sizes; `checkpoints.toml` lists every released file that a recipe may
name. This page is generated from the fields by `make docs`.

A recipe may start from another one with `extends = "name"`, or from several with `extends = ["name", "parts/name"]`, of
which the later go over the earlier; tables are merged key by key. `recipes/parts/` holds what recipes share and is no
recipe by itself. `${oc.env:NAME}` is the value of an environment variable. `key.path=value` on a script's command line
goes over the file. Unknown keys are errors.

The column *affects* says what a change does: **weights** starts a new attempt, **outcome** continues the attempt with
other limits, layout or measurements, **report** draws the report's samples again, **nothing** re-runs nothing.
"""

DEPARTURES = """## Departures from the published recipes

* `training.max_iter` is finite (published: 999999999) and `training.seed` is fixed (published: the time of day, drawn
  by each process for itself).
* Held-out clips are set apart and measured; the published recipes validate on nothing.
* Optimizer master weights and the order of samples survive a resume; the published trainer rebuilds or forgets them.
* A step whose loss or gradient is not finite is skipped, counted and written down; the published trainer sets such
  gradients to zero and steps.
* The upscale control crops frames to the recipe's size, or to what a smaller frame has of that aspect ratio; the
  published trainer always crops to the size of resolution 720 and distorts smaller clips.
* Places of keypoints are computed in single precision; in half precision, in which they are stored, they miss pixels.
* The noise of given frames is the same on all tensor-parallel ranks; the published trainer draws it on each rank.
* T5 runs in bfloat16 on a GPU (published: float32); the files are float16 in both.
* Several views: the text of every view has `data.text_tokens` tokens (published: the texts of all views are cut to 512
  together, with which the network cannot run), and tokens meet their own view's text under sequence parallelism too.
* One driving view takes its own captions and the whole clip's folder layout (published: captions are replaced by the
  camera's prefix, since the view is misnamed).
* Depth, segmentation and keypoints are asked of the dataset `annotated`, a folder of whole videos with these files
  beside them, and not of `hdvila`, whose clips are cut out of longer videos: a control is given for every frame.
* The `demo_*` recipes differ from their originals in size, data, learning rate and length, and train in float32 on two
  processes; wiring, objective and control are the same (tests/recipe/test_load.py compares them).
"""

CONTROLS_INTRODUCTION = """## Controls

What a control's file must be, and what training makes of controls without one. T frames, H rows and W pixels are the
clip's. A file is read whole and checked against this before it is taken over; `make overview` and
datasets/NAME/validation/index.html show it beside its clip. Whatever the kind, the network is given the control as a
video of three colours, uint8 [T, H, W, 3], which the tokenizer sees as -1 to 1. *nothing known* is what stands for
pixels of which the control says nothing; the network takes it for a value like any other.
"""

REASONS_INTRODUCTION = """## Why a clip is not used, and what to look at

The words before the colon of a reason or remark in datasets/NAME/validation/. KIND stands for the kind of a control.
A stage has the name of its rule, which is what `--forcerun` takes; `controls` and `annotate` have a manifest for each
kind, in datasets/NAME/manifests/controls-KIND and annotate-KIND.
"""


def config_readme(root: Path) -> str:
    """Return the text of config/README.md.

    Raises:
        WorldtuneError: a recipe is not valid.
    """
    parts = [INTRODUCTION, "## Recipes\n", _recipe_table(root), DEPARTURES, "## config.yaml\n"]
    parts += [_table("", ProjectConfig), "### datasets.NAME\n", _table("", DatasetConfig)]
    for annotator in (DepthAnnotator, KeypointAnnotator, SegAnnotator):
        parts += [f"### {annotator.__name__}\n", inspect.cleandoc(annotator.__doc__ or "") + "\n"]
    parts.append("## Recipe keys\n")
    affects = affects_by_key()
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        parts += [f"### {name}\n", (section.__doc__ or "") + "\n", _table(name + ".", section, affects)]
    parts += [
        CONTROLS_INTRODUCTION,
        _control_table(),
        REASONS_INTRODUCTION,
        _reason_table(),
        "## Video sizes\n",
        _size_table(),
    ]
    return "\n".join(parts)


def _recipe_table(root: Path) -> str:
    rows = ["| recipe | what it is | original experiment |", "|---|---|---|"]
    for path in sorted((root / "config/recipes").glob("*.toml")):
        experiment = load_recipe(path.stem, root=root).experiment
        rows.append(f"| {path.stem} | {experiment.description} | {experiment.original_name} |")
    return "\n".join(rows) + "\n"


def _control_table() -> str:
    columns = {
        "from": "origin",
        "container": "container",
        "type": "dtype",
        "values": "value_range",
        "sense": "sense",
        "nothing known": "invalid",
        "frames": "num_frames",
        "place": "alignment",
    }
    rows = [f"| control | file | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for kind, schema in CONTROLS.items():
        file = f"`{kind}/NAME{schema.suffix}`" if schema.has_file else "none"
        # A bar would end the cell.
        cells = [str(getattr(schema, name)).replace("|", "or") for name in columns.values()]
        rows.append(f"| {' | '.join([kind, file, *cells])} |")
    return "\n".join(rows) + "\n"


def _reason_table() -> str:
    rows = [
        "| reason or remark | what to do |",
        "|---|---|",
        *(f"| {label} | {mend} |" for label, mend in MENDS.items()),
    ]
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
        # A section that may be left out is "its class, or None".
        section = next((part for part in (field.annotation, *get_args(field.annotation)) if _is_section(part)), None)
        if section is None or field.annotation is not section:
            yield prefix + name, field
        if section is not None:
            yield from _fields(f"{prefix}{name}.", section)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type(field: FieldInfo) -> str:
    text = getattr(field.annotation, "__name__", "") if isinstance(field.annotation, type) else str(field.annotation)
    text = re.sub(r"typing\.|annotated_types\.", "", text or str(field.annotation))
    text = re.sub(r"worldtune(\.\w+)+", "table", text)
    text = re.sub(r"Annotated\[(\w+), [^\]]*\]", r"\1", text)
    text = re.sub(r"Literal\[(.*?)\]", lambda match: match.group(1).replace("'", '"').replace(", ", " or "), text)
    return text.replace("|", "or")


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return f"`{field.default_factory()!r}`"  # type: ignore[call-arg]
    return "required" if field.default is PydanticUndefined else f"`{field.default!r}`"


CHOICES = {
    "{kind}": "any video",
    "av_{kind}_57frames": "driving, one view, 57 frames",
    "av_{kind}_121frames": "driving, one view, 121 frames",
    "av_multiview_t2w_{kind}": "driving, three views, the front one given",
    "av_multiview_v2w_{kind}": "driving, three views, front view and first frames given",
}
"""Names of recipes without their stage, and the videos that they are for."""
ASSUMED_MFU = 0.4
PEAK_TFLOPS = 989.0
"""Dense bfloat16 operations of one H100 or H200, in 10^12 a second."""
TABLE_BEGIN = "<!-- recipes: generated by make docs -->"
TABLE_END = "<!-- end of recipes -->"


def decision_table(root: Path) -> str:
    """Return which recipe serves what, and what it asks for, as a Markdown table.

    Raises:
        WorldtuneError: a recipe is not valid.
    """
    rows = [
        "| control | what it follows | videos | base | from the released branch | from the base | GPUs | weights "
        "| checkpoints and export | 1,000 steps |",
        "|---" * 10 + "|",
    ]
    names = {path.stem for path in (root / "config/recipes").glob("*.toml")}
    for pattern, videos in CHOICES.items():
        for kind, follows in FOLLOWS.items():
            stem = pattern.format(kind=kind)
            if f"{stem}_pretrain" not in names:
                continue
            recipe = load_recipe(f"{stem}_posttrain", root=root)
            need = estimate(recipe)
            hours = 1000 * need.step_flop / (recipe.world_size * PEAK_TFLOPS * 1e12 * ASSUMED_MFU) / 3600
            base = recipe.checkpoints.base.split("/")[1]
            cells = [kind, follows, videos, base, f"`{stem}_posttrain`", f"`{stem}_pretrain`", str(recipe.world_size)]
            cells += [f"{need.weights_bytes / 1e9:.0f} GB", f"{need.attempt_bytes / 1e9:.0f} GB", f"{hours:.1f} h"]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


FOLLOWS = {
    "edge": "Canny edges, made from the video",
    "vis": "the blurred video, made from it",
    "upscale": "the video at low resolution, made from it",
    "depth": "a depth video of yours",
    "seg": "masks of yours, or made by networks",
    "keypoint": "body keypoints of yours",
    "hdmap": "a video of the road map",
    "lidar": "a video of lidar points",
}
"""What each control asks of the user."""
TARGET_RULE = "all"
GRAPH_BEGIN = "<!-- graph: generated by make docs -->"
GRAPH_END = "<!-- end of graph -->"


def readme(root: Path) -> str:
    """Return README.md with the table of recipes and the picture of the configured runs' graph between their marks.

    Raises:
        WorldtuneError: README.md lacks the marks, or snakemake fails; the message has its output.
    """
    text = (root / "README.md").read_text(encoding="utf-8")
    text = _between(text, TABLE_BEGIN, TABLE_END, decision_table(root))
    return _between(text, GRAPH_BEGIN, GRAPH_END, f"```mermaid\n{rule_graph(root)}```\n")


def _between(text: str, begin: str, end: str, content: str) -> str:
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise WorldtuneError(f"README.md must hold the lines {begin!r} and {end!r}.")
    return f"{before}{begin}\n\n{content}\n{end}{after}"


def draw_graph(root: Path, folder: Path) -> list[Path]:
    """Write the configured runs' graph as dag.mmd, and as dag.svg where `dot` is installed; returns the files.

    Args:
        root: root of the repository.
        folder: where to write.

    Raises:
        WorldtuneError: snakemake or dot fails.
    """
    text = rule_graph(root)
    mermaid, svg = folder / "dag.mmd", folder / "dag.svg"
    write_text(mermaid, text)
    if shutil.which("dot") is None:
        return [mermaid]
    edges = re.findall(r"^  (\w+) --> (\w+)$", text, re.MULTILINE)
    source = "digraph { rankdir=LR; node [shape=box]; " + "; ".join(f"{a} -> {b}" for a, b in edges) + " }"
    drawn = subprocess.run(["dot", "-Tsvg"], input=source, capture_output=True, text=True, check=False)
    if drawn.returncode:
        raise WorldtuneError(f"dot failed: {drawn.stderr.strip()}")
    write_text(svg, drawn.stdout)
    return [mermaid, svg]


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
