"""Where a notebook's run or dataset lies, found by its name from wherever the notebook was started."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.training.manifest import MANIFEST

ROOT_FILE = "Snakefile"
DATASET_FILES = ("dataset.json", "validation/clips.csv")
"""Files of which a dataset that has been validated has at least one."""


def repository_root(start: Path | None = None) -> Path:
    """Return the nearest folder that holds the Snakefile: `start` (default: the working folder) or one above it.

    Raises:
        WorldtuneError: there is none.
    """
    begin = Path.cwd() if start is None else Path(start).resolve()
    for folder in (begin, *begin.parents):
        if (folder / ROOT_FILE).is_file():
            return folder
    raise WorldtuneError(f"{begin} is not inside the repository: no {ROOT_FILE} in it or above. Start there.")


def recipe_names(root: Path) -> list[str]:
    """Return the names of the recipes in config/recipes/, sorted."""
    return sorted(path.stem for path in (root / "config" / "recipes").glob("*.toml"))


def check_name(name: str, known: Iterable[str], what: str, where: str = "") -> None:
    """Refuse a name that is not known.

    Args:
        name: what the user asked for.
        known: the names that there are.
        what: kind of thing, such as "recipe"; for the message.
        where: file or folder that should have it; for the message.

    Raises:
        WorldtuneError: `name` is unknown; the message names the nearest ones, or else all.
    """
    names = sorted(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        advice = f"the nearest known: {', '.join(near)}"
    else:
        advice = f"known: {', '.join(names)}" if names else "there is none yet"
    raise WorldtuneError(f"{f'{where} has' if where else 'there is'} no {what} {name!r}; {advice}.")


def check_runs(runs: Iterable[str], known: Iterable[str], what: str = "recipe") -> list[str]:
    """Return the names of a comparison: at least two, each known and named once.

    Raises:
        WorldtuneError: they are not; see `check_name`.
    """
    names, known_names = list(runs), list(known)
    for name in names:
        check_name(name, known_names, what)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise WorldtuneError(f"a comparison names each run once; {', '.join(twice)} is there more than once.")
    if len(names) < 2:
        raise WorldtuneError(
            f"a comparison needs two or more runs; {f'only {names[0]} was named' if names else 'none was named'}."
        )
    return names


def run_folder(root: Path, run: str) -> Path:
    """Return the folder of a run that has been trained.

    Raises:
        WorldtuneError: there is no such run, or only its recipe.
    """
    trained = sorted(path.parent.name for path in (root / "results").glob(f"*/{MANIFEST}"))
    if run not in trained and run in recipe_names(root):
        target = f"results/{run}/report.html"
        raise WorldtuneError(f"results/{run}/{MANIFEST} does not exist: train the run, as with `snakemake {target}`.")
    check_name(run, trained, "run", "results/")
    return root / "results" / run


def dataset_folder(root: Path, dataset: str) -> Path:
    """Return the folder of a dataset that has been validated, whether it was found fit or not.

    Raises:
        WorldtuneError: there is no such dataset, or it has not been validated.
    """
    folder = root / "datasets" / dataset
    if any((folder / name).is_file() for name in DATASET_FILES):
        return folder
    if folder.is_dir():
        target = f"datasets/{dataset}/{DATASET_FILES[0]}"
        raise WorldtuneError(
            f"{folder} has neither {' nor '.join(DATASET_FILES)}: validate it, as with `snakemake {target}`."
        )
    validated = {path.name for path in (root / "datasets").glob("*") if path.is_dir()}
    check_name(dataset, validated, "dataset", "datasets/")
    return folder
