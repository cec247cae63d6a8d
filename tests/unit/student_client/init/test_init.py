"""`student-client init`, by flags and by answers, against a real server; what it writes is trained with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from student_client.cli import build_app
from student_client.config import load_run_config
from task_data import load_data
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from tests.unit.student_client.run_setup import write_csv
from tests.unit.task_data.multi_label_files import sample, write_form

SMALL = ["--size", "tiny", "--batch-size", "8", "--max-steps", "3"]


@pytest.fixture(scope="module")
def address(model_folder: Callable[[str], Path]) -> Iterator[str]:
    settings: dict[str, Any] = {
        "model": str(model_folder("bert")),
        "device": "cpu",
        "entry": 1,
        "exit": 3,
        "max_rows": 64,
    }
    with TeacherApp(ServerConfig(port=0, metrics_port=-1, **settings)) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path)


def run(*words: str, answers: str | None = None) -> tuple[int, str, str]:
    done = CliRunner().invoke(build_app(), words, input=answers)
    said = done.stderr if done.exception is None or isinstance(done.exception, SystemExit) else str(done.exception)
    return done.exit_code, done.stdout, said


def test_what_is_written_is_checked_and_trained_with(address: str) -> None:
    code, out, said = run("init", "run.yaml", "--yes", "--data", "mood.csv", "--teacher", address, *SMALL)
    assert code == 0, said
    assert "student-client train --config run.yaml" in out
    assert "4 layers" in said
    assert "messages enter at layer 1 and are answered at 3" in said
    config = load_run_config(Path("run.yaml"), {})
    assert (config.data.name, config.data.text_column, config.data.label_column) == ("file", "text", "label")
    assert (config.data.labelled, config.data.unlabelled, config.data.validation) == (130, 0, 30)
    assert config.teacher is not None
    assert (config.teacher.address, config.teacher.entry, config.teacher.exit) == (address, 1, 3)
    assert (config.method.names, config.training.max_steps, config.output) == (("talking",), 3, Path("runs/mood"))
    assert run("check-config", "run.yaml")[0] == 0
    code, out, said = run("train", "--config", "run.yaml", "--json")
    assert code == 0, said
    result = json.loads(out)
    assert (result["steps"], result["method"], result["finished"]) == (3, "talking", True)
    assert result["teacher_s"] > 0


def test_the_same_by_answers(address: str) -> None:
    by_flags = run("init", "flags.yaml", "--yes", "--data", "mood.csv", "--teacher", address, *SMALL)
    answers = ["mood.csv", "", "", "", address, "", "", "", "tiny", "8", "3", ""]
    code, _, said = run("init", "answers.yaml", answers="\n".join(answers) + "\n")
    assert (by_flags[0], code) == (0, 0), said
    assert load_run_config(Path("answers.yaml"), {}) == load_run_config(Path("flags.yaml"), {})


def test_a_wrong_answer_is_asked_for_again_with_a_hint(address: str) -> None:
    answers = [
        "mod.csv",
        "mood.csv",
        "rows",
        "row",
        "",
        "",
        address,
        "",
        "9",
        "",
        "talkng",
        "one_way",
        "tiny",
        "x",
        "8",
        "3",
        "",
    ]
    code, out, said = run("init", answers="\n".join(answers) + "\n")
    assert code == 0, said
    for hint in (
        "--data: there is no file or folder mod.csv; check the path",
        "--level: received 'rows', expected one of row, token, next_token; did you mean row?",
        "--exit: received '9', expected a whole number from 2 to 4",
        "did you mean talking?",
        "expected a whole number from 1 on",
    ):
        assert hint in out + said
    assert load_run_config(Path("run.yaml"), {}).method.names == ("one_way",)


def test_without_a_teacher_and_without_a_terminal() -> None:
    code, out, said = run("init", "alone.yaml", "--yes", "--teacher", "none", "--data", "mood.csv", "--json", *SMALL)
    assert code == 0, said
    assert json.loads(out)["fields"]["method.names"] == ["task_only"]
    assert yaml.safe_load(Path("alone.yaml").read_text())["method"] == {"names": ["task_only"]}
    code, out, said = run("train", "--config", "alone.yaml", "--quiet")
    assert code == 0, said
    assert "task_only: test accuracy" in out


def test_a_file_of_lists_of_labels() -> None:
    write_form(Path("lists.jsonl"), sample())
    code, _, said = run("init", "moods.yaml", "--yes", "--teacher", "none", "--data", "lists.jsonl", *SMALL)
    assert code == 0, said
    config = load_run_config(Path("moods.yaml"), {})
    assert (config.data.text_column, config.data.label_column) == ("text", "moods")
    assert load_data(config.data).task.kind == "multi_label"


def answered(*answers: str) -> tuple[Any, dict[str, Any]]:
    """What answers come to, and what the training with it ends as."""
    code, _, said = run("init", "run.yaml", "--overwrite", answers="\n".join(answers) + "\n")
    assert code == 0, said
    code, out, said = run("train", "--config", "run.yaml", "--overwrite", "--json")
    assert code == 0, said
    return load_run_config(Path("run.yaml"), {}), json.loads(out)


def test_labels_of_tokens_by_answers(address: str) -> None:
    """The file tells its level and its columns; the conversation leaves out what reads labels in an answer."""
    rows = [{"words": ["good", "film", str(n)], "kinds": ["O", "B-film", "O"]} for n in range(40)]
    Path("words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config, result = answered("words.jsonl", "", "", "", address, "", "", "", "tiny", "8", "2", "")
    assert (config.data.level, config.data.tokens_column, config.data.tags_column) == ("token", "words", "kinds")
    assert (config.method.names, config.method.w_answer_task, config.method.w_answer_labels) == (("talking",), 0, 0)
    assert (result["metric"], result["steps"]) == ("span_f1", 2)


def test_next_tokens_by_answers(address: str) -> None:
    Path("story.txt").write_text("\n".join(f"the {n}th film was good, and the one behind it bad" for n in range(400)))
    config, result = answered("story.txt", "", address, "", "", "talking", "tiny", "8", "2", "")
    assert (config.data.level, config.method.w_answer_task) == ("next_token", 0)
    assert (config.data.labelled, config.data.unlabelled) == (29, 0), "of 43 blocks, of which 8 test and 6 validate"
    assert (result["metric"], result["steps"]) == ("perplexity", 2)


def test_several_labels_by_answers() -> None:
    kinds = ("good", "bad", "good; bad", "")
    rows = "\n".join(f"film {n},{kinds[n % 4]}" for n in range(60))
    Path("several.csv").write_text(f"text,label\n{rows}\n")
    config, result = answered("several.csv", "", "", "", "", "none", "", "tiny", "8", "2", "")
    assert (config.data.label_separator, result["metric"]) == (";", "micro_f1")


def test_a_student_that_reads_the_teachers_tokens() -> None:
    Path("story.txt").write_text("the film was good\n" * 400)
    words = ("--yes", "--data", "story.txt", "--teacher", "a:1", "--offline", "--method", "soft_labels")
    code, _, said = run("init", "run.yaml", *words)
    assert code == 1
    assert "expected the name or folder of the teacher's tokenizer" in said
    assert run("init", "run.yaml", *words, "--tokenizer", "models/teacher")[0] == 0
    assert load_run_config(Path("run.yaml"), {}).student.tokenizer == "models/teacher"


def test_fields_by_set_and_sections_of_the_methods_that_are_used() -> None:
    words = ("--yes", "--teacher", "a:1,b:2", "--offline", "--method", "talking,pkd", "--set", "training.lr=0.5")
    assert run("init", "run.yaml", *words, "--entry", "2")[0] == 0
    config = load_run_config(Path("run.yaml"), {})
    assert config.teacher is not None
    assert (config.teacher.address, config.teacher.addresses, config.teacher.entry) == ("a:1", ("b:2",), 2)
    assert config.training.lr == 0.5
    text = Path("run.yaml").read_text()
    assert "#pkd:" in text
    assert "rkd:" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mood.csv",), "mood.csv is there already; give a new name, or --overwrite"),
        (("--yes", "--teacher", "127.0.0.1:1"), "no teacher answers at 127.0.0.1:1"),
        (
            ("--yes", "--teacher", "none", "--method", "talking"),
            "--method: received 'talking', expected one of task_only",
        ),
        (("--yes", "--data", "newsgrups"), "did you mean newsgroups?"),
        (("--yes", "--teacher", "none", "--data", "mood.csv", "--label-column", "labl"), "did you mean label?"),
        (("--yes", "--teacher", "none", "--set", "training.lr=-1"), "training.lr: received -1"),
        (("--yes", "--teacher", "none", "--data", "mood.csv", "--level", "token"), "has 0 columns of lists"),
        (
            (
                "--yes",
                "--teacher",
                "a:1",
                "--offline",
                "--data",
                "mood.csv",
                "--level",
                "next_token",
                "--method",
                "committee",
            ),
            "it reads one prediction a row",
        ),
        ((), "nobody answers, the input has ended; give --data, or --yes"),
    ],
)
def test_what_is_refused_writes_nothing(words: tuple[str, ...], said: str) -> None:
    code, _, error = run("init", *words, answers="")
    assert code == 1
    assert said in error
    assert not Path("run.yaml").exists()


def test_image_data_and_a_teacher_of_text(address: str) -> None:
    code, _, error = run("init", "--yes", "--data", "digits", "--teacher", address)
    assert code == 1
    assert "the data are image, but bert takes" in error
