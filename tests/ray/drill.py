"""A fleet of two real replicas under Ray, four students of it, and what befalls them; run in a namespace by test_teachers.

    python -m tests.ray.drill MODEL FOLDER short|long

short: the directory and one replica are killed -9 in mid-training. long: once they are back and the students have returned, the other replica is replaced.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from student_client.config import RunConfig
from student_client.connection.credentials import Credentials
from student_client.connection.pinning import ranked
from student_client.connection.resolving import resolve
from teaching_protocol.directory import Replica
from teaching_protocol.errors import TeachingError
from tests.chaos.world import assert_same, chaos_config, ended, log_of, student_process, unbroken, wait_for_step
from tests.integration.gate import poll

PLACES = ("replica-0", "replica-1")
STEPS = {"short": 45, "long": 700}
LIMIT_S = 200.0


@contextmanager
def fleet(model: Path, folder: Path, *words: str, count: int = len(PLACES)) -> Iterator[Callable[[], str]]:
    """The command itself, begun; gives what waits for it and gives the directory's address."""
    fixed = ["--set", "entry=1", "--set", "exit=3", "--set", "device=cpu", "--set", "threads=1", "--set", "lease_s=10"]
    command = [sys.executable, "-m", "teacher_server", "fleet", "--model", str(model), "--deterministic", "--port", "0"]
    command.append("--json")
    with (folder / "fleet.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--cpus", "0.5", *fixed, *words], stdout=subprocess.PIPE, stderr=log, text=True
        )

        def address() -> str:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("{"), (folder / "fleet.log").read_text()[-4000:]
            told = json.loads(line)
            assert told["replicas"] == count
            return str(told["serving"])

        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "fleet.log").read_text()[-4000:]


def listed(directory: str) -> dict[str, Replica]:
    """Who serves, by name."""
    try:
        found = resolve(directory, Credentials(), 5.0) or ()
    except TeachingError:
        return {}
    return {each.name: each for each in found if each.state == "serving"}


def pid_of(address: str) -> int:
    """The process that listens at an address."""
    port = int(address.rpartition(":")[2])
    found = [each.pid for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == port]
    assert found[0] is not None
    return found[0]


def pid_of_directory() -> int:
    """Ray's process of the directory actor."""
    processes = psutil.process_iter(["cmdline"])
    (found,) = [each.pid for each in processes if "DirectoryActor" in " ".join(each.info["cmdline"] or [])]
    return found


def names() -> list[str]:
    """Two students that belong to each replica."""
    mine: dict[str, list[str]] = {place: [] for place in PLACES}
    for number in range(100):
        mine[ranked(f"s{number}", PLACES)[0]].append(f"s{number}")
    return [name for place in PLACES for name in mine[place][:2]]


def sessions(directory: str) -> dict[str, int]:
    return {name: each.sessions for name, each in listed(directory).items()}


def drill(model: Path, folder: Path, form: str) -> None:
    steps = STEPS[form]
    with fleet(model, folder) as address, ExitStack() as stack:
        whole, directory = unbroken(model, folder, steps), address()
        configs = [
            chaos_config(folder, name, directory, steps, teacher__student=name, teacher__settle_s=1.0)
            for name in names()
        ]
        students = [stack.enter_context(student_process(config)) for config in configs]
        for config, student in zip(configs, students, strict=True):
            wait_for_step(config, student, 11)
        assert sessions(directory) == dict.fromkeys(PLACES, 2)
        first = listed(directory)["replica-0"].address
        os.kill(pid_of_directory(), signal.SIGKILL)  # what was known holds until it is back
        os.kill(pid_of(first), signal.SIGKILL)
        if form == "long":
            replace_the_other(directory, first, configs)
        found = [ended(config, student) for config, student in zip(configs, students, strict=True)]
    for config, broken in zip(configs, found, strict=True):
        assert_same(broken, whole, steps)
        told = broken.result
        said = f"{told['recoveries']} recoveries, {told['moves']} moves, {told['replayed_steps']} steps made again"
        sys.stdout.write(f"{config.output.name}: {said}\n")
    for broken in found[:2]:  # those of the killed one
        assert broken.result["recoveries"] >= 1
        assert broken.result["replayed_steps"] <= 2 * configs[0].training.rewind_steps
    if form == "long":
        assert all(broken.result["moves"] >= 1 for broken in found), "the first two have gone back where they belong"
        lost = [(broken.result["recoveries"], broken.result["replayed_steps"]) for broken in found[2:]]
        assert lost == [(0, 0), (0, 0)], "who only moved has lost nothing"


def replace_the_other(directory: str, first: str, configs: list[RunConfig]) -> None:
    """Waits for the killed replica's return, and for that of its students; then has the other one replaced."""
    there = poll(lambda: listed(directory).get("replica-0", Replica("", first)).address != first, "it is back", LIMIT_S)
    assert there
    poll(lambda: sessions(directory) == dict.fromkeys(PLACES, 2), "its students are back", LIMIT_S)
    told = subprocess.run(
        [sys.executable, "-m", "teacher_server", "replace", "replica-1", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == {"fleet": "teachers", "replaces": "replica-1"}
    poll(lambda: set(listed(directory)) == {"replica-0", "replica-2"}, "the other is replaced", LIMIT_S)
    for config in configs:
        assert not (config.output / "ended.json").exists(), (
            f"{config.output.name} was at its end before: {log_of(config)}"
        )


if __name__ == "__main__":
    drill(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
