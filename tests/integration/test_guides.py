"""Every guide by copy and paste: its titled blocks as files, its blocks marked sh in one shell, in a fresh folder with tiny data."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.processes import Address
from tests.unit.student_client.run_setup import write_csv
from tests.unit.teacher_server.tiny_models import tiny_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = {path.stem: path.read_text() for path in [ROOT / "docs/quickstart.md", *(ROOT / "docs/guides").glob("*.md")]}
COMMANDS = {"teacher-server": "-m teacher_server", "student-client": "-m student_client", "python": ""}
LONG = ("Serve it", "Is it worth it?", "Less to write")
"""Sections left to the long test: they start servers of their own, or many processes."""
BLOCK = re.compile(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
SMALLER = {
    "labelled: 300": "labelled: 60",
    "unlabelled: 1500": "unlabelled: 40",
    "validation: 200": "validation: 30",
    "test: 200": "test: 30",
    "--labelled 300 --set data.validation=200 --set data.test=200": (
        "--labelled 60 --set data.validation=30 --set data.test=30 --epochs 1"
    ),
    "block_bytes: 480": "block_bytes: 120",
    "--labelled 300": "--labelled 60 --size tiny --set data.validation=30 --set data.test=30",
    "--unlabelled 1500": "--unlabelled 40",
    "--config mails.yaml": "--config mails.yaml --set training.device=cpu",
    "--max-steps 300": "--max-steps 20",
    "--max-steps 200 --episodes 5": "--max-steps 10 --episodes 2",
    "STEPS, ROWS, WIDTH, WORDS, LONGEST = 300": "STEPS, ROWS, WIDTH, WORDS, LONGEST = 30",
}
"""As the page, with fewer rows and steps."""


def smaller(text: str) -> str:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    return text


def blocks(page: str, without: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    """Language, title and text of every fenced block, but those of some sections."""
    sections = re.split(r"^## ", PAGES[page], flags=re.MULTILINE)
    return [
        found for section in sections if not section.startswith(without or "\0") for found in BLOCK.findall(section)
    ]


def write_mails(folder: Path) -> None:
    """`mails.csv`, and `mails.yaml` as the page on own data has it."""
    table = write_csv(folder).read_text()
    (folder / "mails.csv").write_text(table.replace("text,label", "body,folder"))
    (yaml,) = [text for _, title, text in blocks("own_data") if title == "mails.yaml"]
    (folder / "mails.yaml").write_text(smaller(yaml) + "student: {size: tiny}\n")


def write_words(folder: Path) -> None:
    """`words.jsonl` and `story.txt`, of a few words that the tiny tokenizer knows."""
    draw = random.Random(0)
    rows = [[draw.choice(["good", "bad", "film", "Anna", "Paris"]) for _ in range(8)] for _ in range(2500)]
    kinds = {"Anna": "B-person", "Paris": "B-place"}
    lines = [json.dumps({"tokens": row, "tags": [kinds.get(word, "O") for word in row]}) for row in rows[:200]]
    (folder / "words.jsonl").write_text("\n".join(lines))
    (folder / "story.txt").write_text("\n".join(" ".join(row) for row in rows))


def follow(page: str, folder: Path, without: tuple[str, ...] = (), limit_s: float = 250, **variables: str) -> str:
    """Does what the page says; gives what was printed. Where it starts servers, only loopback of its own is there."""
    write_mails(folder)
    write_words(folder)
    (folder / "bin").mkdir()
    for name, words in COMMANDS.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    lines = ["set -eu", "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT"]
    for language, title, text in blocks(page, without):
        if title and title != "mails.yaml":
            (folder / title).write_text(smaller(text))
        elif language == "sh":
            lines.append(smaller(text))
    (folder / "followed.sh").write_text("\n".join([*lines, "echo the end\n"]))
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = (
        os.environ
        | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")}
        | variables
    )
    alone = os.geteuid() == 0 and any("teacher-server serve" in line for line in lines)
    shell = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec bash "$0"'] if alone else ["bash"]
    done = subprocess.run(
        [*shell, "followed.sh"], cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s
    )
    logs = "\n".join(f"{log.name}: {log.read_text()[-800:]}" for log in folder.glob("*.log"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    assert done.stdout.endswith("the end\n")
    return done.stdout


def test_own_data(tmp_path: Path) -> None:
    said = follow("own_data", tmp_path)
    assert "train: 100 rows, 60 with their label" in said
    assert (tmp_path / "runs/labels_only/result.json").exists()
    assert "test micro_f1" in said
    assert "validation subset_accuracy" in said
    assert (tmp_path / "runs/saved/result.json").exists()
    assert (tmp_path / "runs/streamed/result.json").exists()


def test_own_method(servers: dict[str, Address], tmp_path: Path) -> None:
    follow("own_method", tmp_path, TEACHER=servers["bert"].name)
    assert "cosine" in (tmp_path / "runs/cosine/metrics.jsonl").read_text()


def test_own_student(servers: dict[str, Address], tmp_path: Path) -> None:
    said = follow("own_student", tmp_path, LONG, TEACHER=servers["bert"].name)
    assert "alone, without teacher and codec: test accuracy" in said
    assert (tmp_path / "gru.safetensors").exists()


def test_own_family(tmp_path: Path) -> None:
    assert "the adapter gives what the model gives" in follow("own_family", tmp_path, LONG)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("page", "said", "left"),
    [
        ("quickstart", "the film was good", "runs/taught/student/student.json"),
        ("own_family", "opt", "tiny-opt/config.json"),
        ("own_student", "read at taps, alone: test accuracy", "layers.onnx"),
        ("committee", "committee: test accuracy", "runs/committee/result.json"),
        ("selection", "selection: test accuracy", "runs/selected/result.json"),
        ("remote_node", "round trip", "runs/remote/result.json"),
        ("own_tokens", "span_f1", "runs/talked_tagger/result.json"),
        ("language_models", "goes on: ", "runs/talked/result.json"),
    ],
)
def test_the_long_ones(
    page: str, said: str, left: str, model_folder: Callable[[str], Path], servers: dict[str, Address], tmp_path: Path
) -> None:
    model = model_folder("llama" if page == "language_models" else "bert")
    if page == "language_models":
        tiny_tokenizer().save_pretrained(model := Path(shutil.copytree(model, tmp_path / "model")))
    variables = {"MODEL": str(model), "DATA": str(write_csv(tmp_path)), "TEACHER": servers["bert"].name}
    printed = follow(page, tmp_path, limit_s=550, **variables)
    assert (tmp_path / left).exists(), printed
    assert said in printed, printed


def test_every_page_is_followed_whole() -> None:
    """No page without a test, no block in a language that nothing runs."""
    assert set(PAGES) == {"own_data", "own_student", "own_method", "own_family", "quickstart"} | {
        "committee",
        "selection",
        "remote_node",
        "own_tokens",
        "language_models",
    }
    for page in PAGES:
        for language, title, _ in blocks(page):
            assert language == "sh" or title, f"{page}: a block marked {language} without the name of a file"
