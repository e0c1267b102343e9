import io
import logging
import sys

import pytest

from worldtune.common.progress import step_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_a_line_a_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with step_progress("step", 8, done=2, is_shown=True) as show:
        show(3, "loss 0.5")
        show(4, "loss 0.4")
    assert [record.getMessage() for record in caplog.records] == ["step 3/8  loss 0.5", "step 4/8  loss 0.4"]


def test_a_terminal_has_a_bar_that_begins_where_the_run_does(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with step_progress("step", 8, done=2, is_shown=True) as show:
        assert "step 2/8" in terminal.getvalue()
        show(3, "loss 0.5")
    assert terminal.getvalue().rstrip().endswith("loss 0.5")
    assert "step 3/8" in terminal.getvalue()
    assert not caplog.records


def test_a_process_that_is_not_the_first_draws_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with step_progress("step", 8, done=2, is_shown=False):
        pass
    assert not terminal.getvalue()
