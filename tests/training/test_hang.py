from typing import Any

from worldtune.training.hang import explain
from worldtune.training.whereabouts import Pending, Place, Whereabouts

REDUCE = Place(operation="all_reduce", at="worldtune/training/gradients.py:80")
EXCHANGE = Place(operation="all_to_all_single", at="worldtune/parallel/tokens.py:50")
READING = Place(operation="select (lib/selectors.py:415)", at="worldtune/training/data.py:80")
NORM = Place(operation="_agree (training/trainer.py:260)", at="worldtune/training/trainer.py:260")


def whereabouts(rank: int, **values: Any) -> Whereabouts:
    defaults: dict[str, Any] = {"phase": "backward", "step": 12, "marks": 50, "is_overdue": True}
    return Whereabouts(
        rank=rank, host="node1", pid=100 + rank, error_file="", beat=9, idle_s=900.0, **(defaults | values)
    )


def test_a_rank_outside_of_collectives_is_missing_whatever_the_others_wait_in() -> None:
    places = [
        whereabouts(0, collective=REDUCE),
        whereabouts(1, phase="data", doing=READING, marks=49),
        whereabouts(2, collective=REDUCE),
        whereabouts(3, phase="forward", collective=EXCHANGE),
    ]
    hang = explain(places, silent=[], waited_s=900.0)
    assert hang.missing == [1]
    assert hang.message == (
        "no process has made progress for 900 s: rank 1 is in data of step 12: select (lib/selectors.py:415), called "
        "by worldtune/training/data.py:80; ranks 0, 2 wait in all_reduce (worldtune/training/gradients.py:80), "
        "backward of step 12; rank 3 waits in all_to_all_single (worldtune/parallel/tokens.py:50), forward of step 12. "
        "The same command goes on from the last checkpoint."
    )


def test_a_rank_that_does_not_answer_is_missing_whatever_it_said_last() -> None:
    places = [whereabouts(0, collective=REDUCE), whereabouts(1, collective=REDUCE)]
    hang = explain(places, silent=[0], waited_s=900.0)
    assert (hang.missing, hang.silent) == ([0], [0])
    assert "rank 0 (process 100 on node1) does not answer" in hang.message


def test_of_different_collectives_most_ranks_are_right() -> None:
    places = [whereabouts(rank, collective=EXCHANGE if rank == 2 else REDUCE) for rank in range(4)]
    assert explain(places, silent=[], waited_s=900.0).missing == [2]


def test_of_two_ranks_in_different_collectives_the_one_that_went_past_the_other_is_missing() -> None:
    places = [whereabouts(0, collective=REDUCE, marks=51), whereabouts(1, collective=EXCHANGE, marks=50)]
    assert explain(places, silent=[], waited_s=900.0).missing == [0]


def test_on_gpus_the_recorder_tells_who_has_not_begun_what_others_wait_in() -> None:
    """Main threads are ahead of the devices; rank 1 still has an exchange that rank 2 has not begun either."""
    reduce = Pending(group="replicas", number=7, place=REDUCE)
    exchange = Pending(group="tensor", number=3, place=EXCHANGE)
    places = [
        whereabouts(0, doing=NORM, pending=[reduce], begun={"replicas": 7}),
        whereabouts(1, doing=NORM, pending=[exchange, reduce], begun={"replicas": 7, "tensor": 3}),
        whereabouts(2, phase="data", doing=READING, begun={"replicas": 6, "tensor": 2}),
    ]
    hang = explain(places, silent=[], waited_s=900.0)
    assert hang.missing == [2]
    assert "rank 0 waits in all_reduce" in hang.message
    assert "rank 1 waits in all_to_all_single" in hang.message


def test_a_device_that_still_waits_does_not_excuse_a_main_thread_that_left_out_a_collective() -> None:
    exchange = Pending(group="tensor", number=3, place=EXCHANGE)
    reduce = Pending(group="replicas", number=7, place=REDUCE)
    places = [
        whereabouts(0, doing=NORM, pending=[exchange, reduce], begun={"replicas": 7, "tensor": 3}),
        whereabouts(1, doing=READING, pending=[exchange], begun={"replicas": 6, "tensor": 3}),
    ]
    assert explain(places, silent=[], waited_s=900.0).missing == [1]
