"""Fleets on a Ray that believes to have three GPUs: who gets which, and what is said when there are too few; run by test_placement.

python -m tests.ray.placement BERT LLAMA FOLDER
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.ray.drill import fleet

LIMIT_S = 120.0


def failed(*words: object) -> str:
    """What a fleet says that ends by itself, in time."""
    command = [sys.executable, "-m", "teacher_server", "fleet", "--port", "0", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 1, done.stderr[-4000:]
    return done.stderr


def gpus(folder: Path) -> dict[str, list[str]]:
    """The GPUs of each replica, by the fleet's log."""
    said = (folder / "fleet.log").read_text()
    return {name: seen.split(",") for name, seen in re.findall(r"(replica-\d) serves at \S+, GPUs (\S+)", said)}


def placement(bert: Path, llama: Path, folder: Path) -> None:
    began = time.monotonic()
    said = failed("--model", bert, "--replicas", 3, "--gpus", 1)
    assert "room for 0; start fewer" in " ".join(said.split()), said
    assert time.monotonic() - began < LIMIT_S / 2, "at once: no teacher was begun for it"

    ray = Path(sys.executable).with_name("ray")
    start = [str(ray), "start", "--head", "--num-gpus", "3", "--num-cpus", "4", "--include-dashboard", "false"]
    subprocess.run([*start, "--node-ip-address", "127.0.0.1"], check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
    one, other = folder / "one", folder / "other"
    split = (
        "--ray",
        "auto",
        "--name",
        "split",
        "--replicas",
        1,
        "--cpus",
        0.5,
        "--set",
        "tensor_parallel=2",
        "--set",
        "device=auto",
    )
    for each in (one, other):
        each.mkdir()
    with fleet(bert, one, "--ray", "auto", "--gpus", "1") as address:
        address()
        found = gpus(one)
        assert found.keys() == {"replica-0", "replica-1"}
        assert [len(each) for each in found.values()] == [1, 1]
        assert found["replica-0"] != found["replica-1"], "each has its own"
        words = ("--model", llama, *split, "--set", "threads=1", "--fleet-set", "room_s=35")
        said = " ".join(failed(*words).split())
        assert "each wants 0.5 CPUs and 2 GPUs, and of the cluster's 4 CPUs and 3 GPUs free are" in said, said
        assert "and no other serves; give each less, or the cluster more" in said
    with fleet(llama, other, *map(str, split), count=1) as address:
        address()
        (found_two,) = gpus(other).values()
        assert len(found_two) == 2, "one for each process of a split teacher"


if __name__ == "__main__":
    placement(*map(Path, sys.argv[1:4]))
