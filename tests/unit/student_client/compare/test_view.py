from __future__ import annotations

import io

import pytest
from rich.console import Console

from student_client.compare.records import Planned
from student_client.compare.view import Running, View, time_left_s


def run(task: str, variant: str, seed: int) -> Planned:
    return Planned(task, variant, "final", seed, 0, seed)


def test_the_time_left_goes_by_the_same_variant_then_the_same_task_then_all() -> None:
    seconds = {run("a", "slow", 0): 30.0, run("a", "quick", 0): 10.0, run("b", "quick", 0): 5.0}
    assert time_left_s([run("a", "slow", 1)], seconds, 0.0, 1) == 30.0
    assert time_left_s([run("a", "new", 1)], seconds, 0.0, 1) == 20.0
    assert time_left_s([run("c", "new", 1)], seconds, 0.0, 1) == 15.0


def test_workers_share_it_and_what_is_spent_counts() -> None:
    seconds = {run("a", "x", 0): 10.0}
    missing = [run("a", "x", seed) for seed in range(1, 5)]
    assert time_left_s(missing, seconds, 0.0, 2) == 20.0
    assert time_left_s(missing, seconds, 12.0, 2) == 14.0
    assert time_left_s(missing, seconds, 99.0, 2) == 0.0
    assert time_left_s(missing, {}, 0.0, 2) is None


def test_without_a_terminal_it_says_a_line_now_and_then() -> None:
    written = io.StringIO()
    with View(Console(file=written, width=40), total=10) as view:
        view.show(1, 7, [Running("digits/talking final 0", 20, 30), Running("makes a teacher")], 125.0)
        view.show(1, 6, [], 100.0)
        view.say("a sentence that is longer than the forty columns there are")
    assert written.getvalue() == (
        "3/10 runs, 1 failed, about 2 min left   digits/talking final 0 20/30   makes a teacher\n"
        "a sentence that is longer than the forty columns there are\n"
    )


@pytest.mark.parametrize(("left", "said"), [(None, "4/10 runs\n"), (59.0, "4/10 runs, about 59 s left\n")])
def test_it_says_how_long_only_when_it_knows(left: float | None, said: str) -> None:
    written = io.StringIO()
    with View(Console(file=written), total=10) as view:
        view.show(0, 6, [], left)
    assert written.getvalue() == said


def test_on_a_terminal_there_is_one_view_with_every_run() -> None:
    written = io.StringIO()
    with View(Console(file=written, force_terminal=True, width=80), total=10) as view:
        view.show(0, 6, [Running("digits/talking final 0", 20, 30), Running("digits/one_way final 0", 10, 30)], 60.0)
    assert "4/10 runs" in written.getvalue()
    assert "digits/talking final 0 20/30" in written.getvalue()
    assert "digits/one_way final 0 10/30" in written.getvalue()
