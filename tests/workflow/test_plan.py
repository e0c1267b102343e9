from pathlib import Path

from worldtune.recipe.identity import fingerprint
from worldtune.workflow.plan import Plan

OLD, NEW = {"rate": 1}, {"rate": 2}


def scheduler(folder: Path, *, scheduling: bool = True) -> Plan:
    return Plan(folder, scheduling=lambda: scheduling, inside_job=False)


def job(folder: Path) -> Plan:
    return Plan(folder, scheduling=lambda: False, inside_job=True)


def test_a_job_is_told_what_it_was_planned_for_and_not_what_it_reads(tmp_path: Path) -> None:
    assert scheduler(tmp_path).fingerprint("train/run", OLD) == fingerprint(OLD)
    assert job(tmp_path).fingerprint("train/run", NEW) == fingerprint(OLD)
    assert scheduler(tmp_path).fingerprint("train/run", NEW) == fingerprint(NEW)
    assert job(tmp_path).fingerprint("train/run", NEW) == fingerprint(NEW)


def test_looking_changes_no_plan(tmp_path: Path) -> None:
    scheduler(tmp_path).fingerprint("train/run", OLD)
    looking = scheduler(tmp_path, scheduling=False)
    assert looking.fingerprint("train/run", NEW) == fingerprint(NEW)
    assert job(tmp_path).fingerprint("train/run", NEW) == fingerprint(OLD)


def test_what_was_planned_before_scheduling_began_is_written_when_it_begins(tmp_path: Path) -> None:
    plan = scheduler(tmp_path, scheduling=False)
    plan.fingerprint("ingest/clips/0000", OLD)
    assert not list(tmp_path.rglob("*.txt"))
    plan.write()
    assert job(tmp_path).fingerprint("ingest/clips/0000", NEW) == fingerprint(OLD)


def test_a_job_without_a_plan_expects_what_it_reads(tmp_path: Path) -> None:
    assert job(tmp_path).fingerprint("train/run", NEW) == fingerprint(NEW)
    assert not list(tmp_path.iterdir())
