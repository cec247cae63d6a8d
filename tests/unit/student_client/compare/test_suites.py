from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from student_client.compare.catalogue import SUITES
from student_client.compare.runner import known_runs
from student_client.compare.suites import Suite, Variant, dump_suite, read_suite
from student_client.methods import METHODS
from teaching_protocol.errors import ConfigError
from tests.unit.student_client.compare.suite_setup import suite


@pytest.mark.parametrize("name", SUITES)
def test_every_run_of_the_suites_that_come_along_has_a_configuration(name: str, tmp_path: Path) -> None:
    boards = known_runs(SUITES[name], (), seeds=2, tuned=True, root=tmp_path)
    assert [board.task for board in boards] == list(SUITES[name].tasks)
    assert all("task_only" in board.shown for board in boards)
    assert {shown for board in boards for shown in board.shown} == set(SUITES[name].variants)


def test_the_large_suites_compare_every_method_and_each_distilling_baseline_with_its_control() -> None:
    found = SUITES["all"]
    assert {method for variant in found.variants.values() for method in variant.methods} == set(METHODS)
    assert {"talking~random", "committee~random", "selection~random", "soft_labels~random"} <= set(found.variants)
    assert set(found.tasks) == {task for name in ("text", "ratings", "vision") for task in SUITES[name].tasks}


def test_a_suite_reads_back_from_its_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for made in (suite(), SUITES["text"]):
        path.write_text(dump_suite(made))
        assert read_suite(path) == made


SMALL = """
name: mine
grid: [{training.lr: 0.001}, {training.lr: 0.01}]
tasks:
  digits: {data: {name: digits}, settings: {training.max_steps: 3}, foundation: {student: {}}}
variants:
  task_only: {methods: [task_only], role: baseline, teachers: []}
  talking: {methods: [talking], grid: [{training.lr: 0.001}, {method.w_interact: 0.1}]}
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: mine", "name: ../mine", "string_pattern_mismatch|match pattern"),
        ("variants:", "variant:", "Extra inputs are not permitted"),
        ("  digits:", "  ../digits:", "names that can be folders"),
        (", {method.w_interact: 0.1}]", "]", "2 tuning trials for talking, as for all, received 1"),
        ("{method.w_interact: 0.1}", "{training.max_steps: 99}", "no training.max_steps here"),
        ("{method.w_interact: 0.1}", "{data.labelled: 99}", "no data.labelled here"),
        ("{method.w_interact: 0.1}", "{student.size: small}", "no student.size here"),
        ("role: baseline", "role: baseline, settings: {training.lr: 1}", "training.lr in the settings of task_only"),
        ("role: baseline", "role: best", "role"),
        ("{student: {}}", "{student: {}, model: minilm}", "either model or student"),
        ("{student: {}}", "{student: {data.seed: 1}}", "other rows to validate and test on"),
        ("{student: {}}", "{model: minilm, finetune: {data.validation: 1}}", "other rows to validate and test on"),
        ("teachers: []", "teachers: [complementary]", None),
        ("teachers: []", "settings_of: talking, grid: [{}, {}]", "one way to a setting, received grid, settings_of"),
        (
            "teachers: []",
            "settings_of: shouting",
            "setting of its own for settings_of of task_only, received 'shouting'",
        ),
        ("tasks:", "contrasts: [[talking, shouting]]\ntasks:", "received shouting"),
        ("foundation:", "variants: [shouting], foundation:", "for the task digits, received shouting"),
        ("foundation: {student: {}}", "variants: [talking]", "a teacher in the task digits"),
        ("name: mine", "name: [", "cannot be read"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_a_sentence(
    tmp_path: Path, old: str, new: str, said: str | None
) -> None:
    path = tmp_path / "mine.yaml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new, 1))
    if said is None:
        assert read_suite(path).variants_of("digits") == ("talking",), "no complementary teacher, so not compared"
        return
    with pytest.raises(ConfigError, match=said) as raised:
        read_suite(path)
    assert "mine.yaml" in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        read_suite(tmp_path / "none.yaml")


def test_narrowed_to_some_tasks_fewer_trials_and_other_steps() -> None:
    small = suite().narrowed(tasks=["films"], trials=2, steps=100)
    assert list(small.tasks) == ["films"]
    assert {len(small.trials(name)) for name in small.variants} == {2}
    assert small.tasks["films"].settings == {"training.max_steps": 100, "training.evaluate_every": 25}
    assert Suite.model_validate(small.model_dump()) == small
    often = SUITES["smoke"].narrowed(steps=100)
    assert often.tasks["digits"].settings["training.evaluate_every"] == 10, "not less often than it was"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"tasks": ["dogs"]}, "--tasks: received dogs, expected some of digits, films"),
        ({"trials": 4}, "--trials: received 4, expected 1 to 3"),
        ({"trials": 0}, "--trials: received 0"),
    ],
)
def test_what_cannot_be_narrowed(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        suite().narrowed(**flags)


@pytest.mark.parametrize(
    ("variants", "only", "said"),
    [
        ({"loud": Variant(methods=("shouting",))}, (), r"method.names.0: received 'shouting'[^;]*$"),
        ({"mute": Variant(methods=("talking",), teachers=())}, (), "mute: teachers is empty, expected one for talking"),
        ({"tiny": Variant(methods=("talking",), settings={"method.rounds": 0})}, (), "method.rounds: received 0"),
        ({"talking": Variant(methods=("talking",))}, ("listening",), "--only: received listening"),
    ],
)
def test_a_suite_is_checked_before_anything_begins(
    tmp_path: Path, variants: dict[str, Variant], only: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        known_runs(suite(variants=variants), only, seeds=1, tuned=True, root=tmp_path)
    assert list(tmp_path.iterdir()) == []
