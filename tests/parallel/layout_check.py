"""Compare networks spread over processes with the same networks in one process; started by test_layouts.py.

python tests/parallel/layout_check.py DATA CONTEXT TENSOR FOLDER [BACKEND]

With a backend of torch.compile, outputs and gradients of compiled blocks are compared.
"""

import itertools
import math
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor

from worldtune.checkpoint.splitting import read_shard, split_checkpoint
from worldtune.common.errors import WorldtuneError
from worldtune.parallel.axes import split_dim
from worldtune.parallel.mesh import Mesh, build_mesh
from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.training.sharding import local, sharded_dims
from worldtune.transfer1.control import ControlNetwork, controlled, copy_base_weights
from worldtune.transfer1.loading import initialise, load_network
from worldtune.transfer1.network import BaseNetwork, DiffusionTransformer
from worldtune.transfer1.parallelize import parallelize, shard_weights

BOUND = 1e-12
SIZES = {
    "in_channels": 17,
    "model_channels": 96,
    "num_blocks": 3,
    "num_heads": 8,
    "mlp_ratio": 2.0,
    "crossattn_emb_channels": 12,
    "adaln_lora_dim": 8,
    "max_img_h": 16,
    "max_img_w": 16,
    "max_frames": 8,
}
BRANCH = {"hint_channels": 20, "num_control_blocks": 2}
VIEWS = {
    "n_views": 2,
    "n_views_emb": 4,
    "view_condition_dim": 6,
    "add_repeat_frame_embedding": True,
    "extra_per_block_abs_pos_emb_type": "sincos",
}
Networks = tuple[BaseNetwork, ControlNetwork]


def make(changes: dict[str, object]) -> Networks:
    return (
        BaseNetwork(NetworkConfig.model_validate(SIZES | changes)),
        ControlNetwork(ControlNetworkConfig.model_validate(SIZES | BRANCH | changes)),
    )


def dense(changes: dict[str, object]) -> Networks:
    """Networks in one process, in float64, in which no parameter is zero."""
    generator = torch.Generator().manual_seed(4)
    networks = make(changes)
    for network in networks:
        network.double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return networks


def spread(changes: dict[str, object], mesh: Mesh, sequence: bool) -> Networks:
    """The same without values, over the processes of `mesh`."""
    with torch.device("meta"):
        networks = make(changes)
    for network in networks:
        network.double()
        parallelize(network, mesh, sequence=sequence)
        network.to_empty(device="cpu")
    return networks


def example(views: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": draw(2, 16, 4, 8, 4),
        "timesteps": draw(2),
        "crossattn_emb": draw(2, 6, 12),
        "hint": draw(2, 16, 4, 8, 4),
        "padding_mask": (draw(1, 1, 64, 32) > 1).double(),
        "fps": torch.tensor([24.0, 12.0]),
        "condition_video_input_mask": (draw(2, 1, 4, 8, 4) > 0).double(),
    }
    if views:
        inputs |= {"view_indices": torch.tensor([[2.0, 2.0, 0.0, 0.0]] * 2), "frame_repeat": draw(2, 2)}
    return inputs


def whole(tensor: Tensor | None) -> Tensor | None:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_close(found: Tensor | None, wanted: Tensor | None, name: str) -> None:
    assert (found is None) == (wanted is None), name
    if found is not None and wanted is not None:
        error = (found - wanted).norm() / wanted.norm().clamp_min(1e-30)
        assert error <= BOUND, f"{name}: {error}"


def run(networks: Networks, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | None]]:
    base, control = networks
    out = controlled(base, control, control_weight=torch.tensor([1.0, 0.5]), **inputs)
    out.square().mean().backward()
    gradients = {f"base {name}": parameter.grad for name, parameter in base.named_parameters()}
    return out, gradients | {f"control {name}": parameter.grad for name, parameter in control.named_parameters()}


def check_outputs_and_gradients(mesh: Mesh, backend: str) -> None:
    for changes in ({}, VIEWS):
        inputs = example(views=bool(changes))
        reference = dense(changes)
        out, gradients = run(reference, inputs)
        for sequence, sharded in itertools.product((False, True), (False, True)):
            if (sequence and mesh.tensor.size() == 1) or (sharded and mesh.replicas.size() == 1):
                continue
            networks = spread(changes, mesh, sequence)
            for network, source in zip(networks, reference, strict=True):
                load_network(network, source.state_dict())
                network.set_recompute("all_but_attention", less=1)
                if backend:
                    network.compile_blocks(backend)
                if sharded:
                    shard_weights(network, mesh)
            found_out, found = run(networks, inputs)
            assert_close(found_out, out, "output")
            assert found.keys() == gradients.keys()
            for name, gradient in found.items():
                if gradient is not None:
                    complete(gradient, mesh)
                assert_close(whole(gradient), gradients[name], name)
                check_placement(name, gradient, mesh)


def complete(gradient: Tensor, mesh: Mesh) -> None:
    """Sum a gradient over the context ranks, where FSDP2 has not."""
    if "replicas" not in sharded_dims(gradient):
        dist.all_reduce(local(gradient), group=mesh.context.get_group())


def check_placement(name: str, gradient: Tensor | None, mesh: Mesh) -> None:
    if not isinstance(gradient, DTensor) or mesh.tensor.size() == 1:
        return
    split = "tensor" in sharded_dims(gradient)
    assert split == (split_dim(name) is not None), name
    if not split:
        # full_tensor() of a replicated tensor is this rank's copy: all copies have to be complete.
        first = gradient.to_local().clone()
        group = mesh.tensor.get_group()
        dist.broadcast(first, dist.get_global_rank(group, 0), group=group)
        assert torch.equal(first, gradient.to_local()), name


def check_fresh_weights(mesh: Mesh) -> None:
    reference, networks = make({}), spread({}, mesh, sequence=True)
    for base, control in (reference, networks):
        initialise(base, torch.Generator().manual_seed(1))
        initialise(control, torch.Generator().manual_seed(2))
        copy_base_weights(base, control)
    for network, wanted in zip(networks, reference, strict=True):
        for name, tensor in wanted.state_dict().items():
            found = whole(network.state_dict()[name])
            assert found is not None
            assert torch.equal(found, tensor.double()), name


def check_split_files(mesh: Mesh, folder: Path) -> None:
    base, _ = dense({})
    source = folder / "base.pt"
    if dist.get_rank() == 0:
        torch.save({f"base_model.net.{name}": tensor for name, tensor in base.state_dict().items()}, source)
        split_checkpoint(source, folder / "parts", mesh.tensor.size())
    dist.barrier()
    network, _ = spread({}, mesh, sequence=True)
    load_network(network, read_shard(folder / "parts", "base", mesh.tensor.size(), mesh.tensor.get_local_rank()))
    for name, tensor in base.state_dict().items():
        found = whole(network.state_dict()[name])
        assert found is not None
        assert torch.equal(found, tensor), name


def check_saved_state(mesh: Mesh, folder: Path) -> None:
    """Plain tensors and DTensors read each other's distributed checkpoints."""
    base, _ = dense({})
    network, _ = spread({}, mesh, sequence=True)
    shard_weights(network, mesh)
    dcp.save(get_model_state_dict(base), checkpoint_id=folder / "plain")
    state = get_model_state_dict(network)
    dcp.load(state, checkpoint_id=folder / "plain")
    dcp.save(get_model_state_dict(network), checkpoint_id=folder / "spread")
    back = {name: torch.zeros_like(tensor) for name, tensor in base.state_dict().items()}
    dcp.load(back, checkpoint_id=folder / "spread")
    for name, tensor in base.state_dict().items():
        assert torch.equal(back[name], tensor), name


def check_refusals(mesh: Mesh) -> None:
    networks = spread({}, mesh, sequence=True)
    inputs = example(views=False)
    for name in ("x", "hint", "condition_video_input_mask"):
        inputs[name] = inputs[name][:, :, :1, :2, :2]
    with pytest.raises(WorldtuneError, match="1 tokens cannot be cut"):
        controlled(*networks, **inputs)
    network: DiffusionTransformer = BaseNetwork(NetworkConfig.model_validate(SIZES | {"num_heads": 3}))
    with pytest.raises(WorldtuneError, match="3 attention heads"):
        parallelize(network, mesh, sequence=False)


def process(rank: int, degrees: tuple[int, int, int], folder: Path, backend: str) -> None:
    torch.set_num_threads(1)
    world_size = math.prod(degrees)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    os.environ["LOCAL_RANK"] = str(rank)
    mesh = build_mesh("cpu", data=degrees[0], context=degrees[1], tensor=degrees[2])
    check_outputs_and_gradients(mesh, backend)
    if not backend:
        check_fresh_weights(mesh)
        check_saved_state(mesh, folder)
    if mesh.tensor.size() > 1 and not backend:
        check_split_files(mesh, folder)
    if mesh.sample.size() > 1:
        check_refusals(mesh)
    dist.destroy_process_group()


if __name__ == "__main__":
    # Forked processes need not import everything anew.
    chosen = (int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    torch.multiprocessing.start_processes(
        process, (chosen, Path(sys.argv[4]), "".join(sys.argv[5:])), nprocs=math.prod(chosen), start_method="fork"
    )
