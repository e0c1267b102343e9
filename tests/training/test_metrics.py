import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from wandb.proto.wandb_internal_pb2 import Record
from wandb_server import wandb_server

from worldtune.training.metrics import WandbTracker, append_rows, console_text
from worldtune.training.tables import last_steps, write_tables

ROW = {
    "step": 5,
    "loss": 0.25,
    "edm_loss": 0.3,
    "grad_norm": 1.5,
    "learning_rate": 1e-4,
    "step_s": 2.0,
    "tokens_per_s": 28160.0,
    "mfu": 0.4512,
    "peak_memory_gb": 58.25,
}


def test_the_console_tells_the_utilization_where_it_is_known() -> None:
    assert console_text(ROW, 3725.0) == (
        "loss 0.2500  edm_loss 0.3000  norm 1.500  lr 1.00e-04  2.00 s/step  28,160 tokens/s  MFU 45.1%  58.2 GiB  "
        "left 1:02:05"
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


def start(folder: Path, mode: Literal["online", "offline"], steps: range, held_out: int) -> None:
    """Make steps as the trainer does; the held-out loss of one step is measured before the step after it."""
    tracker = WandbTracker(
        mode=mode,
        project="worldtune",
        name="toy",
        identity="abcd",
        folder=folder,
        config={},
        recorded=last_steps(folder),
    )
    for step in steps:
        if step == held_out + 1:
            append_rows(folder / "validation.jsonl", [{"step": held_out}])
            tracker.log({"held_out/own": 0.5, "held_out/other": 0.6}, held_out)
        append_rows(folder / "metrics.jsonl", [{"step": step}])
        tracker.log({"train/loss": 1.0 / step, "train/grad_norm_by_group/out": 0.5}, step)
    tracker.finish()


def steps_of(rows: list[dict[str, Any]], kind: str, name: str) -> list[int]:
    return [row[f"{kind}/step"] for row in rows if f"{kind}/{name}" in row]


def test_what_a_restart_repeats_is_written_offline_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    # Killed after step 5, the run begins again behind step 3, whose held-out loss was not reached before.
    start(tmp_path, "offline", range(1, 6), held_out=0)
    start(tmp_path, "offline", range(4, 8), held_out=3)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*-abcd*"))
    assert len(runs) == 2
    first, second = (history(run) for run in runs)
    assert steps_of(first, "held_out", "own") + steps_of(second, "held_out", "own") == [0, 3]
    assert steps_of(first, "train", "loss") == [1, 2, 3, 4, 5]
    assert steps_of(second, "train", "grad_norm_by_group/out") == [6, 7]


def test_a_resumed_run_sends_what_the_server_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        start(tmp_path, "online", range(1, 6), held_out=0)
        assert steps_of(server.history, "train", "loss") == [1, 2, 3, 4, 5]
        # The process was killed before its last row was sent.
        server.history.pop()
        server.summary["train/step"] = 4
        start(tmp_path, "online", range(4, 8), held_out=3)
        assert steps_of(server.history, "train", "loss") == [1, 2, 3, 4, 5, 6, 7]
        assert steps_of(server.history, "held_out", "own") == [0, 3]
        assert {variables["name"] for variables in server.upserts} == {"abcd"}
