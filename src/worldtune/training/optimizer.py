"""AdamW on float32 master weights, and the warm-up of its learning rate."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from worldtune.recipe.schema import Optimizer as OptimizerConfig
from worldtune.recipe.schema import Schedule as ScheduleConfig
from worldtune.training.sharding import local


def learning_rate_factor(step: int, config: ScheduleConfig) -> float:
    """Return the factor on the peak learning rate for the update after `step` completed steps."""
    if step >= config.warmup_steps:
        return 1.0
    return config.warmup_start_factor + (1.0 - config.warmup_start_factor) * step / config.warmup_steps


class MasterAdamW:
    """AdamW over float32 copies of the parameters, whose rounded values are the live parameters.

    The update is elementwise, so each rank works on the local shards of split parameters and no communication takes
    place. All parameters are one group with weight decay. A parameter without a gradient keeps exactly its value, as
    the dead final layer of a control branch does.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        """Copy the parameters.

        Args:
            parameters: by name; plain tensors or DTensors, of any floating type.
            config: the recipe's section.
        """
        self.live = {name: local(parameter) for name, parameter in parameters.items()}
        self.masters = {name: tensor.float().clone() for name, tensor in self.live.items()}
        self._config = config
        on_cuda = any(tensor.is_cuda for tensor in self.masters.values())
        self._adamw = torch.optim.AdamW(
            list(self.masters.values()),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=on_cuda,
        )
        for master in self.masters.values():
            # The state exists from the start, so that a checkpoint of any step has the same entries.
            self._adamw.state[master] = {
                "step": torch.zeros((), device=master.device if on_cuda else "cpu"),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    def moments(self, which: str) -> dict[str, Tensor]:
        """Return the local first ("exp_avg") or second ("exp_avg_sq") moments by name; they are not copies."""
        return {name: self._adamw.state[master][which] for name, master in self.masters.items()}

    def update_counts(self) -> dict[str, int]:
        """Return how often each parameter was updated."""
        return {name: int(self._adamw.state[master]["step"].item()) for name, master in self.masters.items()}

    def set_update_counts(self, counts: Mapping[str, int]) -> None:
        """Set how often each parameter was updated; the moments' bias correction depends on it."""
        for name, master in self.masters.items():
            self._adamw.state[master]["step"].fill_(counts[name])

    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """Update masters and live parameters.

        Args:
            gradients: float32, shaped as the local masters; parameters that are not in it keep their values.
            learning_rate: rate of this update.
        """
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        for name, master in self.masters.items():
            master.grad = gradients.get(name)
        self._adamw.step()
        for master in self.masters.values():
            master.grad = None
        self.copy_to_live()

    @torch.no_grad()
    def copy_to_live(self) -> None:
        """Round the masters into the live parameters."""
        for name, master in self.masters.items():
            self.live[name].copy_(master)
