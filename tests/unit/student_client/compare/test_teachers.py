from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from student_client.compare.suites import SuiteTask, TeacherPlan
from student_client.compare.teachers import Recipe, Servers, read_scores, recipes, served_model, teacher_facts
from task_data.config import DataConfig
from teaching_protocol.errors import TeacherUnavailable

DATA = DataConfig.model_validate({"name": "movielens", "genre": "Comedy", "labelled": None, "validation": 70})


def task(foundation: TeacherPlan, complementary: TeacherPlan | None = None) -> SuiteTask:
    settings = {"training.max_steps": 9, "training.lr": 0.01, "method.rounds": 2, "student.size": "tiny"}
    return SuiteTask(data=DATA, settings=settings, foundation=foundation, complementary=complementary)


def settings_of(recipe: Recipe) -> dict[str, object]:
    command = recipe.job["command"]
    given = [command[place + 1] for place, word in enumerate(command) if word == "--set"]
    return {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in given)}


def test_a_model_without_a_head_is_served_as_it_is(tmp_path: Path) -> None:
    plain = task(TeacherPlan(model="minilm"))
    assert list(recipes(plain, ("foundation", "trained"), tmp_path)) == []
    assert served_model(plain, ("foundation", "trained"), tmp_path) == "minilm"
    (blank,) = recipes(plain, ("foundation", "random"), tmp_path)
    assert (blank.job["kind"], blank.job["source"]) == ("randomise", "minilm")
    assert served_model(plain, ("foundation", "random"), tmp_path) == str(blank.folder)


def test_a_head_is_trained_on_the_rows_of_the_task(tmp_path: Path) -> None:
    plan = TeacherPlan(model="minilm", finetune={"epochs": 3, "learning_rates": [0.01]}, server={"max_tokens": 64})
    (made,) = recipes(task(plan), ("foundation", "trained"), tmp_path)
    words = made.job["command"]
    assert words[words.index("--model") + 1] == "minilm"
    assert words[words.index("--data") + 1] == "movielens"
    assert (
        words[words.index("--out") + 1]
        == str(made.folder)
        == served_model(task(plan), ("foundation", "trained"), tmp_path)
    )
    assert settings_of(made) == {
        "data.genre": "Comedy",
        "data.labelled": None,
        "data.validation": 70,
        "epochs": 3,
        "learning_rates": [0.01],
        "max_tokens": 64,
    }


def test_the_control_has_random_weights_and_a_head_of_its_own_by_the_same_command(tmp_path: Path) -> None:
    whole = task(TeacherPlan(model="minilm", finetune={"epochs": 3}))
    trained, blank, control = recipes(whole, ("foundation", "random"), tmp_path)
    assert [trained.folder] == [each.folder for each in recipes(whole, ("foundation", "trained"), tmp_path)]
    assert (blank.job["source"], blank.needs) == (str(trained.folder), (trained.folder,))
    assert control.needs == (blank.folder,)
    words = control.job["command"]
    assert words[words.index("--model") + 1] == str(blank.folder)
    assert settings_of(control) == settings_of(trained)
    assert served_model(whole, ("foundation", "random"), tmp_path) == str(control.folder)


def test_a_student_is_trained_task_only_on_the_rows_of_the_task(tmp_path: Path) -> None:
    plan = TeacherPlan(student={"training.max_steps": 40, "data.other_genres": True})
    whole = task(TeacherPlan(model="minilm"), plan)
    (made,) = recipes(whole, ("complementary", "trained"), tmp_path)
    config = made.job["config"]
    assert config["method"]["names"] == ["task_only"]
    assert config["student"]["size"] == "complementary"
    assert (config["training"]["max_steps"], config["training"]["lr"]) == (40, 0.01)
    assert config["data"] == json.loads(DATA.model_copy(update={"other_genres": True}).model_dump_json())
    (control,) = recipes(whole, ("complementary", "random"), tmp_path)
    assert control.job["kind"] == "randomise"
    assert control.job["student"]["student"] == config["student"]
    assert control.folder != made.folder


def test_what_was_made_of_the_same_is_not_made_again(tmp_path: Path) -> None:
    whole = task(TeacherPlan(student={}))
    (made,) = recipes(whole, ("foundation", "trained"), tmp_path)
    assert not made.is_made
    made.folder.mkdir(parents=True)
    made.note()
    assert made.is_made
    changed = whole.model_copy(update={"data": DATA.model_copy(update={"seed": 1})})
    (other,) = recipes(changed, ("foundation", "trained"), tmp_path)
    assert not other.is_made
    facts = [teacher_facts(each, ("foundation", "trained"), tmp_path) for each in (whole, changed)]
    assert facts[0] != facts[1]


def test_scores_that_are_not_there_are_not_known(tmp_path: Path) -> None:
    assert read_scores(tmp_path, ("foundation", "trained")) is None


def test_a_server_that_does_not_start_says_why_and_is_given_up_after_a_few_times(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = Servers(task(TeacherPlan(model=str(tmp_path / "nothing"))), tmp_path, stack)
        with pytest.raises(TeacherUnavailable, match=r"ended before it served.*nothing.*its log is .*server-1\.log"):
            servers.address(("foundation", "trained"))
        servers._starts["foundation", "trained"] = 3
        with pytest.raises(TeacherUnavailable, match=r"died 3 times; its last log is .*server-3\.log"):
            servers.address(("foundation", "trained"))
