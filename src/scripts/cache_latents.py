"""Encode the clips of one shard of a dataset by a video tokenizer, for recipes with data.cache_latents.

    python src/scripts/cache_latents.py --dataset hdvila --shard 0003 --num-frames 121 --resolution 720 \\
        --precision bfloat16 --tokenizer nvidia/Cosmos-Tokenize1-CV8x8x8-720p

Makes datasets/hdvila/latents/.../<clip_id>.safetensors and the shard's manifest. The tokenizer is loaded once, and only
if a clip changed.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.latents import LatentsKind
from worldtune.recipe.schema import VIDEO_SIZES_WH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset with its videos")
    parser.add_argument("--shard", required=True, help="four digits")
    parser.add_argument("--tokenizer", required=True, help="folder below the one of checkpoints")
    parser.add_argument("--num-frames", required=True, type=int, help="frames of a sample, 8k + 1")
    parser.add_argument("--resolution", required=True, choices=tuple(VIDEO_SIZES_WH), help="row of the size table")
    parser.add_argument("--precision", required=True, choices=("bfloat16", "float32"), help="type of the latents")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--workers", type=int, default=0, help="processes that read videos ahead; default: none")
    parser.add_argument("--datasets", default=Path("datasets"), type=Path, help="folder of the datasets")
    parser.add_argument("--checkpoints", default=Path("checkpoints"), type=Path, help="folder of the checkpoints")
    arguments = parser.parse_args()
    # Imported late: a typo on the command line should not wait for PyTorch.
    import torch

    from worldtune.transfer1.latents import cache_latents

    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    kind = LatentsKind(
        tokenizer=arguments.tokenizer,
        num_frames=arguments.num_frames,
        resolution=arguments.resolution,
        precision=arguments.precision,
    )
    print(
        cache_latents(
            arguments.dataset,
            arguments.shard,
            kind,
            datasets=arguments.datasets,
            checkpoints=arguments.checkpoints,
            device=torch.device(automatic if arguments.device == "auto" else arguments.device),
            num_workers=arguments.workers,
        )
    )


if __name__ == "__main__":
    run(main)
