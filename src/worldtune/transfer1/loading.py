"""Filling networks: from checkpoints, with a strict report, or with fresh weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.shards import fill
from worldtune.parallel.tokens import local
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import DiffusionTransformer

ALLOWED_MISSING = ("pos_embedder.seq",)
"""Tensors of a network that a file may lack: the counter 0, 1, 2, ... that nothing reads."""
ALLOWED_UNEXPECTED = ("logvar.",)
"""Beginnings of names that a network's file may hold beside the network: the uncertainty head lies next to `net.`."""
NAMED_AT_MOST = 8
"""Tensors of one kind that an error lists."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a file's tensors and a network's have in common. Names are those below `net.` (or `logvar.`)."""

    loaded: tuple[str, ...]
    """Tensors that both have, with equal shapes."""
    missing: tuple[str, ...]
    """Tensors that the file lacks."""
    unexpected: tuple[str, ...]
    """Tensors that only the file has."""
    shape_changed: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Name, shape in the file, shape in the network."""
    dropped: int
    """Extra states of other libraries in the file, which carry no weights."""

    def fatal(self, *, allow_missing: Iterable[str], allow_unexpected: Iterable[str]) -> list[str]:
        """Return one sentence for each kind of difference that is not on the allow-lists."""
        missing = [name for name in self.missing if name not in set(allow_missing)]
        unexpected = [name for name in self.unexpected if not name.startswith(tuple(allow_unexpected))]
        shapes = [
            f"{name} is {found} in the file, {wanted} in the network" for name, found, wanted in self.shape_changed
        ]
        kinds = (("missing in the file", missing), ("unknown to the network", unexpected), ("of another shape", shapes))
        return [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds if names]


def _listed(names: list[str]) -> str:
    rest = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f", and {rest} more" if rest > 0 else "")


def own_part(state: Mapping[str, Tensor], *, control: bool) -> dict[str, Tensor]:
    """Return the tensors of a control branch or of a base (`net.*`, `logvar.*`), whichever layout a file has.

    A file may hold the base alone, with or without the prefix `base_model.`; a branch alone; a branch with its base
    beside it; or, as distilled models do, both below `net.`. Extra states are left out.
    """
    names = [name for name in state if not name.endswith("_extra_state")]
    nested = "net.net_ctrl." if control else "net.base_model."
    if any(name.startswith(nested) for name in names):
        start = "net." if control else ""
        return {start + name.removeprefix(nested): state[name] for name in names if name.startswith(nested)}
    of_base = {name for name in names if name.startswith("base_model.")}
    if control and len(of_base) < len(names):
        return {name: state[name] for name in names if name not in of_base}
    return {name.removeprefix("base_model."): state[name] for name in names if name in of_base or not of_base}


def compare_network(network: DiffusionTransformer, state: Mapping[str, Tensor]) -> LoadReport:
    """Compare a checkpoint's tensors with a network's (which may be on the meta device) by name and shape.

    Split parameters may have their full shape in `state` or that of one rank's piece.
    """
    own = _below_net(state, network)
    return _compare(network, own, sum(name.endswith("_extra_state") for name in state))


def load_network(
    network: DiffusionTransformer,
    state: Mapping[str, Tensor],
    *,
    allow_missing: Iterable[str] = ALLOWED_MISSING,
    allow_unexpected: Iterable[str] = ALLOWED_UNEXPECTED,
) -> LoadReport:
    """Fill a network from a checkpoint's tensors: full ones, or the pieces of this rank.

    Values are cast to the network's dtype. Nothing is copied where anything is wrong.

    Raises:
        WorldtuneError: names or shapes differ beyond the allow-lists; the message names the tensors.
    """
    own = _below_net(state, network)
    report = _compare(network, own, sum(name.endswith("_extra_state") for name in state))
    _load(network, own, report, allow_missing, allow_unexpected)
    return report


def load_logvar(logvar: LogVariance, state: Mapping[str, Tensor], *, control: bool = False) -> LoadReport:
    """Fill the uncertainty head from the `logvar.*` tensors of a base's checkpoint (or a branch's).

    Raises:
        WorldtuneError: names or shapes differ; the message names the tensors.
    """
    own = {
        name.removeprefix("logvar."): tensor
        for name, tensor in own_part(state, control=control).items()
        if name.startswith("logvar.")
    }
    report = _compare(logvar, own, 0)
    _load(logvar, own, report, (), ())
    return report


def _below_net(state: Mapping[str, Tensor], network: DiffusionTransformer) -> dict[str, Tensor]:
    own = own_part(state, control=isinstance(network, ControlNetwork))
    return {name.removeprefix("net."): tensor for name, tensor in own.items()}


def _compare(module: nn.Module, own: Mapping[str, Tensor], dropped: int) -> LoadReport:
    wanted = module.state_dict()
    loaded, shape_changed = [], []
    for name, target in wanted.items():
        if name not in own:
            continue
        if not _fits(target, own[name]):
            shape_changed.append((name, tuple(own[name].shape), tuple(target.shape)))
        else:
            loaded.append(name)
    return LoadReport(
        loaded=tuple(loaded),
        missing=tuple(name for name in wanted if name not in own),
        unexpected=tuple(sorted(name for name in own if name not in wanted)),
        shape_changed=tuple(shape_changed),
        dropped=dropped,
    )


def _fits(target: Tensor, found: Tensor) -> bool:
    return found.shape in (target.shape, local(target).shape)


@torch.no_grad()
def _load(
    module: nn.Module,
    own: Mapping[str, Tensor],
    report: LoadReport,
    allow_missing: Iterable[str],
    allow_unexpected: Iterable[str],
) -> None:
    problems = report.fatal(allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    if problems:
        raise WorldtuneError(
            f"The checkpoint does not fit the {type(module).__name__}. Tensors {'; '.join(problems)}. Check that the "
            "recipe's network and the file belong together, and that a split file was made for this degree "
            "(src/scripts/split_checkpoint.py)."
        )
    targets = module.state_dict()
    if any(target.is_meta for target in targets.values()):
        raise WorldtuneError("The network has no memory yet: call to_empty(device=...) before filling it.")
    for name in report.loaded:
        target = targets[name]
        if own[name].shape == target.shape:
            fill(target, own[name], name)
        else:
            local(target).copy_(own[name])
    if "pos_embedder.seq" in report.missing:
        _count_up(module)


@torch.no_grad()
def initialise(network: DiffusionTransformer, generator: torch.Generator) -> None:
    """Draw fresh weights, equal for equal generators whatever the layout, device and dtype of the network.

    Linear layers are Xavier-uniform over their full shape with zero bias; the noise level's MLP is normal with standard
    deviation 0.02, position tables truncated normal with 0.02; the last modulation layer of each sub-block, the hint's
    last layer and the zero blocks are zero, so that a fresh branch leaves the base's output as it is.

    Args:
        network: with memory (not on the meta device).
        generator: a CPU generator; the draws are float32, one parameter after the other.
    """
    for name, parameter in network.named_parameters():
        full = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        if name.endswith(("pos_emb_h", "pos_emb_w", "pos_emb_t")):
            nn.init.trunc_normal_(full, std=0.02, generator=generator)
        elif name.startswith(("t_embedder.", "augment_sigma_embedder.")):
            nn.init.normal_(full, std=0.02, generator=generator)
        elif name.startswith("view_embeddings."):
            nn.init.normal_(full, generator=generator)
        elif name.endswith(".bias") or _starts_at_zero(name):
            nn.init.zeros_(full)
        elif full.dim() == 1:
            nn.init.ones_(full)
        else:
            nn.init.xavier_uniform_(full, generator=generator)
        fill(parameter, full, name)
    _count_up(network)


def _starts_at_zero(name: str) -> bool:
    modulation = name.startswith("blocks.") and name.endswith("adaLN_modulation.2.weight")
    return modulation or name.startswith(("zero_blocks.", "input_hint_block.14."))


def _count_up(module: nn.Module) -> None:
    for name, buffer in module.named_buffers():
        if name == "pos_embedder.seq":
            buffer.copy_(torch.arange(len(buffer)))
