"""The one table of tensor-parallel split axes, read by layers, checkpoint splitter and joiner, and tests."""

from torch import Tensor

from worldtune.common.errors import WorldtuneError

SPLIT_DIMS: dict[str, int] = {
    "to_q.0.weight": 0,
    "to_k.0.weight": 0,
    "to_v.0.weight": 0,
    "layer1.weight": 0,
    "to_out.0.weight": 1,
    "layer2.weight": 1,
}
"""Last components of a parameter's name -> axis that is cut into equal, contiguous pieces."""


def split_dim(key: str) -> int | None:
    """Return the axis along which tensor-parallel ranks split the parameter `key`; None where each rank has it whole.

    `key` may carry any prefix (`net.`, `base_model.net.`).
    """
    for suffix, dim in SPLIT_DIMS.items():
        if key == suffix or key.endswith("." + suffix):
            return dim
    return None


def shard(full: Tensor, dim: int | None, degree: int, rank: int, name: str) -> Tensor:
    """Return a view of rank `rank`'s piece of `full` along `dim`; None gives the whole tensor.

    Raises:
        WorldtuneError: the axis cannot be cut into `degree` equal pieces; the message has `name`.
    """
    if dim is None:
        return full
    if dim >= full.dim() or full.shape[dim] % degree:
        raise WorldtuneError(
            f"{name} has shape {tuple(full.shape)}: axis {dim} cannot be cut into {degree} equal pieces. Choose a "
            "tensor-parallel degree that divides it."
        )
    length = full.shape[dim] // degree
    return full.narrow(dim, rank * length, length)
