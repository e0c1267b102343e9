"""What a recipe's values mean for a run: which shape the weights, and the digests that stand for them."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest
from worldtune.recipe.schema import Affects, Recipe, Section

KEY_DIGITS = 3
WHOLE_DIGITS = 12
IDENTITY_DIGITS = 16


def values_that_affect(recipe: Recipe, *kinds: Affects) -> dict[str, Any]:
    """Return the dotted keys and JSON values of a recipe that affect one of `kinds` (see recipe.schema), sorted.

    What acts on nothing is left out: the tables of controls that were not chosen and, for a single control, what
    concerns several.
    """
    chosen = {key: value for key, value, affects in _leaves(recipe, "", "weights") if affects in kinds}
    inert = [f"control.{name}." for name in type(recipe.control).model_fields if name not in recipe.control.kinds]
    if not recipe.control.also:
        inert += ["control.also", "objective.hint_dropout_rate"]
    return {key: chosen[key] for key in sorted(chosen) if not key.startswith(tuple(inert))}


def load_report_values(recipe: Recipe) -> dict[str, Any]:
    """Return the dotted keys and values of a recipe that the load report depends on, sorted."""
    values = values_that_affect(recipe, "weights")
    starts = ("network.base.", "network.control.", "objective.use_logvar")
    return {key: value for key, value in values.items() if key.startswith(starts)}


def dataset_report_values(recipe: Recipe) -> dict[str, Any]:
    """Return the dotted keys and values of a recipe that decide whether a dataset fits it, sorted."""
    values = values_that_affect(recipe, "weights", "outcome")
    keys = ("control.kind", "control.also", "network.base.crossattn_emb_channels", "training.micro_batch_size")
    return {
        key: value
        for key, value in values.items()
        if (key.startswith("data.") and key != "data.cache_latents") or key in keys
    }


def keys_that_affect(*kinds: Affects) -> list[str]:
    """Return the dotted names of all keys of the schema that affect one of `kinds`, sorted."""
    return sorted(key for key, affects in _schema_leaves(Recipe, "", "weights") if affects in kinds)


def affects_by_key() -> dict[str, Affects]:
    """Return what each dotted key of the schema affects."""
    return dict(_schema_leaves(Recipe, "", "weights"))


def _schema_leaves(model: type[BaseModel], prefix: str, inherited: Affects) -> Iterator[tuple[str, Affects]]:
    section = model.section_affects if issubclass(model, Section) and model is not Recipe else inherited
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        affects: Any = extra.get("affects", section) if isinstance(extra, dict) else section
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _schema_leaves(field.annotation, f"{prefix}{name}.", affects)
        else:
            yield prefix + name, affects


def _leaves(model: BaseModel, prefix: str, inherited: Affects) -> Iterator[tuple[str, Any, Affects]]:
    by_key = dict(_schema_leaves(type(model), prefix, inherited))
    for key, value in _flatten(model.model_dump(mode="json"), prefix):
        yield key, value, by_key[key]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def identity(
    recipe: Recipe,
    *,
    base_sha256: str,
    control_sha256: str | None,
    tokenizer_sha256: str,
    dataset_digest: str,
    latents_version: int | None,
    trainer_version: int,
) -> str:
    """Return the 16 hexadecimal digits that name an attempt: a digest of everything that shapes the weights.

    `latents_version` is that of cached latents, or None where videos are encoded in training. What else they are made
    from is in the other values.
    """
    return digest(
        {
            "recipe": values_that_affect(recipe, "weights"),
            "base_sha256": base_sha256,
            "control_sha256": control_sha256,
            "tokenizer_sha256": tokenizer_sha256,
            "dataset_digest": dataset_digest,
            "latents_version": latents_version,
            "trainer_version": trainer_version,
        },
        IDENTITY_DIGITS,
    )


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return a short text that stands for `values` and can tell which keys differ later: see `check_fingerprint`.

    It is a digest of everything and, after a dash, three digits for each key in sorted order.
    """
    keys = sorted(values)
    return digest(dict(values), WHOLE_DIGITS) + "-" + "".join(digest([key, values[key]], KEY_DIGITS) for key in keys)


def check_fingerprint(expected: str | None, values: Mapping[str, Any], what: str) -> None:
    """Compare values that a script has read with those that the workflow planned this job for.

    Args:
        expected: the fingerprint of the planned values; None skips the check (a run by hand).
        values: the values as read now.
        what: what they were read from, for the message.

    Raises:
        WorldtuneError: they differ; the message names the keys.
    """
    found = fingerprint(values)
    if expected is None or expected == found:
        return
    keys = sorted(values)
    old, new = expected.partition("-")[2], found.partition("-")[2]
    if len(old) == len(new):
        starts = range(0, len(new), KEY_DIGITS)
        changed = [
            key for key, at in zip(keys, starts, strict=True) if old[at : at + KEY_DIGITS] != new[at : at + KEY_DIGITS]
        ]
        named = ", ".join(changed) or "a value"
    else:
        named = "the set of keys"
    raise WorldtuneError(
        f"{what} changed after this job was planned: {named}. Nothing was done; run the same snakemake command again."
    )
