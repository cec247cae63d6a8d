"""The command lines by themselves: help with examples, flags for programs, hints, what a shell completes, how fast."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any, get_args

import pytest

from student_client.config import RunConfig
from student_client.method_config import MethodName
from student_client.methods import METHODS
from task_data import LOADERS
from task_data.config import DataName
from teacher_server.config import DTYPES, PACKAGED, ServerConfig
from teacher_server.packaged import TEACHERS
from tests.command_lines import COMMANDS, Shown, shown_examples
from tests.test_architecture import ROOT

WITHOUT_JSON = {"teacher-server token add": "its standard output is the token alone, or nothing"}


@pytest.mark.parametrize("shown", COMMANDS, ids=str)
def test_every_example_in_a_help_is_a_line_of_that_command(shown: Shown) -> None:
    examples = shown_examples(shown)
    assert examples
    for words in examples:
        depth = len(shown.words)
        assert tuple(words[:depth]) == shown.words
        context = shown.command.make_context(str(shown), words[depth:])  # flags, numbers, what must be given
        assert not context.args


@pytest.mark.parametrize("shown", COMMANDS, ids=str)
def test_what_is_completed_is_what_the_examples_give(shown: Shown) -> None:
    """A value of an example is offered for its beginning; where names are offered, a path may stand instead."""
    options = {name: param for param in shown.command.params for name in param.opts}
    for words in shown_examples(shown):
        for flag, value in pairwise(words):
            complete: Any = getattr(options.get(flag), "_custom_shell_complete", None)
            if complete is None or "." in value or "/" in value or "=" in value:
                continue
            offered = [item.value for item in complete(None, options[flag], value[:-1])]
            assert value in offered, (words, flag)


@pytest.mark.parametrize("shown", COMMANDS, ids=str)
def test_every_command_can_speak_json(shown: Shown) -> None:
    has_flag = any("--json" in param.opts for param in shown.command.params)
    assert has_flag == (str(shown) not in WITHOUT_JSON)


def test_names_that_are_completed_are_all_there_are() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    assert set(LOADERS) == set(get_args(DataName))
    assert set(PACKAGED) == set(TEACHERS)
    assert set(DTYPES) == set(get_args(ServerConfig.model_fields["dtype"].annotation))


def _bash(script: str) -> str:
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("student-client tra", ["train"]),
        ("student-client train --meth", ["--method"]),
        ("student-client train --method talking,so", ["talking,soft_labels"]),
        ("student-client train --data new", ["newsgroups"]),
        ("student-client train --set training.l", ["training.labelled_share=", "training.lr=", "training.log_every="]),
        ("student-client compare --suite sm", ["smoke"]),
        ("student-client evaluate runs/mine --split v", ["validation"]),
        ("teacher-server serve --model mi", ["minilm"]),
        ("teacher-server serve --dtype b", ["bfloat16"]),
        ("teacher-server token re", ["revoke"]),
        ("teacher-server finetune --train lo", ["lora"]),
    ],
)
def test_a_shell_completes(line: str, offered: list[str]) -> None:
    """The script that `--show-completion` prints, in a real bash, calling the real command."""
    program = line.split()[0]
    module = program.replace("-", "_")
    variable, words = f"_{module.upper()}_COMPLETE", line.split()
    script = (
        f'{program}() {{ {sys.executable} -c \'import sys; sys.argv[0] = "{program}"; '
        f'from {module}.__main__ import main; main()\' "$@"; }}\nexport -f {program}\n'
        f'eval "$({variable}=source_bash {program} | sed "s#env ##; s#\\$1#{program}#")"\n'
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}\n"
        f'_{module}_completion {program}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    assert _bash(script).split() == offered


def test_help_and_completion_load_no_torch() -> None:
    """A shell waits for them at every TAB."""
    heavy = {"torch", "transformers", "pandas", "accelerate", "grpc", "sklearn"}
    for module in ("student_client.cli", "teacher_server.cli"):
        script = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_every_field_that_set_completes_has_a_sentence() -> None:
    for model in (RunConfig, ServerConfig):
        for name, info in model.model_fields.items():
            assert info.description, name
