"""What a fleet is at: one live table on a terminal, elsewhere a line for each change; at the end a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from student_client.fleet.records import Record, State
from student_client.reporting.standing import read_standing

__all__ = ["View", "state_counts", "summary"]

_ORDER: tuple[State, ...] = ("running", "pausing", "failed", "interrupted", "waiting", "finished")
_STYLES = {"running": "cyan", "pausing": "yellow", "failed": "red", "interrupted": "yellow", "finished": "green"}
_FRAME_LINES = 6  # of the table beside its rows


class View:
    """The one view of a fleet; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

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

    def changed(self, record: Record) -> None:
        """Says a student's new state where there is no table; of what went wrong it says the reason in any case."""
        if self._live is None or (record.error and record.state in ("pausing", "failed")):
            self.say(f"{record.name}: {_words(record)}")

    def show(self, records: Sequence[Record]) -> None:
        """Brings the table up to date; says nothing where there is none."""
        if self._live is not None:
            rows = max(3, self.console.height - _FRAME_LINES)
            self._live.update(_table(records, rows), refresh=True)


def summary(records: Sequence[Record], title: str) -> Table:
    """What became of everybody, in the order of the file."""
    table = Table(title=title)
    for column in ("student", "state", "step", "test", "starts", "folder, or what went wrong"):
        table.add_column(column, overflow="fold")
    for record in records:
        test = "" if record.test is None else f"{record.metric} {record.test:.4f}"
        table.add_row(
            record.name, _state(record), _step(record), test, str(record.attempts), record.error or record.folder
        )
    return table


def state_counts(records: Sequence[Record]) -> str:
    """How many students are in which state: `2 running, 1 finished`."""
    counts = Counter(record.state for record in records)
    return ", ".join(f"{counts[state]} {state}" for state in _ORDER if counts[state])


def _table(records: Sequence[Record], rows: int) -> Table:
    """Those who need looking at first; those for whom there is no room are counted in the title alone."""
    table = Table(title=state_counts(records))
    for column in ("student", "state", "step", "loss", "validation", "cores", "starts", "said last"):
        table.add_column(column, no_wrap=True)
    for record in sorted(records, key=lambda each: _ORDER.index(each.state))[:rows]:
        standing = read_standing(Path(record.folder))
        loss = "" if standing.loss is None else f"{standing.loss:.4f}"
        cores = ",".join(map(str, record.cores)) if record.state == "running" else ""
        table.add_row(
            record.name,
            _state(record),
            _step(record),
            loss,
            standing.said,
            cores,
            str(record.attempts),
            Text(record.error),
        )
    return table


def _state(record: Record) -> Text:
    return Text(record.state, style=_STYLES.get(record.state, ""))


def _step(record: Record) -> str:
    step = read_standing(Path(record.folder)).step
    return f"{step}/{record.steps}" if record.steps else str(step)


def _words(record: Record) -> str:
    if record.state == "running":
        cores = f"cores {','.join(map(str, record.cores))}, " if record.cores else ""
        return f"running, start {record.attempts}, {cores}{record.threads} threads, log {record.folder}/student.log"
    if record.state == "finished" and record.test is not None:
        return f"finished, test {record.metric} {record.test:.4f}"
    return f"{record.state}, {record.error}" if record.error else record.state
