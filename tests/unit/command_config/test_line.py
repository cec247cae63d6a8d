"""The command lines by themselves: help with examples, flags for programs, hints, what a shell completes, how fast."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from command_config.line import run_line
from student_client.config import RunConfig
from student_client.method_config import MethodName
from student_client.methods import METHODS
from student_models.export import FORMATS
from task_data import LOADERS
from task_data.config import DataName
from teacher_server.config import DTYPES, PACKAGED, ServerConfig
from teacher_server.models.packaged import TEACHERS
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


def test_the_help_of_export_names_its_formats() -> None:
    (export,) = (each for each in COMMANDS if str(each) == "student-client export")
    (file,) = (param for param in export.command.params if param.name == "file")
    assert tuple(re.findall(r"\.\w+\b", file.help)) == FORMATS


COMPLETED = {
    "student-client": {
        "tra": "train",
        "train --meth": "--method",
        "train --method talking,so": "talking,soft_labels",
        "train --data new": "newsgroups",
        "train --set training.l": "training.labelled_share= training.lr= training.log_every=",
        "compare --suite sm": "smoke",
        "evaluate runs/mine --split v": "validation",
        "evaluate ru": "",
        "search --task th": "thriller",
        "fleet fleet.yaml --on r": "ray",
    },
    "teacher-server": {
        "serve --model mi": "minilm",
        "serve --dtype b": "bfloat16",
        "token re": "revoke",
        "finetune --train lo": "lora",
        "serve --device-map ba": "balanced",
        "fleet --fleet-set up_q": "up_queue_s=",
        "fleet --set perm": "permits=",
        "repl": "replace",
    },
}


@pytest.mark.parametrize("program", COMPLETED)
def test_a_shell_completes(program: str) -> None:
    """The script that `--show-completion` prints, in a real bash, calling the real command."""
    module = program.replace("-", "_")
    script = (
        f'{program}() {{ {sys.executable} -c \'import sys; sys.argv[0] = "{program}"; '
        f'from {module}.__main__ import main; main()\' "$@"; }}\n'
        f'eval "$(_{module.upper()}_COMPLETE=source_bash {program} | sed "s#env ##; s#\\$1#{program}#")"\n'
    )
    for typed in COMPLETED[program]:
        words = typed.split()
        script += f"COMP_WORDS=({program} {typed}); COMP_CWORD={len(words)}; _{module}_completion {program}\n"
        script += 'echo "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(COMPLETED[program].values())


def test_help_and_completion_load_no_torch() -> None:
    """A shell waits for them at every TAB; every help is shown in one process, which then says what it has loaded."""
    heavy = {"torch", "transformers", "pandas", "accelerate", "grpc", "sklearn", "ray", "lightning", "onnx"}
    script = (
        f"import sys, io, contextlib, tests.command_lines as lines\nfor each in lines.COMMANDS:\n"
        f"    assert lines.help_of(each)\nprint(len(lines.COMMANDS), *({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(COMMANDS))), done.stdout + done.stderr


def _missing(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("app", "said"),
    [
        (lambda: Path("/gone/file").read_text(), "/gone/file: No such file or directory; give a place"),
        (_full, "the disk: No space left on device"),
        (lambda: torch.empty(2**60), "not enough memory ("),
        (lambda: _missing("transformers.models"), "install it with: pip install 'talking-models[server]'"),
        (lambda: _missing("matplotlib"), "install it with: pip install 'talking-models[demo]'"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    app: Callable[[], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_line("teacher-server", app)
    out, errors = capsys.readouterr()
    assert (ended.value.code, out, errors.count("\n")) == (1, "", 1)
    assert said in errors


@pytest.mark.parametrize("bug", [lambda: _missing("teacher_server.gone"), lambda: int("x"), lambda: _refuse()])
def test_a_bug_keeps_its_stack(bug: Callable[[], None]) -> None:
    with pytest.raises((ModuleNotFoundError, ValueError, ConnectionResetError)):
        run_line("teacher-server", bug)


def _refuse() -> None:
    raise ConnectionResetError(errno.ECONNRESET, "a socket of ours")


def test_every_field_that_set_completes_has_a_sentence() -> None:
    for model in (RunConfig, ServerConfig):
        for name, info in model.model_fields.items():
            assert info.description, name
