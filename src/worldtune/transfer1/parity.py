"""Compare the networks with reference tensors of a case, in float32 on the CPU.

    python -m worldtune.transfer1.parity CASE_PREFIX

CASE_PREFIX.json holds the configurations; CASE_PREFIX.{base,ctrl,io}.safetensors the weights, and the inputs with the
reference outputs, features and gradients. Prints the error of each and exits with status 1 where one is over 1e-5.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.common.script import run
from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.loading import load_logvar, load_network
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import BaseNetwork

BOUND = 1e-5
"""Largest error that passes."""
ZERO_BOUND = 1e-12
"""Largest absolute value that passes where the reference is zero."""
SIGMA_DATA = 0.5
"""Standard deviation of the scaled latents in the cases with a denoiser."""
NO_REFERENCE = ("in/", "bf16/")
"""Beginnings of the names of tensors that are not compared: inputs, and another precision."""
VIEW_ARGUMENTS = ("n_views", "n_views_emb", "view_condition_dim", "add_repeat_frame_embedding")
"""Constructor arguments of multi-view networks."""
VIDEO_INPUTS = {
    "fps": "fps",
    "padding_mask": "padding_mask",
    "condition_video_input_mask": "condition_video_input_mask",
    "condition_video_augment_sigma": "condition_video_augment_sigma",
    "view_indices_B_T": "view_indices",
    "frame_repeat": "frame_repeat",
}
"""Names of a case's inputs -> arguments of the networks."""


def error_of(found: Tensor | None, reference: Tensor) -> float:
    """Return the larger of the relative L2 error and the largest error over the largest reference value, in float64.

    A zero reference asks for zeros (below 1e-12). None, NaN or another shape give infinity.
    """
    if found is None or found.shape != reference.shape:
        return float("inf")
    reference = reference.double()
    difference = found.detach().double() - reference
    if not bool(torch.isfinite(difference).all()):
        return float("inf")
    if not bool(reference.any()):
        return 0.0 if float(difference.abs().max()) <= ZERO_BOUND else float("inf")
    relative = float(difference.norm() / reference.norm())
    return max(relative, float(difference.abs().max() / reference.abs().max()))


def config_of(values: Mapping[str, Any], *, control: bool, multiview: bool) -> NetworkConfig:
    """Return the configuration that a case's constructor arguments mean."""
    fields = ControlNetworkConfig.model_fields if control else NetworkConfig.model_fields
    known = {key: value for key, value in values.items() if key in fields and value is not None}
    if not multiview:
        # The original's other classes take these and have no use for them.
        known = {key: value for key, value in known.items() if key not in VIEW_ARGUMENTS}
    if multiview:
        # Multi-view networks have the fixed embedding whatever type the case states.
        known["extra_per_block_abs_pos_emb_type"] = "sincos"
    if not control:
        return NetworkConfig(**known)
    # No effect while the base is frozen, as it is in every case with a branch.
    known.pop("dropout_ctrl_branch", None)
    mask = values.get("layer_mask") or []
    if True in mask:
        known["num_control_blocks"] = mask.index(True)
    known.setdefault("num_control_blocks", values["num_blocks"])
    return ControlNetworkConfig(**known)


class Case:
    """One case: its networks filled with its weights, its inputs and its references."""

    def __init__(self, prefix: str) -> None:
        """Read CASE_PREFIX.json and the tensors beside it.

        Raises:
            WorldtuneError: a file is missing, or weights do not fit the networks.
        """
        self.description = read_json(Path(f"{prefix}.json"))
        for part in ("io", "base"):
            if not Path(f"{prefix}.{part}.safetensors").is_file():
                raise WorldtuneError(f"{prefix}.{part}.safetensors does not exist; {prefix} is no whole case.")
        self.tensors = load_file(f"{prefix}.io.safetensors")
        multiview = bool(self.description.get("multiview"))
        base_state = load_file(f"{prefix}.base.safetensors")
        base_config = config_of(self.description["base_config"], control=False, multiview=multiview)
        self.base = BaseNetwork(base_config, "exact")
        load_network(self.base, base_state)
        self.logvar: LogVariance | None = None
        if any("logvar." in name for name in base_state):
            self.logvar = LogVariance()
            load_logvar(self.logvar, base_state)
        self.control: ControlNetwork | None = None
        if Path(f"{prefix}.ctrl.safetensors").exists():
            config = config_of(self.description["ctrl_config"], control=True, multiview=multiview)
            assert isinstance(config, ControlNetworkConfig)
            self.control = ControlNetwork(config, "exact")
            load_network(self.control, load_file(f"{prefix}.ctrl.safetensors"))
        self.inputs: dict[str, Any] = {
            argument: self.tensors[f"in/{name}"]
            for name, argument in VIDEO_INPUTS.items()
            if f"in/{name}" in self.tensors
        }
        # The original ignores an argument that the network has no use for.
        if not base_config.add_augment_sigma_embedding:
            self.inputs.pop("condition_video_augment_sigma", None)
        self.errors: dict[str, float] = {}

    def input(self, name: str) -> Tensor:
        """Return the input tensor `name`."""
        return self.tensors[f"in/{name}"]

    def check(self, name: str, found: Tensor | None) -> None:
        """Note the error of `found` where the case has a reference `name`."""
        if name in self.tensors:
            self.errors[name] = error_of(found, self.tensors[name])

    def check_features(self, prefix: str, features: Mapping[str, Tensor]) -> None:
        """Note the errors of features [L, B, D], which the case has as [t, h, w, B, D]."""
        grid = self.base.grid(self.input("x"))
        for name, feature in features.items():
            self.check(f"{prefix}{name}", feature.unflatten(0, grid))

    def check_gradients(self, network: BaseNetwork | ControlNetwork, group: str, prefix: str, norms: str) -> None:
        """Note the errors of a network's gradients, and of their norms where the description has those too."""
        gradients = {prefix + name: parameter.grad for name, parameter in network.named_parameters()}
        wanted = {name.removeprefix(group) for name in self.tensors if name.startswith(group)}
        for name in sorted(wanted):
            self.check(group + name, gradients.get(name))
        for name, norm in (self.description.get(norms) or {}).items():
            if name not in gradients:
                if "logvar" not in name:
                    self.errors[f"{norms}/{name}"] = float("inf")
                continue
            gradient = gradients[name]
            if norm is None or gradient is None:
                self.errors[f"{norms}/{name}"] = 0.0 if norm is None and gradient is None else float("inf")
            else:
                self.errors[f"{norms}/{name}"] = error_of(gradient.norm(), torch.tensor(norm))

    def residuals(
        self, x: Tensor, timesteps: Tensor, weight: float, features: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Return the branch's residuals on the case's hint."""
        assert self.control is not None
        inputs = {name: value for name, value in self.inputs.items() if name != "condition_video_augment_sigma"}
        text, hint = self.input("crossattn_emb"), self.input("hint")
        return self.control(x, timesteps, text, hint=hint, control_weight=weight, features=features, **inputs)


def check_base(case: Case) -> None:
    """Compare the base alone: output, features, loss, gradients; and the image path, where the case has it."""
    features: dict[str, Tensor] = {}
    out = case.base(
        case.input("x"), case.input("timesteps"), case.input("crossattn_emb"), features=features, **case.inputs
    )
    case.check("out/base", out)
    case.check("out/video", out)
    case.check_features("feat/base/", features)
    if "in/target" in case.tensors:
        loss = (out - case.input("target")).square().mean()
        case.check("out/base_loss", loss)
    else:
        loss = out.square().mean()
    loss.backward()
    case.check_gradients(case.base, "grad_base/", "base_model.net.", "grad_norms_base_alone")
    without = case.description.get("params_without_gradient")
    if without is not None and not isinstance(without, list):
        case.errors["params_without_gradient"] = float("inf")
    elif without is not None:
        wanted = {name.removeprefix("base_model.").removeprefix("net.") for name in without}
        found = {name for name, parameter in case.base.named_parameters() if parameter.grad is None}
        case.errors["params_without_gradient"] = 0.0 if wanted == found else float("inf")
    if "in/x_image" in case.tensors:
        image = case.base(
            case.input("x_image"),
            case.input("timesteps"),
            case.input("crossattn_emb"),
            padding_mask=case.input("padding_mask"),
            data_type="image",
        )
        case.check("out/image", image)


def check_control(case: Case) -> None:
    """Compare the branch and the base under it: features, residuals, output, loss, gradients."""
    if case.control is None:
        return
    case.base.requires_grad_(False)
    if "in/hint" not in case.tensors:
        # Without a hint the base runs alone.
        out = case.base(case.input("x"), case.input("timesteps"), case.input("crossattn_emb"), **case.inputs)
        case.check("out/combined", out)
        return
    x, timesteps = case.input("x"), case.input("timesteps")
    features: dict[str, Tensor] = {}
    weight = case.description.get("control_weight")
    residuals = case.residuals(x, timesteps, 1.0 if weight is None else weight, features)
    case.check_features("feat/", {"guided_hint": features.pop("guided_hint")})
    case.check_features("feat/ctrl/", features)
    case.check_features("out/x_ctrl/", residuals)
    out = case.base(x, timesteps, case.input("crossattn_emb"), x_ctrl=residuals, **case.inputs)
    case.check("out/combined", out)
    if "in/target" not in case.tensors:
        return
    loss = (out - case.input("target")).square().mean()
    case.check("out/combined_loss", loss)
    loss.backward()
    case.check_gradients(case.control, "grad_ctrl/", "net.", "grad_norms_ctrl_combined")


@torch.no_grad()
def check_denoiser(case: Case) -> None:
    """Compare the EDM denoiser built on the networks and its losses, where the case has them."""
    needed = {"denoise/sigma", "in/hint", "in/target"}
    if not needed <= case.tensors.keys() or case.control is None or case.logvar is None:
        return
    sigma = case.tensors["denoise/sigma"]
    c_noise = sigma.log() / 4
    total = sigma**2 + SIGMA_DATA**2
    c_skip, c_out, c_in = SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt(), 1 / total.sqrt()
    x = c_in * case.input("x")
    residuals = case.residuals(x, c_noise, 1.0, None)
    net_out = case.base(x, c_noise, case.input("crossattn_emb"), x_ctrl=residuals, **case.inputs)
    x0 = c_skip * case.input("x") + c_out * net_out
    weight = total / (sigma * SIGMA_DATA) ** 2
    logvar = case.logvar(c_noise)
    squares = weight * (case.input("target") - x0).square()
    case.check("denoise/sigma", sigma)
    case.check("denoise/c_noise", c_noise)
    case.check("denoise/net_out", net_out)
    case.check("denoise/x0_pred", x0)
    case.check("denoise/weights_per_sigma", weight)
    case.check("denoise/logvar", logvar)
    case.check("denoise/edm_loss_mean", squares.mean())
    case.check("denoise/kendall_loss_mean", (squares * torch.exp(-logvar) + logvar).mean())


def errors_of_case(prefix: str) -> dict[str, float]:
    """Return the error of every output, feature and gradient of a case, by the reference's name.

    Raises:
        WorldtuneError: a file is missing, or weights do not fit the networks.
    """
    case = Case(prefix)
    check_base(case)
    check_control(case)
    check_denoiser(case)
    # A reference that nothing was compared with must not pass in silence.
    for name in case.tensors:
        if not name.startswith(NO_REFERENCE) and name not in case.errors:
            case.errors[name] = float("inf")
    return case.errors


def main() -> None:
    """Print the errors of one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", help="path of a case without .json")
    errors = errors_of_case(parser.parse_args().prefix)
    for name, error in errors.items():
        sys.stdout.write(f"{error:9.2e} {'' if error <= BOUND else 'FAILS '}{name}\n")
    if not errors:
        raise WorldtuneError("the case has no reference to compare with.")
    failed = sum(error > BOUND for error in errors.values())
    sys.stdout.write(f"{len(errors)} compared, {failed} over {BOUND:g}, largest error {max(errors.values()):.2e}\n")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
