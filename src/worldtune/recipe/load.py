"""Reading a recipe: inheritance, environment variables, overrides, validation."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.checks import check_recipe
from worldtune.recipe.project import config_path
from worldtune.recipe.schema import RESULTS, Recipe

RECIPES = Path("config/recipes")
MODELS = Path("config/models")
EXTENDS = "extends"
CLUSTER_NAMES = frozenset({"account", "partition", "partitions", "constraint", "container", "gpu_gres", "gres"})
"""What belongs to the configuration of all runs and is looked for in a recipe."""


def recipe_path(name: str, root: Path = Path()) -> Path:
    """Find the file of a recipe.

    Args:
        name: a path of a TOML file, the name of a recipe below config/recipes/, or the name of the original experiment.
        root: root of the repository.

    Raises:
        WorldtuneError: there is no such recipe (the message names the nearest ones), or several recipes carry that name
            of an original experiment.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise WorldtuneError(f"there is no recipe file {name}. Recipes lie in {RECIPES}/.")
        return Path(name)
    return _find(name, root, "*.toml")


def _find(name: str, root: Path, pattern: str) -> Path:
    """Find the file of a recipe by its name or the original experiment's, among those that `pattern` finds."""
    folder = root / RECIPES
    path = folder / f"{name}.toml"
    if path.is_file():
        return path
    known: dict[str, list[Path]] = {}
    for candidate in sorted(folder.glob(pattern)):
        known.setdefault(candidate.relative_to(folder).with_suffix("").as_posix(), []).append(candidate)
        # What a recipe inherits from the one it extends is not its own name.
        experiment = _read_toml(candidate).get("experiment")
        original = experiment.get("original_name") if isinstance(experiment, dict) else None
        if original and isinstance(original, str):
            known.setdefault(original, []).append(candidate)
    found = known.get(name, [])
    if not found:
        raise WorldtuneError(f"there is no recipe {name!r} in {folder}/{_nearest(name, known)}.")
    if len(found) > 1:
        raise WorldtuneError(
            f"{name} is the experiment.original_name of {len(found)} recipes in {folder}/. Name the one that "
            f"is meant: {', '.join(path.stem for path in found)}. Or remove original_name from copied recipes."
        )
    return found[0]


def load_recipe(name: str, overrides: Sequence[str] = (), root: Path = Path()) -> Recipe:
    """Read, resolve and check a recipe.

    Args:
        name: see `recipe_path`.
        overrides: `key.path=value` strings that go over the file, values in YAML.
        root: root of the repository; config/models/ is looked up there.

    Raises:
        WorldtuneError: a file is missing or no TOML, a key is unknown (the nearest known one is named), a value is of
            the wrong type or out of range, values do not fit together, or the run that it starts from
            (checkpoints.init_from) does not exist, trains another control or starts from this one.
    """
    path = recipe_path(name, root)
    recipe = _resolve(path, overrides, root)
    _check_starts(path, recipe, root)
    return recipe


def _check_starts(path: Path, recipe: Recipe, root: Path) -> None:
    """Follow checkpoints.init_from to a run that starts from released weights."""
    chain, current = [path.stem], recipe
    while current.checkpoints.init_from:
        run = current.checkpoints.init_from.partition("/")[2]
        key = f"{root / RECIPES / chain[-1]}.toml" if len(chain) > 1 else str(path)
        if run in chain:
            raise WorldtuneError(
                f"{path}: checkpoints.init_from leads in a circle: {' from '.join([*chain, run])}. One of these runs "
                "must start from a checkpoint."
            )
        start = root / RECIPES / f"{run}.toml"
        if not start.is_file():
            known = [candidate.stem for candidate in sorted((root / RECIPES).glob("*.toml"))]
            raise WorldtuneError(
                f"{key}: checkpoints.init_from = {RESULTS}/{run}, but there is no {start}{_nearest(run, known)}."
            )
        current = _resolve(start, (), root)
        if current.control.kinds != recipe.control.kinds:
            raise WorldtuneError(
                f"{key}: checkpoints.init_from = {RESULTS}/{run}, which trains the {current.control.label} control, "
                f"but {path.stem} trains {recipe.control.label} (control.kind, control.also). Start from a run of the "
                "same kind."
            )
        chain.append(run)


def _resolve(path: Path, overrides: Sequence[str], root: Path) -> Recipe:
    values = _merge_parents(path, root, ())
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), _parse_overrides(overrides))
        resolved = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise WorldtuneError(f"{path}: {' '.join(str(error).split())}") from error
    assert isinstance(resolved, dict)
    plain: dict[str, Any] = {str(key): value for key, value in resolved.items()}
    _merge_model(plain, path, root)
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        raise WorldtuneError(_explain(path, error)) from error
    check_recipe(recipe, str(path))
    return recipe


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WorldtuneError(f"{path} does not exist.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WorldtuneError(f"{path} is no valid TOML: {error}.") from error


def _merge_parents(path: Path, root: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in children:
        raise WorldtuneError(f"{path} extends itself, by way of {', '.join(child.stem for child in children)}.")
    values = _read_toml(path)
    parents = values.pop(EXTENDS, [])
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise WorldtuneError(f"{path}: extends must be the name of a recipe or a list of names, found {parents!r}.")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = merge(merged, _merge_parents(_parent_path(path, parent, root), root, (*children, path.resolve())))
    return merge(merged, values)


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What the file of a recipe says itself, and what the recipes that it extends say; dotted keys to values."""

    parents: tuple[str, ...]
    own: dict[str, Any]
    inherited: dict[str, Any]


def read_extension(path: Path, root: Path = Path()) -> Extension:
    """Read what a recipe's file adds to the recipes that it extends; nothing is resolved or checked.

    Raises:
        WorldtuneError: a file is missing or no TOML.
    """
    own = _read_toml(path)
    parents = own.pop(EXTENDS, [])
    names = [parents] if isinstance(parents, str) else list(parents)
    inherited: dict[str, Any] = {}
    for parent in names:
        inherited = merge(inherited, _merge_parents(_parent_path(path, parent, root), root, (path.resolve(),)))
    return Extension(parents=tuple(names), own=flatten(own), inherited=flatten(inherited))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested tables by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _parent_path(path: Path, parent: str, root: Path) -> Path:
    """Return the file that a recipe extends: one beside it, or a recipe or a part below config/recipes/."""
    beside = path.parent / f"{parent}.toml"
    if beside.is_file():
        return beside
    try:
        return recipe_path(parent, root) if parent.endswith(".toml") else _find(parent, root, "**/*.toml")
    except WorldtuneError as error:
        raise WorldtuneError(f"{path}: extends: {error}") from error


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the values of `above` over it; tables are merged key by key, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _merge_model(values: dict[str, Any], path: Path, root: Path) -> None:
    network = values.get("network")
    size = network.get("size") if isinstance(network, dict) else None
    if not isinstance(network, dict) or size is None:
        raise WorldtuneError(
            f'{path}: network.size is missing; did you forget {EXTENDS}, as in {EXTENDS} = "edge_posttrain"? A recipe '
            f"that extends none must name a file below {MODELS}/ (without .toml)."
        )
    if not isinstance(size, str):
        raise WorldtuneError(f"{path}: network.size must name a file below {MODELS}/ (without .toml), found {size!r}.")
    model_path = root / MODELS / f"{size}.toml"
    if not model_path.is_file():
        known = [candidate.stem for candidate in sorted((root / MODELS).glob("*.toml"))]
        raise WorldtuneError(f"{path}: network.size = {size!r}, but there is no {model_path}{_nearest(size, known)}.")
    values["network"] = merge(_read_toml(model_path), network)


def _parse_overrides(overrides: Sequence[str]) -> Any:
    parsed = OmegaConf.create()
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise WorldtuneError(f"override {override!r} is not of the form key.path=value.")
        known = list(known_keys(Recipe))
        if key not in known and not any(name.startswith(key + ".") for name in known):
            raise WorldtuneError(f"override {override!r}: there is no key {key!r}{_nearest(key, known)}.")
        try:
            parsed.merge_with_dotlist([override])
        except YAMLError as error:
            raise WorldtuneError(
                f"override {override!r}: its value is no YAML ({' '.join(str(error).split())})."
            ) from error
    return parsed


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all leaf keys of a section tree."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Return advice that names known keys of which the whole, or else the last part, is spelt alike."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if not matches:
        last_parts = {key: key.rpartition(".")[2] for key in known}
        alike = difflib.get_close_matches(name.rpartition(".")[2], list(last_parts.values()))
        matches = [key for key, last in last_parts.items() if last in alike][:3]
    return f"; the nearest known: {', '.join(matches)}" if matches else ""


def _explain(path: Path, error: ValidationError) -> str:
    known = list(known_keys(Recipe))
    lines = [_explain_one(detail, known) for detail in error.errors()]
    return f"{path} is not a valid recipe:\n  " + "\n  ".join(lines)


def _explain_one(detail: ErrorDetails, known: Sequence[str]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    section = difflib.get_close_matches(key, Recipe.model_fields, n=1)
    if detail["type"] == "extra_forbidden" and isinstance(detail["input"], dict) and section:
        return f"[{key}]: unknown section; did you mean [{section[0]}]?"
    if detail["type"] == "tuple_type":
        return f"{key}: expected a list, such as [{detail['input']!r}], found {detail['input']!r}"
    if detail["type"] == "extra_forbidden" and key.startswith("cluster.") and key.rpartition(".")[2] in CLUSTER_NAMES:
        return f"{key}: unknown key; partitions and accounts are named for all runs, under cluster in {config_path()}"
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(key, known)}"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        legal = re.findall(r"'([^']*)'", detail["msg"])
        return f"{key}: {detail['msg']}, found {detail['input']!r}{_nearest(detail['input'], legal)}"
    return f"{key}: {detail['msg']}, found {detail['input']!r}"
