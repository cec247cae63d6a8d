from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from student_client.compare.plan import TaskRuns
from student_client.compare.plots import curves_plot, save_png, scores_plot, svg
from student_client.compare.records import Record
from student_client.compare.report import write_report, write_runs
from student_client.compare.sheets import Sheet, as_html, as_markdown, as_rich, narrowed, overview_sheet, task_sheet
from student_client.compare.tables import task_table
from tests.unit.student_client.compare.suite_setup import fill, suite

SCORES = {
    "task_only": (0.70, 0.60),
    "one_way": (0.75, 0.55),
    "talking": (0.80, 0.65),
    "talking_no_mc": (0.70, 0.60),
    "talking~random": (0.50, 0.40),
}


@pytest.fixture
def boards(tmp_path: Path) -> list[TaskRuns]:
    """Two tasks, ended; every final run has a log; on films one variant has failed."""
    made = suite(contrasts=(("talking", "one_way"),))
    found = []
    for task, metric in (("digits", "accuracy"), ("films", "rmse")):
        board = TaskRuns(made, task, made.variants_of(task), seeds=3)
        fill(board, SCORES, metric)
        for run, record in board.ended():
            if run.stage == "final":
                (tmp_path / run.folder).mkdir(parents=True)
                lines = [{"step": step, "validation": {metric: step / 10}} for step in (4, 8)]
                monitors = {"monitors": {"importance.0": 0.25, "importance.1": 0.75, "action.response": 0.5}}
                lines[1] |= monitors if run.variant == "talking" else {}
                (tmp_path / run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            if task == "films" and run.variant == "one_way":
                board.records[run.key] = Record.failed(run, record.settings, "no port <hidden> & so on")
        found.append(board)
    return found


class _Page(HTMLParser):
    """What a page loads from elsewhere, its tables as rows of cells, and whether its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.loaded += [
            value for name in ("src", "href", "xlink:href") if (value := names.get(name) or "") and value[0] != "#"
        ]
        if tag in ("link", "script", "iframe", "img"):
            self.loaded.append(tag)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def test_the_report_is_whole_alone_and_says_what_the_results_say(tmp_path: Path, boards: list[TaskRuns]) -> None:
    write_report(boards, tmp_path, "student-client compare --suite <mine>")
    text = (tmp_path / "report.html").read_text()
    page = _Page(text)
    assert page.loaded == [], "nothing is loaded from elsewhere"
    assert page.open == [], "every element is closed"
    assert not re.search(r"url\((?!#)|@import", text), "nor by its style"
    assert "student-client compare --suite &lt;mine&gt;" in text
    for word in ("prefers-color-scheme|color-scheme: light dark", "width=device-width", "torch "):
        assert re.search(word, text), word
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["runs"]) == 2 * (3 * 3 + 5 * 3)
    whole = [table for table in page.tables if table[0][0] == "variant" and "n" in table[0]]
    for table, numbers in zip(whole, results["tables"], strict=True):
        assert [row[0] for row in table[1:]] == [row["variant"] for row in numbers["rows"]]
        for shown, row in zip(table[1:], numbers["rows"], strict=True):
            if row["test"] is not None:
                assert shown[3] == f"{row['test']['mean']:.4f} ± {row['test']['deviation']:.4f}"
            if row["gain"] is not None:
                assert shown[5] == "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**row["gain"])
    failed = page.tables[-1]
    assert len(failed) == 1 + 3 + 3, "its trials and its final runs"
    assert failed[-1] == ["films/one_way", "final", "2", "no port <hidden> & so on"]


def test_every_plot_is_on_the_page_and_on_the_disk(tmp_path: Path, boards: list[TaskRuns]) -> None:
    write_report(boards, tmp_path, "compare")
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert names == {
        f"{task}-{plot}"
        for task in ("digits", "films")
        for plot in ("scores", "curves", "talking-importance", "talking-action")
    }
    assert (tmp_path / "report.html").read_text().count("<svg") == len(names)
    markdown = (tmp_path / "results.md").read_text()
    assert all(f"(plots/{name}.png)" in markdown for name in names)


def test_a_plot_is_the_same_bytes_every_time_and_takes_the_colour_of_the_page(boards: list[TaskRuns]) -> None:
    table = task_table(boards[0], {"foundation-trained": {"test": 0.9, "validation": 0.9}})
    plot = scores_plot(table, {"talking": [0.6, 0.7], "task_only": [0.5, 0.4]})
    drawn = svg(plot)
    assert drawn == svg(plot)
    assert "currentColor" in drawn
    assert "#010203" not in drawn
    assert "foundation-trained" in drawn


def test_a_curve_is_drawn_as_it_is(tmp_path: Path, boards: list[TaskRuns]) -> None:
    table = task_table(boards[0], {})
    plot = curves_plot(table, {"talking": ((10, 0.5), (20, 0.75))})
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plot.draw(axes)
    assert axes.lines[0].get_xydata().tolist() == [[10, 0.5], [20, 0.75]]
    assert save_png(plot, tmp_path).read_bytes().startswith(b"\x89PNG")


def test_markdown_terminal_and_page_show_the_same_cells(boards: list[TaskRuns]) -> None:
    sheet = task_sheet(task_table(boards[0], {}))
    written = io.StringIO()
    Console(file=written, width=300).print(as_rich(sheet))
    terminal, markdown = written.getvalue(), as_markdown(sheet)
    cells = _Page(as_html(sheet)).tables[0]
    assert cells == [list(sheet.columns), *map(list, sheet.rows)]
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])] == cells
    for row in sheet.rows:
        assert all(cell in terminal for cell in row)


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert "a \\| b" in as_markdown(Sheet("t", ("c",), (("a | b",),)))


def test_a_sheet_may_be_narrowed() -> None:
    assert narrowed(Sheet("t", ("a", "b", "c"), (("1", "2", "3"),)), (0, 2)).rows == (("1", "3"),)


def test_the_overview_counts_clear_wins_and_losses(boards: list[TaskRuns]) -> None:
    sheet = overview_sheet([task_table(board, {}) for board in boards])
    rows = {row[0]: row[1:] for row in sheet.rows}
    assert rows["talking"][0].endswith("▲"), "0.65 against one_way's 0.55"
    assert rows["talking~random"][0].endswith("▼")
    assert rows["talking"][1].endswith("▼"), "an error of 0.65 against task_only's 0.60"
    assert rows["talking"][2] == "1 / 1 / 0"
    assert rows["one_way"][1] == "–", "all its runs have failed"


def test_in_the_middle_the_results_say_what_is_missing(tmp_path: Path) -> None:
    made = suite()
    board = TaskRuns(made, "digits", made.variants_of("digits"), seeds=1)
    write_runs([board], tmp_path, "compare")
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["runs"], found["runs_ended"], found["runs_missing"]) == ([], 0, 14)
    write_report([board], tmp_path, "compare")
    assert "None." in (tmp_path / "report.html").read_text()
