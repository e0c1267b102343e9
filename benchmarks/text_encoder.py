"""Prompts a second of the T5 encoder as the stage runs it: by length in batches on a GPU, each alone on the CPU.

    python benchmarks/text_encoder.py --size 11b --prompts 2048 --folder DIR     # one GPU, 10 GB of disk
    python benchmarks/text_encoder.py --size tiny --prompts 256 --folder DIR --device cpu

Weights are random: speed does not depend on them. They are written to --folder as the hub has them and loaded by the
class that the stage uses, `worldtune.annotate.t5.TextEncoder`. The baseline is the original's way, one prompt at a time
in float32, padded to 512 tokens (spec/transfer1-training.md 6.3), of the same prompts, as many as its seconds admit.
"""

import argparse
import random
import time
from pathlib import Path

import torch
from transformers import T5Config, T5EncoderModel

from worldtune.annotate.t5 import TextEncoder
from worldtune.demo.text_encoder import make_tokenizer, vocabulary

SIZES = {
    "11b": {"d_model": 1024, "d_kv": 128, "d_ff": 65536, "num_heads": 128, "num_layers": 24},
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_heads": 4, "num_layers": 4},
}
"""Shapes by name; 11b are those of google-t5/t5-11b, whose encoder has 4.8 billion parameters."""
MAX_TOKENS = 512


def write_encoder(folder: Path, size: str) -> int:
    """Write an encoder with random weights in bfloat16 and return its number of parameters."""
    tokenizer = make_tokenizer()
    config = T5Config(vocab_size=32128, relative_attention_num_buckets=32, **SIZES[size])
    with torch.device("meta"):
        model = T5EncoderModel(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.tie_weights()
    for parameter in model.parameters():
        # Small, so that 24 layers stay finite.
        parameter.data.uniform_(-0.02, 0.02)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_prompts(count: int, seed: int) -> list[str]:
    """Return texts of 30 to 300 words, as captions of videos have them."""
    draw = random.Random(seed)
    words = [piece[1:] for piece, _ in vocabulary() if piece.startswith("\u2581") and len(piece) > 2]
    return [" ".join(draw.choices(words, k=draw.randint(30, 300))) for _ in range(count)]


def wait(device: torch.device) -> None:
    """Wait for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--baseline-seconds", type=float, default=30.0, help="length of the baseline's part")
    arguments = parser.parse_args()
    parameters = write_encoder(arguments.folder, arguments.size)
    prompts = make_prompts(arguments.prompts, seed=0)
    started = time.perf_counter()
    encoder = TextEncoder(arguments.folder, arguments.device, arguments.precision)
    device = encoder.device
    loaded = time.perf_counter() - started
    next(encoder.encode(prompts[:1], MAX_TOKENS))
    wait(device)
    started = time.perf_counter()
    tokens = sum(len(embedding.tokens) for _, embedding in encoder.encode(prompts, MAX_TOKENS))
    batched = len(prompts) / (time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, T5 encoder of {parameters / 1e9:.2f} billion parameters, random weights")
    print(f"loaded in {loaded:.1f} s; {len(prompts)} prompts, {tokens / len(prompts):.0f} tokens each in the mean")
    precision, model = encoder.precision, encoder.model.float()
    done, started = 0, time.perf_counter()
    with torch.inference_mode():
        while done < len(prompts) and time.perf_counter() - started < arguments.baseline_seconds:
            inputs = encoder.tokenizer(
                prompts[done], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
            ).to(device)
            mask = inputs["attention_mask"]
            hidden = model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
            hidden[0, : int(mask.sum())].half().cpu()
            done += 1
    baseline = done / (time.perf_counter() - started)
    print(f"one at a time, float32, padded to {MAX_TOKENS}: {baseline:.2f} prompts/s ({done} prompts; baseline)")
    way = "alone" if encoder.tokens_per_batch == 1 else "in batches by length"
    print(f"{way}, {precision}: {batched:.2f} prompts/s = {batched / baseline:.1f} x baseline")
    if device.type == "cuda":
        print(f"peak memory of the batches: {peak:.1f} GiB")


if __name__ == "__main__":
    main()
