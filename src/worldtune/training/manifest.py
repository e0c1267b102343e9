"""A run's manifest, `results/<run>/manifest.json`: which attempt's weights are the run's; without PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.recipe.identity import fingerprint, values_that_affect
from worldtune.recipe.schema import Recipe

MANIFEST_FORMAT = 2
MANIFEST = "manifest.json"


def trained_fingerprint(recipe: Recipe) -> str:
    """Return the fingerprint of all values that a training job's result depends on, as the workflow plans it."""
    return fingerprint(values_that_affect(recipe, "weights", "outcome"))


def read_manifest(run_dir: Path, expected: str | None) -> dict[str, Any]:
    """Read the manifest of a finished run.

    Args:
        run_dir: results/<run>.
        expected: the `trained_fingerprint` of the recipe whose weights are wanted; None takes any.

    Raises:
        WorldtuneError: the run is not finished, or the manifest is of another version or recipe.
    """
    path = run_dir / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise WorldtuneError(
            f"{path} is no run manifest of format {MANIFEST_FORMAT}. Delete it and run the training rule again."
        )
    check_trained(manifest, expected, path, run_dir)
    return manifest


def check_trained(record: Mapping[str, Any], expected: str | None, path: Path, run_dir: Path) -> None:
    """Check that weights are those of the recipe that a job was planned for.

    A training job that outlived its Snakemake, or one started by hand, may have ended after the workflow's own and put
    its manifest over the right one.

    Args:
        record: a manifest, or the provenance of an export, which repeats what is compared.
        expected: the `trained_fingerprint` of the planned recipe; None skips the check (a run by hand).
        path: where `record` was read, for the message.
        run_dir: results/<run>.

    Raises:
        WorldtuneError: they are another recipe's.
    """
    found = record.get("recipe_fingerprint")
    if expected is None or found == expected:
        return
    # What follows the dash is of use to programs only.
    short_found, short_expected = str(found).partition("-")[0], expected.partition("-")[0]
    raise WorldtuneError(
        f"{path} names weights of another recipe than this job was planned for: {record.get('attempt')} was trained "
        f"with values of fingerprint {short_found}, expected {short_expected}. A training job of an earlier recipe, or "
        f"one started by hand, has written {run_dir / MANIFEST} since. End it, delete that file and start the same "
        "snakemake command: the training rule runs again, and what is trained already is not trained again."
    )
