"""Draw held-out clips from the export of a run: control, ground truth and sample side by side.

python src/scripts/sample.py --run demo_edge_posttrain
python src/scripts/sample.py --run demo_edge_posttrain --clips 4 --guidance 3 --output preview
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.recipe.identity import check_fingerprint, values_that_affect
from worldtune.recipe.load import load_recipe, recipe_path


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw held-out clips from the export of a run.")
    parser.add_argument("--run", required=True, help="name of the run; [sampling] of its recipe says how to draw")
    parser.add_argument("--clips", type=int, help="number of clips in the place of the recipe's")
    parser.add_argument("--steps", type=int, help="sampler steps in the place of the recipe's")
    parser.add_argument("--guidance", type=float, help="guidance in the place of the recipe's")
    parser.add_argument("--seed", type=int, help="seed of the noise in the place of the recipe's")
    parser.add_argument("--given-frames", type=int, default=0, help="latent frames that are given; default 0")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: CUDA if there is one"
    )
    parser.add_argument("--output", type=Path, help="folder of the files; default: samples/ of the run")
    parser.add_argument("--results", default=Path("results"), type=Path, help="folder of the runs")
    parser.add_argument("--checkpoints", default=Path("checkpoints"), type=Path, help="folder of the checkpoints")
    parser.add_argument("--datasets", default=Path("datasets"), type=Path, help="folder of the datasets")
    parser.add_argument("--expect", metavar="FINGERPRINT", help="refuse if the recipe's values are not these")
    parser.add_argument("--expect-trained", metavar="FINGERPRINT", help="refuse if other values were trained with")
    args = parser.parse_args()
    named = {"num_clips": args.clips, "num_steps": args.steps, "guidance": args.guidance, "seed": args.seed}
    overrides = [f"sampling.{key}={value}" for key, value in named.items() if value is not None]
    recipe = load_recipe(args.run, overrides)
    check_fingerprint(args.expect, values_that_affect(recipe, "report"), str(recipe_path(args.run)))
    # Imported late: a typo on the command line should not wait for PyTorch.
    import torch

    from worldtune.transfer1.drawing import draw_run

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    run_dir = args.results / args.run
    draw_run(
        run_dir,
        args.output or run_dir / "samples",
        sampling=recipe.sampling,
        device=torch.device(device),
        num_given_frames=args.given_frames,
        checkpoints_dir=args.checkpoints,
        datasets_dir=args.datasets,
        expected=args.expect_trained,
    )


if __name__ == "__main__":
    run(main)
