"""The README of an exported model: what it is, how it was trained, its numbers, how to load it."""

from collections.abc import Mapping
from typing import Any

from worldtune.recipe.schema import Recipe

CARD = """---
library_name: worldtune
tags: [video, controlnet, {tags}]
base_model: {base_repo}
---

# {run}

{description}.

A control branch that steers the frozen base network `{base_path}` by **{kind}** videos: {blocks}
transformer blocks of width {width}, whose outputs are added to the base's first blocks. It is of no use without the
base.

| | |
|---|---|
| trained steps | {step} of {batch} clips each |
| video | {num_frames} frames, size table row {resolution} |
| dataset | {dataset}, digest `{digest}` |
| base checkpoint | SHA-256 `{base_sha256}` |
| started from | {start} |
| learning rate | {learning_rate:.4g}, AdamW, weight decay {weight_decay:g} |
| precision | {precision}, float32 master weights |
| exported weights | power-function average, relative width {ema_rate:g} |
| trained on | {hardware} |
| identity | `{identity}` |

## Held-out loss

Weighted squared error on clips that were never trained on, at fixed noise levels with fixed noise. *Other control*
gives the model the {kind} video of another clip instead of the clip's own.

{loss_table}

## Files

| file | content |
|---|---|
| `control.safetensors` | averaged weights, float32, original names (`net.*`) |
| `raw/control.safetensors` | weights of the last step, not averaged |
| `{kind}_control.pt` | averaged weights and the base's uncertainty head, as in the original `*_control.pt` files |
| `config.json` | sizes of both networks |
| `provenance.json` | recipe, hashes, versions, hardware, metrics, the rules that made this model |

## Loading

```python
import json
from pathlib import Path

from safetensors.torch import load_file
from worldtune.recipe.network import ControlNetworkConfig
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.loading import load_network

folder = Path("{folder}")
network = json.loads((folder / "config.json").read_text())["network"]
control = ControlNetwork(ControlNetworkConfig(**network["control"]), network["rope_angles"])
report = load_network(control, load_file(folder / "control.safetensors"))
```

`python src/scripts/sample.py --run {run}` draws samples from it. `{kind}_control.pt` also goes into the original code
in the place of its `{kind}_control.pt`.
"""


def model_card(recipe: Recipe, provenance: Mapping[str, Any]) -> str:
    """Return the model card of an export in Markdown."""
    base = provenance["checkpoints"]["base"]
    control = provenance["checkpoints"].get("control")
    network = recipe.network.control
    hardware = provenance["hardware"]
    return CARD.format(
        run=provenance["run"],
        description=recipe.experiment.description.rstrip("."),
        kind=recipe.control.label,
        tags=", ".join(recipe.control.kinds),
        base_repo=base["path"].rpartition("/")[0],
        base_path=base["path"],
        base_sha256=base["sha256"],
        start=f"`{control['path']}`, SHA-256 `{control['sha256']}`" if control else "a copy of the base's first blocks",
        blocks=network.num_control_blocks,
        width=network.model_channels,
        step=provenance["step"],
        batch=recipe.training.global_batch_size,
        num_frames=recipe.data.num_frames,
        resolution=recipe.data.resolution,
        dataset=provenance["dataset"]["name"],
        digest=provenance["dataset"]["digest"],
        learning_rate=recipe.optimizer.learning_rate,
        weight_decay=recipe.optimizer.weight_decay,
        precision=recipe.training.precision,
        ema_rate=provenance["ema_rate"],
        hardware=f"{hardware.get('num_processes', '?')} processes on {hardware.get('device', '?')}",
        identity=provenance["identity"],
        loss_table=_loss_table(provenance["metrics"].get("held_out_loss", {})),
        folder=f"results/{provenance['run']}/model",
    )


def _loss_table(losses: Mapping[str, Mapping[str, float]]) -> str:
    columns = {
        "first": "before training",
        "last": "after training",
        "last_other_control": "after training, other control",
    }
    present = {key: title for key, title in columns.items() if losses.get(key)}
    if not present:
        return "Not measured."
    lines = ["| sigma | " + " | ".join(present.values()) + " |", "|---" * (len(present) + 1) + "|"]
    for sigma in sorted({sigma for key in present for sigma in losses[key]}, key=float):
        cells = [f"{losses[key][sigma]:.4g}" if sigma in losses[key] else "" for key in present]
        lines.append(f"| {sigma} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
