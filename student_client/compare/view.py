"""How far a comparison is: one live view on a terminal, elsewhere a plain line now and then; knows no process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from student_client.compare.records import Planned

__all__ = ["Running", "View", "time_left_s"]

_LINE_EVERY_S = 10.0


@dataclass(frozen=True)
class Running:
    """What a worker is at: its name, and the step it has reached where it has steps."""

    name: str
    step: int = 0
    steps: int = 0


class View:
    """The one progress view of a comparison; use as a context manager.

    Args:
        console: where to show it.
        total: number of runs, with those that ended earlier.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total = console, total
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._said_at = 0.0

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """Writes one line that stays."""
        self.console.print(sentence, soft_wrap=True, highlight=False, markup=False)

    def show(self, failed: int, missing: int, running: Sequence[Running], left_s: float | None) -> None:
        """Shows where everything is; without a terminal not more often than every few seconds."""
        done = self.total - missing
        head = f"{done}/{self.total} runs{f', {failed} failed' if failed else ''}{_left(left_s)}"
        if self._live is not None:
            self._live.update(Group(self._head(head, done), *map(_row, running)), refresh=True)
        elif time.monotonic() - self._said_at > _LINE_EVERY_S:
            self._said_at = time.monotonic()
            self.say("   ".join([head, *map(_words, running)]))

    def _head(self, head: str, done: int) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_row(ProgressBar(self.total, done, width=24), Text(head))
        return table


def time_left_s(
    missing: Sequence[Planned], seconds: Mapping[Planned, float], spent_s: float, workers: int
) -> float | None:
    """Seconds until all is done: each missing run takes what runs of its variant took, or of its task, or any.

    Args:
        missing: runs that have not ended.
        seconds: what ended runs took.
        spent_s: what the running ones have taken already, all together.
        workers: how many run at once.
    """
    if not seconds:
        return None
    known: dict[tuple[str, ...], list[float]] = {}
    for run, took in seconds.items():
        for like in _likes(run):
            known.setdefault(like, []).append(took)
    means = {like: statistics.fmean(took) for like, took in known.items()}
    expected = sum(next(means[like] for like in _likes(run) if like in means) for run in missing)
    return max(0.0, expected - spent_s) / workers


def _likes(run: Planned) -> tuple[tuple[str, ...], ...]:
    """What other runs may be like this one in, the closest first."""
    return (run.task, run.variant, run.stage), (run.task, run.variant), (run.task,), ()


def _left(left_s: float | None) -> str:
    if left_s is None:
        return ""
    return f", about {left_s:.0f} s left" if left_s < 100 else f", about {left_s / 60:.0f} min left"


def _row(each: Running) -> Table:
    table = Table.grid(padding=(0, 1))
    bar = ProgressBar(each.steps or 1, each.step, width=24, pulse=each.steps == 0)
    table.add_row(bar, Text(_words(each)))
    return table


def _words(each: Running) -> str:
    return f"{each.name} {each.step}/{each.steps}" if each.steps else each.name
