"""What a search may choose from: read from a file, within the comparison's rules, and made into a suite of one trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from student_client.compare.catalogue import SUITES
from student_client.compare.spaces import Choices, Range, read_space, with_chosen
from student_client.compare.suites import dump_suite, read_suite
from teaching_protocol.errors import ConfigError

SUITE = next(iter(SUITES.values()))
TASK = next(iter(SUITE.tasks))


def written(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def test_ranges_and_choices(tmp_path: Path) -> None:
    text = "training.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\nmethod.message_width: {choices: [32, 64]}\n"
    assert read_space(written(tmp_path, text)) == {
        "training.lr": Range(low=1e-4, high=1e-2, log=True),
        "method.message_width": Choices(choices=(32, 64)),
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("training.lr: {low: 1, high: 1}", "low < high"),
        ("training.lr: {low: 0, high: 1, log: true}", "above 0 with log"),
        ("training.lr: {choices: []}", "choices"),
        ("training.lr: 3", "low, high, log"),
        ("{}", "received no field"),
        ("a: [", "cannot be read"),
    ],
)
def test_what_is_no_space(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_space(written(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_space(tmp_path / "none.yaml")


def test_what_was_chosen_is_a_suite_that_can_be_read_again(tmp_path: Path) -> None:
    found = with_chosen(SUITE, TASK, "talking", {"training.lr": 0.003})
    path = tmp_path / "suite.yaml"
    path.write_text(dump_suite(found))
    again = read_suite(path)
    assert again.trials("talking") == ({"training.lr": 0.003},)
    assert again.variants_of(TASK) == ("talking",)
    assert again.tasks[TASK].data == SUITE.tasks[TASK].data
    assert again.variants["talking"].methods == SUITE.variants["talking"].methods


@pytest.mark.parametrize(
    "field", ["training.max_steps", "student.width", "data.labelled", "method.seed", "training.seed"]
)
def test_what_a_comparison_may_not_tune_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        with_chosen(SUITE, TASK, "talking", {field: 3})


@pytest.mark.parametrize(("task", "variant"), [("nothing", "talking"), (TASK, "nothing")])
def test_an_unknown_task_or_variant(task: str, variant: str) -> None:
    with pytest.raises(ConfigError, match="expected a task of"):
        with_chosen(SUITE, task, variant, {})
