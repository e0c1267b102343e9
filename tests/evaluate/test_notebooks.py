"""What all notebooks have in common."""

import ast
import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.evaluate import notebook as notebook_module
from worldtune.evaluate.notebook import PARAMETERS, execute_notebook

REPOSITORY = Path(__file__).parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def test_all_notebooks_are_looked_at() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["dataset_overview", "run_comparison", "run_report"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_have_one_variable_to_change(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert [index for index, cell in enumerate(cells) if PARAMETERS in cell.metadata.get("tags", [])] == [0]
    (statement,) = ast.parse(cells[0].source).body
    assert isinstance(statement, ast.Assign)
    assert isinstance(ast.literal_eval(statement.value), str | list)


def test_they_find_the_repository_from_their_own_folder(made_up_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made_up_run.parents[1], root)
    (root / "notebooks").mkdir()
    notebook = REPOSITORY / "notebooks/run_report.ipynb"
    execute_notebook(notebook, tmp_path / "page.html", title="", root=root / "notebooks", parameters={"run": "run"})
    assert "step 60" in (tmp_path / "page.html").read_text()


def test_every_figure_has_words_for_those_who_do_not_see_it() -> None:
    for path in NOTEBOOKS:
        drawing = [cell for cell in nbformat.read(path, as_version=4).cells if ".plot_" in cell.source]
        assert drawing
        assert all(cell.metadata.get("alt") for cell in drawing)


def test_nothing_is_said_of_connections_within_the_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notebook = write_notebook(tmp_path / "quiet.ipynb", "1 + 1")
    execute_notebook(notebook, tmp_path / "page.html", title="", root=tmp_path, parameters={"run": "run"})
    assert capfd.readouterr().err == ""


def test_outside_of_a_repository_they_say_so(tmp_path: Path) -> None:
    notebook = REPOSITORY / "notebooks/run_report.ipynb"
    with pytest.raises(WorldtuneError, match="is not inside the repository"):
        execute_notebook(notebook, tmp_path / "page.html", title="", root=tmp_path, parameters={"run": "run"})


def write_notebook(path: Path, code: str) -> Path:
    parameters = nbformat.v4.new_code_cell('run = ""', metadata={"tags": [PARAMETERS]})
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)]), path)
    return path


def test_they_run_in_this_interpreter_whatever_kernel_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "data/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/gone/python"], "display_name": "Another's", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    notebook = write_notebook(tmp_path / "own.ipynb", "import sys; print(sys.executable)")
    execute_notebook(notebook, tmp_path / "page.html", title="", root=tmp_path, parameters={"run": "run"})
    assert sys.executable in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("code", "message"), [("import os; os._exit(1)", "Kernel died"), ("import time; time.sleep(60)", "timed out")]
)
def test_one_that_does_not_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(notebook_module, "TIMEOUT_S", 5)
    notebook = write_notebook(tmp_path / "broken.ipynb", code)
    with pytest.raises(WorldtuneError, match=rf"broken\.ipynb failed:\n.*{message}"):
        execute_notebook(notebook, tmp_path / "page.html", title="", root=tmp_path, parameters={"run": "run"})
    assert not (tmp_path / "page.html").exists()
