"""Tables as rows of words, and the same rows as Markdown, for the terminal and as HTML; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from student_client.compare.statistics import Difference, Summary
from student_client.compare.tables import Contrast, Row, TaskTable
from student_client.reporting.footprint import SIZE_COLUMNS, size_rows

__all__ = [
    "Sheet",
    "as_html",
    "as_markdown",
    "as_rich",
    "contrast_sheet",
    "narrowed",
    "overview_sheet",
    "settings_sheet",
    "size_sheet",
    "task_sheet",
]

_NOTHING = "–"


@dataclass(frozen=True)
class Sheet:
    """A table as words: a title, the heads of its columns, the rows, and notes below; `is_prose` without numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    is_prose: bool = False


def task_sheet(table: TaskTable) -> Sheet:
    """Every variant of a task: scores, gain over the best baseline, costs."""
    better = "less is better" if table.lower_is_better else "more is better"
    columns = (
        "variant",
        "role",
        "n",
        f"test {table.metric}",
        "validation",
        f"gain over {table.baseline or _NOTHING} [95%]",
    )
    costs = ("gap recovered", "teacher rows", "rows spared", "teacher s", "MB", "run s")
    rows = tuple(_task_row(row, table) for row in table.rows)
    return Sheet(f"{table.task} ({table.metric}, {better})", columns + costs, rows, tuple(_task_notes(table)))


def contrast_sheet(found: Sequence[Contrast]) -> Sheet:
    """Pairs of variants against each other, a column a task."""
    tasks = list(dict.fromkeys(each.task for each in found))
    gains = {(each.better, each.than, each.task): each.gain for each in found}
    pairs = list(dict.fromkeys((each.better, each.than) for each in found))
    rows = tuple(
        (better, than, *(_difference(gains.get((better, than, task))) for task in tasks)) for better, than in pairs
    )
    notes = (
        "Gain of the first over the second on test rows, mean of the paired differences [95% bootstrap interval].",
    )
    return Sheet("Contrasts", ("variant", "against", *tasks), rows, notes)


def overview_sheet(tables: Sequence[TaskTable]) -> Sheet:
    """The test score of every variant on every task, and how often it is clearly better or worse than the best baseline."""
    names = list(dict.fromkeys(row.variant for table in tables for row in table.rows))
    known = {(table.task, row.variant): row for table in tables for row in table.rows}
    rows = []
    for name in names:
        own = [known.get((table.task, name)) for table in tables]
        gains = [row.gain for row in own if row is not None and row.gain is not None]
        clear = [gain for gain in gains if gain.is_clear]
        counts = f"{sum(gain.mean > 0 for gain in clear)} / {sum(gain.mean < 0 for gain in clear)} / {len(gains) - len(clear)}"
        cells = tuple(_marked(row) for row in own)
        without = "baseline" if any(cell != _NOTHING for cell in cells) else _NOTHING
        rows.append((name, *cells, counts if gains else without))
    note = "Test, mean ± standard deviation; ▲ and ▼: the interval of the gain over the task's best baseline leaves zero out."
    columns = ("variant", *(f"{table.task} ({table.metric})" for table in tables), "better / worse / unclear")
    return Sheet("All tasks", columns, tuple(rows), (note,))


def size_sheet(table: TaskTable) -> Sheet:
    """Parameters, bytes on the disk and rows a second of a task's student and teachers."""
    note = (
        "Measured in one run, in turns, with nothing else at work; `smaller` and `faster` are against the first teacher. Of a "
        "teacher the bytes are its weights as served, the seconds its own, without the network; a student has one thread."
    )
    return Sheet(f"{table.task}: size and speed", SIZE_COLUMNS, tuple(size_rows(table.sizes)), (note,))


def settings_sheet(table: TaskTable) -> Sheet:
    """Which setting the validation rows chose for each variant."""
    rows = tuple(
        (row.variant, row.about, _trials(row), ", ".join(f"{name} {value}" for name, value in row.setting.items()))
        for row in table.rows
    )
    return Sheet(
        f"{table.task}: settings", ("variant", "what it is", "chosen from", "setting beyond the task's"), rows, (), True
    )


def narrowed(sheet: Sheet, columns: Sequence[int], notes: bool = True) -> Sheet:
    """Some of the columns of a sheet, by number, with its notes or without."""
    rows = tuple(tuple(row[number] for number in columns) for row in sheet.rows)
    kept = tuple(sheet.columns[number] for number in columns)
    return replace(sheet, columns=kept, rows=rows, notes=sheet.notes if notes else ())


def as_markdown(sheet: Sheet) -> str:
    """The sheet as a Markdown table under a heading."""
    lines = [f"### {sheet.title}", "", _line(sheet.columns), _line(["---"] * len(sheet.columns))]
    lines += [_line(row) for row in sheet.rows]
    return "\n".join([*lines, "", *(f"{note}\n" for note in sheet.notes)])


def as_rich(sheet: Sheet) -> Table:
    """The sheet for the terminal."""
    found = Table(
        title=Text(sheet.title),
        caption=Text("\n".join(sheet.notes)),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
    )
    for number, column in enumerate(sheet.columns):
        found.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold", no_wrap=number == 0)
    for row in sheet.rows:
        found.add_row(*map(Text, row))
    return found


def as_html(sheet: Sheet) -> str:
    """The sheet as a section of a page; wide ones scroll by themselves."""
    head = "".join(f"<th>{escape(column)}</th>" for column in sheet.columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in sheet.rows)
    kind = " class=words" if sheet.is_prose else ""
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in sheet.notes)
    return (
        f"<h3>{escape(sheet.title)}</h3>\n<div class=wide><table{kind}><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>{notes}\n"
    )


def _task_row(row: Row, table: TaskTable) -> tuple[str, ...]:
    n = str(row.test.n if row.test else 0) + (f" ({row.failed} failed)" if row.failed else "")
    gain = "best baseline" if row.variant == table.baseline else _difference(row.gain)
    cells = (row.variant, row.role, n, _summary(row.test), _summary(row.validation), gain)
    gap = _NOTHING if row.gap is None else f"{row.gap:.0%}"
    costs = row.costs
    if costs is None:
        return (*cells, gap, *[_NOTHING] * 5)
    saved = f"{costs.saved_share:.0%}" if costs.teacher_rows_saved else _NOTHING
    words = (
        f"{costs.teacher_rows:.0f}",
        saved,
        f"{costs.teacher_s:.1f}",
        f"{costs.wire_bytes / 1e6:.1f}",
        f"{costs.wall_s:.1f}",
    )
    return (*cells, gap, *words)


def _task_notes(table: TaskTable) -> list[str]:
    notes = []
    if table.baseline is not None:
        notes.append(f"{table.baseline} is the best baseline by mean validation {table.metric}; above zero is better.")
    known = {name: scores for name, scores in table.teachers.items() if scores.get("test") is not None}
    if known:
        said = (
            f"{name} {scores['test']:.4f} (validation {scores['validation']:.4f})" for name, scores in known.items()
        )
        notes.append(f"Teachers by themselves, test {table.metric}: {', '.join(said)}.")
    return notes


def _trials(row: Row) -> str:
    if row.settings_of is not None:
        return f"as chosen for {row.settings_of}"
    if row.episodes:
        return f"a selector of {row.episodes} episodes"
    return f"{row.trials} trials" if row.trials else "one setting"


def _summary(found: Summary | None) -> str:
    if found is None:
        return _NOTHING
    return f"{found.mean:.4f}" + ("" if found.deviation is None else f" ± {found.deviation:.4f}")


def _difference(found: Difference | None) -> str:
    if found is None:
        return _NOTHING
    interval = "" if found.low is None or found.high is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.mean:+.4f}{interval}"


def _marked(row: Row | None) -> str:
    if row is None:
        return _NOTHING
    sign = ""
    if row.gain is not None and row.gain.is_clear:
        sign = " ▲" if row.gain.mean > 0 else " ▼"
    return _summary(row.test) + sign


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
