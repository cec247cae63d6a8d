"""Students of a fleet file and a search as actors of a real Ray; run in a namespace by test_students.

python -m tests.ray.pupils FOLDER
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.integration.gate import poll
from tests.unit.student_client.run_setup import run_config

LIMIT_S = 200.0
STEPS = 200


def common(folder: Path, steps: int) -> dict[str, Any]:
    """A run's configuration without its folder."""
    few = {"training__max_steps": steps, "training__checkpoint_every": 10, "training__evaluate_every": steps // 2}
    config = run_config(folder, "unused", **few)
    return config.model_dump(mode="json", exclude={"output", "teacher"})


def fleet_file(folder: Path) -> Path:
    """Three students of one seed, so that their weights are the same however often one was begun; one that cannot begin."""
    path = folder / "fleet.yaml"
    students = [{"name": name} for name in ("ann", "bob", "eve")]
    students.append({"name": "wrong", "settings": {"training.lr": -1.0}})
    fields = {"name": "pupils", "output": str(folder / "runs"), "restarts": 2, "first_pause_s": 0.1}
    path.write_text(yaml.safe_dump({**fields, "common": common(folder, STEPS), "students": students}))
    return path


def client(*words: object) -> list[str]:
    return [sys.executable, "-m", "student_client", *map(str, words)]


def student_process(folder: Path) -> psutil.Process | None:
    """The process of one student, wherever Ray has put it."""
    for each in psutil.process_iter(["cmdline"]):
        words = each.info["cmdline"] or []
        if "student_client.fleet.child" in words and any(str(folder) in word for word in words):
            return each
    return None


def pupils(folder: Path) -> None:
    """One student is killed -9; all end, and it as the others do; the one whose settings are none fails."""
    fleet = subprocess.Popen(
        client("fleet", fleet_file(folder), "--on", "ray", "--json"),
        stdout=subprocess.PIPE,
        stderr=(folder / "fleet.log").open("w"),
        text=True,
    )
    bob = folder / "runs" / "bob"

    def has_begun() -> bool:
        assert fleet.poll() is None, fleet.communicate()[0]
        return any((bob / "checkpoints").glob("*"))

    poll(has_begun, "bob has a checkpoint", LIMIT_S)
    process = student_process(bob)
    assert process is not None
    process.send_signal(signal.SIGKILL)
    said, _ = fleet.communicate(timeout=LIMIT_S)
    told = {each["name"]: each for each in json.loads((folder / "runs" / "fleet.json").read_text())["students"]}
    assert fleet.returncode == 1, said
    assert {name: each["state"] for name, each in told.items()} == {
        **dict.fromkeys(("ann", "bob", "eve"), "finished"),
        "wrong": "failed",
    }, said
    assert told["bob"]["attempts"] == 2
    assert {each["name"]: each for each in json.loads(said)["students"]} == told
    assert (
        len({(folder / "runs" / name / "student" / "model.safetensors").read_bytes() for name in ("ann", "bob")}) == 1
    )


def searched(folder: Path) -> None:
    """A search of three trials: the best validation is chosen, and comes out as a suite that compare reads."""
    from student_client.compare.suites import read_suite

    (folder / "space.yaml").write_text(yaml.safe_dump({"training.lr": {"low": 1e-6, "high": 1e-1, "log": True}}))
    whole = common(folder, 8)
    settings = {
        f"{section}.{name}": value
        for section in ("student", "training")
        for name, value in whole[section].items()
        if value is not None and name not in ("seed", "lr")
    }
    task = {"data": whole["data"], "settings": settings}
    suite = {
        "name": "small",
        "tasks": {"mood": task},
        "variants": {"labels": {"methods": ["task_only"], "teachers": []}},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(suite))
    words = [
        "--suite",
        folder / "small.yaml",
        "--task",
        "mood",
        "--variant",
        "labels",
        "--space",
        folder / "space.yaml",
    ]
    done = subprocess.run(
        client("search", *words, "--trials", 3, "--output", folder / "found", "--json"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    runs = json.loads((folder / "found" / "results.json").read_text())["runs"]
    assert [run["error"] for run in runs] == [None] * 3, runs
    assert len({run["settings"]["training.lr"] for run in runs}) == 3
    best = max(runs, key=lambda run: (run["validation"], -run["trial"]))
    told = json.loads(done.stdout)
    assert (told["trial"], told["trials"], told["validation"]) == (best["trial"], 3, best["validation"])
    chosen = read_suite(Path(told["suite"]))
    assert chosen.trials("labels") == ({"training.lr": best["settings"]["training.lr"]},)


if __name__ == "__main__":
    {"fleet": pupils, "search": searched}[sys.argv[1]](Path(sys.argv[2]))
