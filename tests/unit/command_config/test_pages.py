"""Every command line of README and documentation is one that the commands take: names, flags, what must be given; runs nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_lines import COMMANDS, PROGRAMS, Shown
from tests.test_architecture import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SHELLS = {"", "sh", "bash", "console"}
INLINE = re.compile(r"`((?:teacher-server|student-client) [^`]+)`")
OURS = re.compile(r"(?:^|[ (|;&])(?:teacher-server|student-client) ")
BUILT_IN = {"--help", "--install-completion", "--show-completion"}
"""Flags that typer brings; a line with one of them is no command line of ours."""


def commands_of(words: list[str]) -> list[Shown]:
    """The command that the words begin with, by its longest name; none where there is none."""
    fitting = [each for each in COMMANDS if tuple(words[: len(each.words)]) == each.words]
    return sorted(fitting, key=lambda each: -len(each.words))[:1]


def lines_of(block: str) -> Iterator[list[str]]:
    """The words of each of our command lines in a block of shell, without what the shell itself does around them."""
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"^.*-m (teacher_server|student_client) ", lambda found: f"{found[1].replace('_', '-')} ", line)
        if not OURS.search(line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[();<>|&]+", word):
                if words and words[0] in PROGRAMS and not BUILT_IN & set(words):
                    yield words
                words = []
            elif words or word in PROGRAMS:
                words.append(word)


def test_the_words_of_a_line() -> None:
    shell = (
        'A=b teacher-server serve --model "$M" > log 2>&1 &  # it serves\nx | student-client ping \\\n  a:1 && true\n'
    )
    shell += "torchrun -n 2 -m student_client train --resume\nstudent-client --help\n"
    assert list(lines_of(shell)) == [
        ["teacher-server", "serve", "--model", "$M"],
        ["student-client", "ping", "a:1"],
        ["student-client", "train", "--resume"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_shows_lines_that_the_commands_take(page: Path) -> None:
    text = page.read_text()
    shells = [block for _, language, block in FENCED.findall(text) if language in SHELLS]
    for words in (words for block in shells for words in lines_of(block)):
        found = commands_of(words)
        assert found, words
        given = ["1" if word.startswith("$") else word for word in words[len(found[0].words) :] if word != "..."]
        context = found[0].command.make_context(str(found[0]), given)  # raises where a flag or a number is none
        assert not context.args, words
    for line in INLINE.findall(text):
        words = line.split()
        found = commands_of(words)
        known = {
            name for each in found for param in each.command.params for name in (*param.opts, *param.secondary_opts)
        }
        flags = {word.partition("=")[0] for word in words if word.startswith("--")} - BUILT_IN
        assert not found or flags <= known, line
