import subprocess
from pathlib import Path

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.workflow.queue import parse, queued_jobs, table

ANSWER = """\
12|RUNNING|0:42|1:00:00|1|96|983040M|gres:gpu:8|gpu|node1|rule_train_wildcards_edge_posttrain|{root}
13|PENDING|0:00|4:00:00|1|8|8000M|N/A|cpu|(Priority)|rule_ingest_wildcards_hdvila_0003|{root}
14|PENDING|0:00|4:00:00|1|1|1000M|N/A|cpu|(Priority)|rule_validate|/another/folder
15|RUNNING|0:01|4:00:00|1|1|1000M|N/A|cpu|node2|(null)|{root}
"""


def test_jobs_of_this_folder_are_listed_by_rule(tmp_path: Path) -> None:
    jobs = parse(ANSWER.format(root=tmp_path), tmp_path)
    assert [(job.rule, job.wildcards, job.fields["state"]) for job in jobs] == [
        ("train", "edge_posttrain", "RUNNING"),
        ("ingest", "hdvila_0003", "PENDING"),
    ]
    assert table(jobs).splitlines() == [
        "JOB  RULE    OF              STATE    TIME  LIMIT    NODES  CPUS  MEMORY   GPUS   PARTITION  REASON",
        "12   train   edge_posttrain  RUNNING  0:42  1:00:00  1      96    983040M  gpu:8  gpu        node1",
        "13   ingest  hdvila_0003     PENDING  0:00  4:00:00  1      8     8000M    N/A    cpu        (Priority)",
    ]


def test_a_machine_without_slurm_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorldtuneError, match="squeue is not on this machine"):
        queued_jobs(tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (subprocess.TimeoutExpired("squeue", 30), "did not answer"),
        (subprocess.CalledProcessError(1, "squeue", stderr="slurm_load_jobs error"), "slurm_load_jobs error"),
    ],
)
def test_a_silent_or_failing_slurm_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(WorldtuneError, match=message):
        queued_jobs(tmp_path)
