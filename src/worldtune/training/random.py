"""Random draws that depend on a seed and a key alone: not on the rank, the layout or a restart."""

import numpy as np
import torch

from worldtune.common.files import digest


def _seed(seed: int, key: tuple[int | str, ...]) -> int:
    return int(digest([seed, *key], 16), 16)


def generator(seed: int, *key: int | str) -> torch.Generator:
    """Return a CPU generator for one purpose of one sample.

    Args:
        seed: the recipe's seed.
        key: purpose and ordinal, such as `("noise", 1200)`.

    PyTorch's CPU generator takes 32 bits of a seed, so two of a million keys may share a stream. Nothing relies on them
    being different.
    """
    result = torch.Generator()
    result.manual_seed(_seed(seed, key))
    return result


def numpy_generator(seed: int, *key: int | str) -> np.random.Generator:
    """Return a NumPy generator for one purpose of one sample; `generator` has the arguments."""
    return np.random.Generator(np.random.Philox(_seed(seed, key)))


def seed_default_generators(seed: int, *key: int | str) -> None:
    """Seed PyTorch's default generators on all devices, which a layer such as dropout draws from."""
    torch.manual_seed(_seed(seed, key))
