from __future__ import annotations

import pytest

from student_client.compare.plan import TaskRuns
from student_client.compare.records import Planned, Record
from student_client.compare.tables import best_baseline, contrasts, task_table
from tests.unit.student_client.compare.suite_setup import ended, fill, finals, suite

SCORES = {
    "task_only": (0.70, 0.60),
    "one_way": (0.75, 0.55),  # better on validation, worse on test
    "talking": (0.80, 0.65),
    "talking_no_mc": (0.70, 0.60),
    "talking~random": (0.50, 0.40),
}


def board(task: str = "digits", seeds: int = 3) -> TaskRuns:
    made = suite(contrasts=(("talking", "one_way"),))
    return TaskRuns(made, task, made.variants_of(task), seeds)


def test_the_best_baseline_is_chosen_by_validation_though_test_would_choose_another() -> None:
    runs = board()
    fill(runs, SCORES)
    table = task_table(runs, {})
    assert table.baseline == "one_way"
    rows = {row.variant: row for row in table.rows}
    assert rows["one_way"].gain is None
    assert rows["talking"].gain is not None
    assert rows["talking"].gain.mean == pytest.approx(0.10)
    assert rows["task_only"].gain is not None
    assert rows["task_only"].gain.mean == pytest.approx(0.05), "a baseline that is worse on validation may win on test"


def test_a_baseline_that_lost_seeds_is_not_the_best() -> None:
    assert best_baseline({"whole": finals(0.5, 0.5, 0.5), "lucky": finals(0.9)}) == "whole"
    assert best_baseline({"first": finals(0.5, 0.6), "second": finals(0.6, 0.5)}) == "first"
    assert best_baseline({"none": []}) is None
    assert best_baseline({"a": finals(1.0, metric="rmse"), "b": finals(0.9, metric="rmse")}) == "b"


def test_of_an_error_less_is_better_everywhere() -> None:
    runs = board("films")
    fill(runs, {name: (2 - validation, 2 - test) for name, (validation, test) in SCORES.items()}, "rmse")
    table = task_table(runs, {"foundation-trained": {"test": 1.30, "validation": 1.2}})
    assert (table.metric, table.lower_is_better, table.baseline) == ("rmse", True, "one_way")
    rows = {row.variant: row for row in table.rows}
    assert rows["talking"].gain is not None
    assert rows["talking"].gain.mean == pytest.approx(0.10)
    # plain 1.41, distilled 1.36, teacher 1.30
    assert rows["talking"].gap == pytest.approx((1.36 - 1.41) / (1.30 - 1.41))
    assert rows["task_only"].gap is None, "it asks no teacher"


def test_the_gap_is_recovered_towards_the_trained_teacher_for_the_control_too() -> None:
    runs = board(seeds=1)
    fill(runs, SCORES)
    scores = {"foundation-trained": {"test": 0.8, "validation": 0.8}, "foundation-random": {"test": 0.1}}
    rows = {row.variant: row for row in task_table(runs, scores).rows}
    assert rows["talking"].gap == pytest.approx(0.25)
    assert rows["talking~random"].gap == pytest.approx(-1.0)
    unscored = {row.variant: row for row in task_table(runs, {"foundation-trained": {"test": None}}).rows}
    assert unscored["talking"].gap is None


def test_means_are_of_the_final_runs_alone_and_failures_are_counted() -> None:
    runs = board(seeds=2)
    while (run := runs.next()) is not None:
        if run.variant == "talking" and run.stage == "final" and run.seed == 1:
            runs.add(run, Record.failed(run, {}, "it broke"))
        else:
            test = 0.1 if run.stage == "tune" else 0.6 + run.seed / 10
            costs = {"teacher_rows": 60, "teacher_rows_saved": 40, "bytes_sent": 3, "bytes_received": 4, "wall_s": 2.0}
            runs.add(run, ended(run, 0.5, test, **costs))
    rows = {row.variant: row for row in task_table(runs, {}).rows}
    assert (rows["talking"].failed, rows["task_only"].failed) == (1, 0)
    assert rows["talking"].test is not None
    assert (rows["talking"].test.n, rows["talking"].test.mean) == (1, pytest.approx(0.6))
    whole = rows["talking_no_mc"].test
    assert whole is not None
    assert (whole.n, whole.mean, whole.deviation) == (2, pytest.approx(0.65), pytest.approx(0.05 * 2**0.5))
    costs = rows["talking_no_mc"].costs
    assert costs is not None
    assert (costs.saved_share, costs.wire_bytes, costs.wall_s) == (pytest.approx(0.4), 7, 2.0)


def test_it_says_how_a_setting_was_found() -> None:
    runs = board()
    fill(runs, SCORES)
    rows = {row.variant: row for row in task_table(runs, {}).rows}
    assert rows["talking"].setting == {"training.lr": 1e-2, "method.message_width": 16}
    assert (rows["talking"].trials, rows["talking"].settings_of) == (3, None)
    assert rows["talking_no_mc"].settings_of == "talking"


def test_nothing_has_ended() -> None:
    table = task_table(board(), {})
    assert table.baseline is None
    assert all(row.test is None and row.gain is None and row.costs is None for row in table.rows)


def test_the_contrasts_are_those_of_the_suite_and_every_variant_against_what_follows_it() -> None:
    runs = board()
    fill(runs, SCORES)
    found = {(each.better, each.than): each.gain for each in contrasts(runs)}
    assert list(found) == [("talking", "one_way"), ("talking", "talking_no_mc"), ("talking", "talking~random")]
    gain = found["talking", "talking~random"]
    assert gain is not None
    assert gain.mean == pytest.approx(0.25)


def test_pairs_are_of_the_same_seed() -> None:
    runs = board(seeds=2)
    for run in list(runs.runs()):
        if run.stage == "tune":
            runs.add(run, ended(run, 0.5, 0.5))
    # talking gains 0.1 on each seed; the seeds themselves differ by 0.4
    for name, tests in {"one_way": (0.2, 0.6), "talking": (0.3, 0.7)}.items():
        for seed, test in enumerate(tests):
            runs.add(
                Planned("digits", name, "final", seed, 0, seed),
                ended(Planned("digits", name, "final", seed, 0, seed), test, test),
            )
    gain = next(contrasts(runs)).gain
    assert gain is not None
    assert gain.is_clear
    assert gain.high == pytest.approx(0.1)
