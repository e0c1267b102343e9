import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldtune.dataset.ledger import Ledger, open_ledger

ROW = {"status": "ok"}


def know(root: Path, shard: str, clip: str, value: int) -> bool:
    """Return whether a job of this shard takes the clip's file for the one of this value."""
    with open_ledger(root, "t5", shard) as ledger:
        ledger.adopt([clip])
        return ledger.current(clip, {"value": value}) is not None


def write(root: Path, shard: str, clip: str, value: int) -> None:
    """Do what a job of this shard does with a clip."""
    with open_ledger(root, "t5", shard) as ledger:
        ledger.adopt([clip])
        ledger.start(clip)
        finish(ledger, clip, value, output=True)


def finish(ledger: Ledger, clip: str, value: int, *, output: bool = False) -> None:
    path = ledger.root / f"{clip}.bin"
    if output:
        path.write_bytes(b"12345")
    ledger.finish(clip, {"value": value}, (path,) if output else (), ROW | {"value": value})


def test_last_record_counts_and_inputs_must_be_equal(tmp_path):
    ledger = Ledger(tmp_path, "ingest", "0000")
    finish(ledger, "a", 1)
    finish(ledger, "b", 1)
    finish(ledger, "a", 2)
    for reader in (ledger, Ledger(tmp_path, "ingest", "0000")):
        assert reader.current("a", {"value": 2})["row"]["value"] == 2
        assert reader.current("a", {"value": 1}) is None
        assert reader.current("b", {"value": 1}) is not None
        assert reader.current("c", {"value": 1}) is None


def test_output_must_be_there_with_its_size(tmp_path):
    finish(Ledger(tmp_path, "ingest", "0000"), "a", 1, output=True)
    ledger = Ledger(tmp_path, "ingest", "0000")
    assert ledger.current("a", {"value": 1}) is not None
    (tmp_path / "a.bin").write_bytes(b"1234")
    assert ledger.current("a", {"value": 1}) is None
    (tmp_path / "a.bin").unlink()
    assert ledger.current("a", {"value": 1}) is None


def test_started_clip_is_current_only_once_it_is_finished(tmp_path):
    ledger = Ledger(tmp_path, "ingest", "0000")
    finish(ledger, "a", 1, output=True)
    finish(ledger, "b", 1)
    ledger.start("a", "c")
    for reader in (ledger, Ledger(tmp_path, "ingest", "0000")):
        assert reader.current("a", {"value": 1}) is None
        assert reader.current("b", {"value": 1}) is not None
        assert reader.current("c", {"value": 1}) is None
    finish(ledger, "a", 2, output=True)
    for reader in (ledger, Ledger(tmp_path, "ingest", "0000")):
        assert reader.current("a", {"value": 2}) is not None


def test_ledger_without_started_records_is_read(tmp_path):
    ledger = Ledger(tmp_path, "ingest", "0000")
    ledger.path.parent.mkdir(parents=True)
    ledger.path.write_text('{"clip_id":"a","inputs":{"value":1},"outputs":{},"row":{"status":"ok"}}\n')
    assert Ledger(tmp_path, "ingest", "0000").current("a", {"value": 1})["row"] == ROW


def test_stages_have_their_own(tmp_path):
    finish(Ledger(tmp_path, "ingest", "0000"), "a", 1)
    assert Ledger(tmp_path, "captions", "0000").current("a", {"value": 1}) is None


def test_clip_that_moved_to_another_shard_is_known_there(tmp_path):
    write(tmp_path, "0000", "a", 1)
    old = Ledger(tmp_path, "t5", "0000").path.read_bytes()
    assert know(tmp_path, "0003", "a", 1)
    assert not know(tmp_path, "0003", "a", 2)
    # The old shard's ledger may go: the record was copied, once, and the ledger it came from was only read.
    assert Ledger(tmp_path, "t5", "0003").path.read_bytes() == old.splitlines(keepends=True)[-1]
    assert Ledger(tmp_path, "t5", "0000").path.read_bytes() == old
    assert Ledger(tmp_path, "t5", "0003").current("a", {"value": 1}) is not None
    (tmp_path / "a.bin").write_bytes(b"of another size")
    assert not know(tmp_path, "0004", "a", 1)


def test_only_the_ledger_that_wrote_a_moved_clip_last_is_believed(tmp_path):
    """All values have files of one size here."""
    write(tmp_path, "0000", "a", 1)
    write(tmp_path, "0003", "a", 2)
    write(tmp_path, "0001", "a", 3)
    for shard in ("0000", "0003", "0001", "0007"):
        assert [know(tmp_path, shard, "a", value) for value in (1, 2, 3)] == [False, False, True]
    write(tmp_path, "0003", "a", 1)
    assert know(tmp_path, "0000", "a", 1)
    assert not know(tmp_path, "0001", "a", 3)


def test_clip_that_another_shard_began_to_write_is_not_known(tmp_path):
    write(tmp_path, "0000", "a", 1)
    with open_ledger(tmp_path, "t5", "0003") as ledger:
        ledger.adopt(["a"])
        ledger.start("a")
    assert not know(tmp_path, "0000", "a", 1)
    assert not know(tmp_path, "0001", "a", 1)


def test_two_shards_that_wrote_a_clip_at_once_know_nothing_of_it(tmp_path):
    """The job of a shard of the old number goes on beside the one of the new number."""
    with open_ledger(tmp_path, "t5", "0000") as old, open_ledger(tmp_path, "t5", "0003") as new:
        for ledger, value in ((old, 1), (new, 2)):
            ledger.start("a")
            finish(ledger, "a", value, output=True)
    for shard in ("0000", "0003", "0001"):
        assert [know(tmp_path, shard, "a", value) for value in (1, 2)] == [False, False]


@pytest.mark.parametrize("torn", ["started", "finished"])
def test_clip_whose_last_line_is_torn_never_passes_for_an_older_state(tmp_path, torn):
    """After half a start no file was written; half an end leaves its start as the last word."""
    ledger = Ledger(tmp_path, "t5", "0000")
    finish(ledger, "a", 1, output=True)
    ledger.start("a")
    if torn == "finished":
        finish(ledger, "a", 2, output=True)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-3])
    reader = Ledger(tmp_path, "t5", "0000")
    assert (reader.current("a", {"value": 1}) is None) == (torn == "finished")
    assert reader.current("a", {"value": 2}) is None


def test_second_job_of_a_shard_waits_and_then_sees_what_the_first_did(tmp_path, caplog):
    found = []

    def second() -> None:
        with open_ledger(tmp_path, "t5", "0000") as ledger:
            found.append(ledger.current("a", {"value": 1}))

    with open_ledger(tmp_path, "t5", "0000") as ledger:
        # Another shard is another job.
        with open_ledger(tmp_path, "t5", "0001"):
            assert caplog.text == ""
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        assert not found
        finish(ledger, "a", 1)
    thread.join(30)
    assert [record["row"]["value"] for record in found] == [1]
    assert "another job of stage t5, shard 0000 runs" in caplog.text


def hold(root: Path, connection: Connection) -> None:
    with open_ledger(root, "t5", "0000"):
        connection.send("held")
        connection.recv()


def test_killed_job_leaves_no_lock(tmp_path, caplog):
    here, there = multiprocessing.Pipe()
    # Forked: the test's module cannot be imported by its name.
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, there))
    process.start()
    assert here.poll(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with open_ledger(tmp_path, "t5", "0000"):
        assert caplog.text == ""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 60))
def test_torn_last_line_is_passed_over_and_does_not_spoil_the_next(tmp_path, cut):
    ledger = Ledger(tmp_path, "ingest", "0000")
    ledger.path.unlink(missing_ok=True)
    finish(ledger, "a", 1)
    whole = ledger.path.read_bytes()
    finish(ledger, "b", 1)
    ledger.path.write_bytes(ledger.path.read_bytes()[: len(whole) + cut])
    torn = Ledger(tmp_path, "ingest", "0000")
    assert torn.current("a", {"value": 1}) is not None
    assert torn.current("b", {"value": 1}) is None
    finish(torn, "c", 1)
    after = Ledger(tmp_path, "ingest", "0000")
    assert after.current("a", {"value": 1}) is not None
    assert after.current("c", {"value": 1}) is not None


@pytest.mark.parametrize(
    "line", ["null", "[]", '{"clip_id": "a"}', '{"clip_id": "a", "inputs": {}, "outputs": 3, "row": 1}']
)
def test_foreign_lines_are_passed_over(tmp_path, line):
    ledger = Ledger(tmp_path, "ingest", "0000")
    finish(ledger, "b", 1)
    with open(ledger.path, "a") as file:
        file.write(line + "\n")
    read = Ledger(tmp_path, "ingest", "0000")
    assert read.current("a", {}) is None
    assert read.current("b", {"value": 1}) is not None


def test_results_in_groups_are_on_disk_before_the_ledger_says_so(tmp_path, monkeypatch):
    fsync = os.fsync
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    clips = [f"clip{number}" for number in range(20)]
    ledger = Ledger(tmp_path, "ingest", "0000")
    ledger.start(*clips)
    monkeypatch.setattr(os, "fsync", sync)
    with ledger.results_in_groups():
        for clip in clips:
            finish(ledger, clip, 1, output=True)
        assert all(ledger.current(clip, {"value": 1}) is None for clip in clips if f"{clip}.bin" not in synced)
        # What a job finds that comes after a kill at this moment: nothing that was not synced.
        found = Ledger(tmp_path, "ingest", "0000")
        assert {clip for clip in clips if found.current(clip, {"value": 1})} == {
            name.removesuffix(".bin") for name in synced if name.endswith(".bin")
        }
    assert sorted(name for name in synced if name.endswith(".bin")) == sorted(f"{clip}.bin" for clip in clips)
    assert synced[-1] == "0000.jsonl"
    assert synced.count("0000.jsonl") < len(clips)
    after = Ledger(tmp_path, "ingest", "0000")
    assert all(after.current(clip, {"value": 1}) for clip in clips)
