from __future__ import annotations

from pathlib import Path

import pytest

from student_client.compare.plan import TUNING_SEED, TaskRuns, best_trial, run_config
from student_client.compare.records import Planned, Record
from student_client.compare.suites import Variant
from teaching_protocol.errors import ConfigError
from tests.unit.student_client.compare.suite_setup import ended, fill, suite


def board(seeds: int = 2, tuned: bool = True, shown: tuple[str, ...] | None = None) -> TaskRuns:
    made = suite()
    return TaskRuns(made, "digits", shown or made.variants_of("digits"), seeds, tuned)


def trial(number: int, validation: float, test: float, metric: str = "accuracy") -> Record:
    return ended(Planned("digits", "talking", "tune", number, number, TUNING_SEED), validation, test, metric)


def test_the_trial_is_chosen_by_validation_though_test_would_choose_another() -> None:
    assert best_trial([trial(0, 0.7, 0.9), trial(1, 0.8, 0.1), trial(2, 0.6, 0.99)]) == 1


def test_of_an_error_the_least_is_best() -> None:
    assert best_trial([trial(0, 1.2, 0.5, "rmse"), trial(1, 1.1, 3.0, "rmse"), trial(2, 1.3, 0.1, "rmse")]) == 1


def test_ties_go_to_the_first_and_failures_are_passed_over() -> None:
    failed = Record.failed(Planned("digits", "talking", "tune", 0, 0, TUNING_SEED), {}, "it broke")
    assert best_trial([failed, trial(1, 0.8, 0.1), trial(2, 0.8, 0.9)]) == 1
    assert best_trial([failed]) is None


def test_final_runs_wait_for_all_trials_of_their_variant_and_no_others() -> None:
    runs = board()
    begun: list[Planned] = []
    while (run := runs.next()) is not None:
        begun.append(run)
    assert [(run.variant, run.stage, run.number) for run in begun] == [
        (name, "tune", number) for name in ("task_only", "one_way", "talking") for number in range(3)
    ]
    assert {run.seed for run in begun} == {TUNING_SEED}
    for run in begun[:3]:
        runs.add(run, ended(run, 0.1 + run.number / 10, 0.9 - run.number / 10))
    ready = [runs.next(), runs.next()]
    assert [(run.variant, run.stage, run.trial, run.seed) for run in ready if run] == [
        ("task_only", "final", 2, 0),
        ("task_only", "final", 2, 1),
    ]
    assert runs.next() is None


def test_an_ablation_and_a_control_take_the_setting_of_their_variant_and_add_their_own() -> None:
    runs = board()
    fill(runs, dict.fromkeys(runs.shown, (0.5, 0.5)))
    ablation = runs.records["digits", "talking_no_mc", "final", 1]
    assert ablation.settings == {"training.lr": 1e-2, "method.w_message_consistency": 0.0}
    config = run_config(runs.suite, Planned("digits", "talking_no_mc", "final", 1, 2, 1), ["a:1"], Path("root"))
    assert config.training.lr == 1e-2
    assert config.method.w_message_consistency == 0


def test_a_followed_variant_that_is_not_shown_is_tuned_and_not_trained_to_the_end() -> None:
    runs = board(shown=("talking_no_mc",))
    fill(runs, dict.fromkeys(runs.suite.variants, (0.5, 0.5)))
    assert {(run.variant, run.stage) for run, _ in runs.ended()} == {("talking", "tune"), ("talking_no_mc", "final")}


def test_without_tuning_every_variant_takes_its_first_setting() -> None:
    runs = board(tuned=False)
    assert {(run.stage, run.trial) for run in runs.runs()} == {("final", 0)}


def test_when_all_trials_fail_the_final_runs_of_all_that_follow_have_failed() -> None:
    runs = board()
    while (run := runs.next()) is not None:
        if run.variant == "talking":
            runs.add(run, Record.failed(run, {}, "no such port"))
        else:
            runs.add(run, ended(run, 0.5, 0.5))
    assert runs.missing == []
    failed = {record.variant for _, record in runs.ended() if record.error and record.stage == "final"}
    assert failed == {"talking", "talking_no_mc", "talking~random"}
    assert "no such port" in str(runs.records["digits", "talking~random", "final", 0].error)


def test_a_selector_takes_the_place_of_trials() -> None:
    variants = {"selection": Variant(methods=("selection",), selector={"method.selection.learning.hard": True})}
    runs = TaskRuns(suite(variants=variants), "digits", ("selection",), seeds=2)
    first = runs.next()
    assert first is not None
    assert (first.stage, first.seed, runs.next()) == ("select", TUNING_SEED, None)
    learned = run_config(runs.suite, first, ["a:1"], Path("root"))
    assert learned.method.selection.learning.hard
    assert runs.suite.episodes("selection") == len(runs.suite.grid)
    runs.add(first, ended(first, 0.0, 0.0))
    final = runs.next()
    assert final is not None
    config = run_config(runs.suite, final, ["a:1"], Path("root"))
    assert config.method.selection.selector == Path("root") / first.folder
    assert not config.method.selection.learning.hard, "a run that uses a selector does not learn it"


def test_a_run_has_its_seed_everywhere_but_in_the_splits() -> None:
    config = run_config(suite(), Planned("digits", "talking", "final", 3, 1, 3), ["a:1"], Path("root"))
    assert (config.student.seed, config.method.seed, config.training.seed, config.data.seed) == (3, 3, 3, 0)
    assert config.training.threads == 1
    assert config.teacher is not None
    assert config.teacher.address == "a:1"
    assert config.output == Path("root/runs/digits/talking/final-3")


def test_the_first_teacher_is_the_foundation_of_the_run_and_the_others_complement_it() -> None:
    task = suite().tasks["digits"].model_copy(update={"complementary": suite().tasks["digits"].foundation})
    variants = {
        "both": Variant(methods=("talking",), teachers=("foundation", "complementary"), settings={"teacher.entry": 1})
    }
    made = suite(tasks={"digits": task}, variants=variants)
    config = run_config(made, Planned("digits", "both", "final", 0, 0, 0), ["a:1", "b:2"], Path("root"))
    assert config.teacher is not None
    assert (config.teacher.address, config.teacher.entry) == ("a:1", 1)
    assert [each.address for each in config.complementary] == ["b:2"]


def test_what_a_task_sets_of_the_teacher_is_the_foundations() -> None:
    task = suite().tasks["digits"]
    settings = {**task.settings, "teacher.entry": 4}
    task = task.model_copy(update={"complementary": task.foundation, "settings": settings})
    variants = {
        "foundation": Variant(methods=("talking",)),
        "complementary": Variant(methods=("talking",), teachers=("complementary",)),
        "nobody": Variant(methods=("task_only",), teachers=()),
    }
    made = suite(tasks={"digits": task}, variants=variants)
    configs = {
        name: run_config(
            made, Planned("digits", name, "final", 0, 0, 0), ["a:1"][: len(variant.teachers)], Path("root")
        )
        for name, variant in variants.items()
    }
    entries = {name: config.teacher.entry if config.teacher else "no teacher" for name, config in configs.items()}
    assert entries == {"foundation": 4, "complementary": None, "nobody": "no teacher"}


def test_a_setting_that_no_run_has_is_refused() -> None:
    made = suite(variants={"talking": Variant(methods=("talking",), settings={"method.loudness": 2})})
    with pytest.raises(ConfigError, match="loudness"):
        run_config(made, Planned("digits", "talking", "final", 0, 0, 0), ["a:1"], Path("root"))
