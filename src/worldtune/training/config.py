"""The resolved recipe as a file; without PyTorch, for a dry run on any machine."""

from pathlib import Path

import yaml

from worldtune.common.files import write_text
from worldtune.recipe.schema import Recipe

CONFIG_FILE = "config.yaml"


def config_text(recipe: Recipe) -> str:
    """Return a resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def write_config(recipe: Recipe, folder: Path) -> Path:
    """Write the resolved recipe to `config.yaml` in a folder and return its path."""
    path = folder / CONFIG_FILE
    write_text(path, config_text(recipe))
    return path
