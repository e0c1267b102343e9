"""Executing a notebook head-less, to one HTML file that needs nothing beside it."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CellExecutionError, ExecutePreprocessor

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_text

PARAMETERS = "parameters"
TIMEOUT_S = 1800
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main>{body}</main></body></html>
"""
STYLE = """
body { margin: 0; background: #f4f6f8; color: #1f2933; font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 36px 60px; background: #fff; min-height: 100vh; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 38px 0 8px; padding-top: 14px; border-top: 1px solid #e2e7ec; }
p { max-width: 78ch; margin: 6px 0 12px; color: #3e4c59; }
.jp-OutputPrompt, .jp-InputPrompt, .anchor-link { display: none; }
table { border-collapse: collapse; margin: 8px 0 16px; font-size: 13px; border: 0; }
thead th { text-align: left; color: #5a6570; border-bottom: 1.5px solid #cbd2d9; }
th, td { padding: 4px 14px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid #edf0f3;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
tbody th { font-weight: 500; color: #3e4c59; white-space: nowrap; }
img { max-width: 100%; height: auto; }
figure { margin: 18px 0 30px; }
figcaption { color: #3e4c59; margin-bottom: 6px; max-width: 100ch; }
figcaption b { font-family: ui-monospace, monospace; font-size: 12px; color: #7b8794; margin-right: 8px; }
figure .columns { display: flex; font-size: 12px; color: #7b8794; }
figure .columns span { flex: 1; }
figure .grid { display: grid; grid-template-columns: 66px 1fr; }
figure .rows { display: flex; flex-direction: column; font-size: 12px; color: #7b8794; }
figure .rows span { flex: 1; }
figcaption em { color: #7b8794; font-style: normal; }
figure .cells { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 10px; }
figure .cell { font-size: 12px; color: #7b8794; min-width: 0; overflow-wrap: anywhere; }
figure .key { margin-right: 12px; white-space: nowrap; }
figure .key i { display: inline-block; width: 9px; height: 9px; margin-right: 4px; }
.note { color: #8a5a1c; background: #fdf6ec; padding: 6px 10px; border-left: 3px solid #e0a458; }
li { max-width: 78ch; color: #3e4c59; }
figure video, figure img { width: 100%; display: block; margin-bottom: 4px; background: #000; }
pre { font-size: 12px; white-space: pre-wrap; color: #5a6570; }
"""


class _Runner(ExecutePreprocessor):
    def create_kernel_manager(self) -> Any:
        manager = super().create_kernel_manager()
        # Leaves this interpreter's own kernel: another one that is installed as python3 may lack this library.
        manager.kernel_spec_manager.kernel_dirs = []
        return manager


def execute_notebook(
    notebook: Path, output: Path, *, title: str, root: Path, parameters: Mapping[str, str | Sequence[str]]
) -> None:
    """Run a notebook and write it as one HTML file: code hidden, pictures and videos embedded.

    Args:
        notebook: a notebook with one cell that is tagged "parameters".
        output: the HTML file.
        title: title of the page.
        root: the working folder of the notebook: the repository, in which it looks for runs and datasets.
        parameters: strings and lists of strings that replace the values of the parameters cell.

    Raises:
        WorldtuneError: the notebook has no parameters cell, or a cell failed or took too long, or ended the kernel; the
            message holds the error.
    """
    document = nbformat.read(notebook, as_version=4)
    tagged = [cell for cell in document.cells if PARAMETERS in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise WorldtuneError(f"{notebook} has {len(tagged)} cells with the tag {PARAMETERS!r}, expected one.")
    tagged[0].source = "\n".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in parameters.items()
    )
    # Its warnings are of connections that never leave this machine.
    runner = _Runner(timeout=TIMEOUT_S, kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    try:
        runner.preprocess(document, {"metadata": {"path": str(root.resolve())}})
    # The last two are of a kernel that died, and of one that gave no answer in time.
    except (CellExecutionError, RuntimeError, TimeoutError) as error:
        raise WorldtuneError(f"{notebook} failed:\n{error}") from error
    # What fails while a figure is shown stops no cell; it only prints.
    printed = "".join(
        output.get("text", "") for cell in document.cells for output in cell.get("outputs", []) if "text" in output
    )
    if "Traceback (most recent call last)" in printed:
        raise WorldtuneError(f"{notebook} failed while it showed a result:\n{printed[-4000:]}")
    # The built-in pages load scripts from the network; the plain one leaves the frame to us.
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True, embed_images=True)
    body, _ = exporter.from_notebook_node(document)
    write_text(output, PAGE.format(title=html.escape(title), style=STYLE, body=body))
