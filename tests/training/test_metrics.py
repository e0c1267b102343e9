import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from wandb.proto.wandb_internal_pb2 import Record

from worldtune.training.metrics import WandbTracker, append_rows, console_text, read_rows
from worldtune.training.tables import last_steps, write_tables

ROW = {
    "step": 5,
    "loss": 0.25,
    "grad_norm": 1.5,
    "learning_rate": 1e-4,
    "step_s": 2.0,
    "tokens_per_s": 28160.0,
    "mfu": 0.4512,
    "peak_memory_gb": 58.25,
}


def test_the_console_tells_the_utilization_where_it_is_known() -> None:
    assert console_text(ROW, 3725.0) == (
        "loss 0.2500  norm 1.500  lr 1.00e-04  2.00 s/step  28,160 tokens/s  MFU 45.1%  58.2 GiB  left 1:02:05"
    )
    text = console_text({**ROW, "mfu": None, "grad_norm": None}, 5.0)
    assert "MFU" not in text
    assert "norm nan" in text


def test_tables_have_a_column_for_every_part(tmp_path: Path) -> None:
    groups = {"blocks.block0": 0.5, "out": None}
    rows: list[dict[str, Any]] = [
        {"step": 1, "loss": 0.5, "clip_ids": ["a", "b"]},
        {"step": 2, "loss": None, "clip_ids": ["c"], "grad_norm_by_group": groups, "mfu": None},
    ]
    append_rows(tmp_path / "metrics.jsonl", rows)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    write_tables(tmp_path)
    frame = pd.read_parquet(tmp_path / "metrics.parquet")
    assert set(frame) == {
        "step",
        "loss",
        "clip_ids",
        "grad_norm_by_group/blocks.block0",
        "grad_norm_by_group/out",
        "mfu",
    }
    assert frame["step"].tolist() == [1, 2]
    assert frame["loss"].mean() == 0.5
    assert frame["grad_norm_by_group/blocks.block0"].isna().tolist() == [True, False]
    assert frame["clip_ids"].map(list).tolist() == [["a", "b"], ["c"]]
    # A number that no step has is a number all the same.
    assert frame["mfu"].isna().all()
    assert frame["mfu"].dtype == "float64"
    assert not (tmp_path / "validation.parquet").exists()
    assert last_steps(tmp_path) == {"train": 2}


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of an offline run of W&B, whose file is a LevelDB log of protocol buffers."""
    (path,) = folder.glob("*.wandb")
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in map(Record.FromString, records(path.read_bytes()))
        if record.HasField("history")
    ]


def records(content: bytes) -> Iterator[bytes]:
    position, record = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        # A whole record, or the last part of one.
        if kind in (1, 4):
            yield record
            record = b""


def test_what_a_restart_repeats_is_sent_to_wandb_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")

    def start(steps: range, held_out: list[int]) -> None:
        tracker = WandbTracker(
            mode="offline",
            project="worldtune",
            name="toy",
            identity="abcd",
            folder=tmp_path,
            config={},
            recorded=last_steps(tmp_path),
        )
        for step in range(min(held_out[0], steps.start), steps.stop):
            if step in steps:
                append_rows(tmp_path / "metrics.jsonl", [{"step": step}])
                tracker.log({"train/loss": 1.0 / step, "train/grad_norm_by_group/out": 0.5}, step)
            if step in held_out:
                append_rows(tmp_path / "validation.jsonl", [{"step": step}])
                tracker.log({"held_out/own": 0.5, "held_out/other": 0.6}, step)
        tracker.finish()

    # Killed after step 5, the run begins again at step 3; the held-out loss of step 4 was not reached before.
    start(range(1, 6), [0])
    start(range(4, 8), [4])
    runs = sorted((tmp_path / "wandb").glob("offline-run-*-abcd"))
    assert len(runs) == 2
    first, second = (history(run) for run in runs)
    assert [row["held_out/step"] for row in [*first, *second] if "held_out/own" in row] == [0, 4]
    assert [row["train/step"] for row in first if "train/loss" in row] == [1, 2, 3, 4, 5]
    assert [row["train/step"] for row in second if "train/loss" in row] == [6, 7]
    assert first[1]["train/grad_norm_by_group/out"] == 0.5
    assert read_rows(tmp_path / "metrics.jsonl")
