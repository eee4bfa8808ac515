"""How progress looks: a line for each step that is done, bars on a terminal, nothing when asked."""

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from kitfs.cli import progress as shown
from kitfs.cli.progress import show_progress


def test_plain_prints_a_line_for_each_step_that_is_finished(capsys: pytest.CaptureFixture[str]):
    """Steps that run at once give one line each, in the order in which they end; one that failed gives none."""
    with show_progress("plain") as progress:
        first, second, _failed = progress.begin("a", 2048), progress.begin("b", 1), progress.begin("c", 1)
        second.advance(1)
        second.finish()
        first.advance(2048)
        first.finish()
    assert capsys.readouterr().err == "b  1 B\na  2.0 KiB\n"


def test_fancy_adds_up_what_several_threads_tell(monkeypatch: pytest.MonkeyPatch):
    """Each step is its own bar, whichever thread advances it, and names are shown as they are."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    monkeypatch.setattr("rich.console.Console", lambda **_options: console)
    with show_progress("fancy") as progress, ThreadPoolExecutor(4) as threads:
        assert isinstance(progress, shown.FancyProgress)
        steps = [progress.begin(f"code [{number}]", 4000) for number in range(3)]
        for step in steps * 1000:
            threads.submit(step.advance, 4)
    assert all(f"code [{number}]" in text.getvalue() for number in range(3))
    assert text.getvalue().count("3.9/3.9 KiB") >= 3
