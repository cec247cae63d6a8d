"""What a run says while it trains: metrics.jsonl, TensorBoard, a bar or plain lines; knows no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from student_client.files import replace_file
from student_client.ranks import Ranks
from teaching_protocol.errors import ConfigError

__all__ = ["Journal", "Means", "Progress", "Records"]

Record = Mapping[str, Any]

_COLLAPSED = 0.05  # message variance below which messages count as constant; a collapsed run shows 0.003


class Journal:
    """metrics.jsonl: one JSON object a logged step.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drops what was written after a step, or cut short: a resumed run writes it again.

        Raises:
            ConfigError: the file cannot be written; it is as it was.
        """
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        try:
            replace_file(self.path, "".join(f"{line}\n" for line in kept))
        except OSError as error:
            raise self._unwritten(error) from error

    def write(self, record: Record) -> None:
        """Appends a record.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.path} cannot be written: {error}; free space, then go on with --resume")


class Means:
    """Means of numbers and scalar tensors by name since they were last taken; no tensor is waited for before."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[torch.Tensor | float, int]] = {}

    def add(self, values: Mapping[str, torch.Tensor | float]) -> None:
        """Counts one more value of each name."""
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def sums(self) -> dict[str, tuple[torch.Tensor | float, int]]:
        """What was counted so far, as (sum, count) by name; it stays as it is while more is counted."""
        return dict(self._sums)

    def put_back(self, sums: Mapping[str, Sequence[Any]]) -> None:
        """Goes on from what `sums` gave."""
        self._sums = {name: (total, count) for name, (total, count) in sums.items()}

    def take(self) -> dict[str, float]:
        """Gives the means and starts again."""
        means = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means


class Progress:
    """A bar on a terminal; elsewhere a plain line a record, which a log keeps readable.

    Args:
        label: what the run is called.
        file: where to write; None is the standard output.
        quiet: say nothing at all.
    """

    def __init__(self, label: str, file: TextIO | None = None, quiet: bool = False) -> None:
        self.label = label
        self._console = Console(file=file, quiet=quiet, highlight=False, markup=False, emoji=False)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._total = 0

    def start(self, total: int, done: int) -> None:
        """Begins at step `done` of `total`."""
        self._total = total
        if self._console.is_terminal and not self._console.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[text]}"), console=self._console)
            self._task = self._bar.add_task(self.label, total=total, completed=done, text="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar to a step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, record: Record) -> None:
        """Shows a record of metrics.jsonl."""
        if self._bar is not None:
            self._bar.update(self._task, text=_summary(record))
        else:
            self.say(f"step {record['step']}/{self._total}  {_summary(record)}")

    def say(self, sentence: str) -> None:
        """Writes one line."""
        self._console.print(f"{self.label}: {sentence}", soft_wrap=True)

    def close(self) -> None:
        """Takes the bar away; harmless when repeated."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Records:
    """Means between two logged steps, written to the journal, to TensorBoard and to the progress.

    Args:
        journal: metrics.jsonl.
        progress: what the user sees.
        accelerator: with its trackers, if any.
        ranks: the means are over all of them, and rank 0 writes.
    """

    def __init__(
        self, journal: Journal, progress: Progress, accelerator: Accelerator, ranks: Ranks | None = None
    ) -> None:
        self.ranks = ranks or Ranks()
        self.journal, self.progress = journal, progress
        self.has_warned = False
        self.listener: Callable[[Record], None] = lambda record: None
        """Hears of each record."""
        self._accelerator = accelerator
        self.means = Means()

    def rewind(self, step: int) -> None:
        """Drops what was written after a step, which the run makes again: from the journal, and from what TensorBoard shows.

        Raises:
            ConfigError: the journal cannot be written.
        """
        if not self.ranks.is_first:
            return
        self.journal.rewind(step)
        for tracker in self._accelerator.trackers:
            _drop_after(step, tracker.tracker)

    def add(self, loss: torch.Tensor, parts: Mapping[str, torch.Tensor], monitors: Mapping[str, float]) -> None:
        """Counts a microbatch."""
        self.means.add({"loss": loss.detach()})
        self.means.add({f"parts/{name}": value for name, value in parts.items()})
        self.watch(monitors)

    def watch(self, monitors: Mapping[str, float]) -> None:
        """Counts monitors alone."""
        self.means.add({f"monitors/{name}": value for name, value in monitors.items()})

    def write(self, step: int, facts: Record, validation: Mapping[str, float] | None) -> dict[str, float]:
        """Writes what was counted since the last record, with `facts` beside it; gives its monitors."""
        means = self.ranks.means(self.means.take())
        parts, monitors = _under("parts/", means), _under("monitors/", means)
        record: dict[str, Any] = {
            "step": step,
            **facts,
            "loss": means.get("loss"),
            "parts": parts,
            "monitors": monitors,
        }
        if validation is not None:
            record["validation"] = dict(validation)
            means |= {f"validation/{name}": value for name, value in validation.items()}
        if self.ranks.is_first:
            self.journal.write(record)
            self.progress.show(record)
            self.listener(record)
            self._accelerator.log(means, step=step)
        return monitors

    def warn_of_collapse(self, monitors: Mapping[str, float]) -> None:
        """Says once that messages have become constant."""
        variance = monitors.get("message_variance", 1.0)
        if variance < _COLLAPSED and not self.has_warned:
            self.has_warned = True
            self.progress.say(
                f"warning: the messages have become almost constant (variance {variance:.3f}, expected more than "
                f"{_COLLAPSED}): the conversation has collapsed; try another "
                "method.consistency, a larger method.w_message_consistency, or method.detach_target"
            )


def _drop_after(step: int, writer: Any) -> None:
    """Has TensorBoard let go of what a writer of its files wrote after a step, as `purge_step` does for a new writer."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # where nothing is tracked, it need not be there

    writer.file_writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))


def _under(prefix: str, means: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in means.items() if name.startswith(prefix)}


def _summary(record: Record) -> str:
    parts = " ".join(f"{name} {value:.3f}" for name, value in record["parts"].items())
    said = [f"loss {record['loss']:.4f} ({parts})"]
    said += [f"{name} {value:.3f}" for name, value in record["monitors"].items() if name.endswith("variance")]
    if "teacher_latency_s" in record["monitors"]:
        said.append(f"teacher {1e3 * record['monitors']['teacher_latency_s']:.0f} ms")
    said += [f"validation {name} {value:.4f}" for name, value in record.get("validation", {}).items() if name != "loss"]
    return "  ".join(said)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
