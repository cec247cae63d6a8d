"""Whose CPU time it was: a benchmark's own processes are no strangers, however they end."""

from __future__ import annotations

import subprocess
import sys

from recording import OwnCpu

from tests.integration.gate import poll

BURN_S, TICK_S = 0.4, 0.02  # what the kernel counts in
BURN = f"import time\nwhile time.process_time() < {BURN_S}: pass\n"
# a parent that has the system bury its children, as Ray's raylet does
CARELESS = f"""
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", {BURN!r}])
print("begun", flush=True)
sys.stdin.read()
"""


def test_a_child_that_was_waited_for_counts_without_a_look_at_it() -> None:
    own = OwnCpu()
    before = own.look()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert own.look() - before >= BURN_S - TICK_S


def test_a_grandchild_that_nobody_waits_for_counts_as_it_was_seen() -> None:
    own = OwnCpu()
    before = own.look()
    with subprocess.Popen([sys.executable, "-c", CARELESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        poll(lambda: own.look() - before >= BURN_S - TICK_S, "it is seen at work")
        parent.communicate()
    assert own.look() - before >= BURN_S - TICK_S, "and is not forgotten when it is gone"
