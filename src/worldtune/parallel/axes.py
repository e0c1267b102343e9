"""The one table of tensor-parallel split axes, read by layers, checkpoint splitter and joiner, and tests."""

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
