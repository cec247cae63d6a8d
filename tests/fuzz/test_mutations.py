"""The short version of `make fuzz`: a few thousand mutated inputs for each target, and what the fuzzer itself would find."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from random import Random

import pytest

from teaching_protocol.errors import InternalError, InvalidTensor
from tests.fuzz.targets import TARGETS, outcome
from tests.integration.processes import ROOT


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_thousand_inputs(target: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz", target, "--inputs", "3000", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "3000 inputs" in done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_the_inputs_reach_what_lies_behind_the_first_check(target: str) -> None:
    feed, random = TARGETS[target](), Random(1)
    found = [outcome(feed(random)[1]) for _ in range(500)]
    assert found.count("ok") > 5
    assert len(set(found)) >= 2


def _raises(error: Exception) -> Callable[[], None]:
    def use() -> None:
        raise error

    return use


def test_what_is_a_finding() -> None:
    assert outcome(_raises(InvalidTensor("typed"))) == "InvalidTensor"
    for error in (InternalError("x"), ValueError("x"), MemoryError(), RecursionError()):
        with pytest.raises(type(error)):
            outcome(_raises(error))
