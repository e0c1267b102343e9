"""Loading networks from folders as transformers writes them: nothing is fetched, filled with random numbers, or run."""

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from worldtune.annotate.folder_hash import missing_folder
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json

CONFIG_FILE = "config.json"
NAMES_SHOWN = 5
"""Weights that a message names; the others are counted."""


@contextlib.contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Turn what the libraries raise over a folder's files into an error that names the folder.

    Args:
        folder: what is read.
        what: what it is read as, such as "a T5 encoder".

    Raises:
        WorldtuneError: something else than memory was wrong.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        # Nothing is wrong with the folder.
        raise
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError),
        *(SafetensorError, StrictDataclassError, pickle.UnpicklingError),
    ) as error:
        words = str(error).strip().rstrip(".")
        raise WorldtuneError(f"{folder} cannot be loaded as {what}: {words}. Fetch it again.") from error


def check_type(folder: Path, expected: str, what: str, *, advice: str = "") -> dict[str, Any]:
    """Return the content of a folder's config.json, which must be of a network of the expected type.

    The libraries would take the numbers of another type for those of their own.

    Args:
        folder: a folder as transformers writes it.
        expected: the `model_type` of its configuration.
        what: what is expected, for the message.
        advice: what to do where it holds another type.

    Raises:
        WorldtuneError: the folder or the file is not there, the file is damaged, or of another type.
    """
    if not folder.is_dir():
        raise WorldtuneError(missing_folder(folder))
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise WorldtuneError(f"{path} does not exist; {what} has one. Fetch {folder} again, or name another folder.")
    config = read_json(path)
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != expected:
        advice = advice or f"Name a folder that holds {what}."
        raise WorldtuneError(f"{folder} holds a network of the type {found!r}; expected {expected!r}. {advice}")
    return dict(config)


def load_network(
    network_class: Any,
    folder: Path,
    what: str,
    *,
    dtype: torch.dtype,
    advice: str = "",
) -> Any:
    """Return a network with all of its weights, on the CPU, as in evaluation.

    Safetensors are taken where there are any. Other files are read by torch with `weights_only`, so that nothing in
    them is run; a configuration that names code of its own is not followed.

    Args:
        network_class: the network's class in transformers; its configuration's type must be the folder's.
        folder: a folder as transformers writes it.
        what: what is expected, such as "a T5 encoder", for messages.
        dtype: type of its floating-point weights, whatever the file's is.
        advice: what to do where the folder holds another type.

    Raises:
        WorldtuneError: the folder is not there, holds another type of network or damaged files, lacks weights, or has
            some of another shape.
    """
    check_type(folder, network_class.config_class.model_type, what, advice=advice)
    with reading(folder, what):
        network, report = network_class.from_pretrained(
            folder,
            local_files_only=True,
            weights_only=True,
            dtype=dtype,
            output_loading_info=True,
            # Another shape is reported with the others below, rather than raised without its name.
            ignore_mismatched_sizes=True,
        )
    # The library would fill what is missing with random numbers and go on. What it has no use for it warns of itself.
    if missing := sorted(report["missing_keys"]):
        raise WorldtuneError(f"{folder} lacks weights of {what}: {_names(missing)}. Fetch it again.")
    if mismatched := sorted(report["mismatched_keys"]):
        shapes = [f"{name} {tuple(found)} in place of {tuple(wanted)}" for name, found, wanted in mismatched]
        raise WorldtuneError(
            f"{folder} has weights of other shapes than {CONFIG_FILE} says of {what}: {_names(shapes)}. Fetch it again."
        )
    return network.eval()


def _names(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
