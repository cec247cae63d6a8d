"""Takes the pictures of docs/status_page.md: a real teacher, real students, a real browser.

    python -m docs.screenshots [--seconds 270] [--out docs/images]

Serves the packaged teacher `minilm`, has students of different habits step against it for a while, one of them sending what
cannot be answered, and photographs the page in light, in dark and as wide as a phone. Needs Chromium and its driver.
"""

from __future__ import annotations

import argparse
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from student_client import RemoteTeacher
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teaching_protocol.errors import TeachingError
from tests.browser import browsing

# student, task, rows of a batch, seconds it thinks between two steps
STUDENTS = (
    ("alice-seed0", "newsgroups", 8, 0.2),
    ("alice-seed1", "newsgroups", 8, 0.25),
    ("bob", "uci_sentiment", 16, 1.0),
    ("carol-wide", "spam_assassin", 4, 0.1),
    ("dmitri", "movielens", 2, 0.6),
    ("erin-reuters", "reuters", 8, 2.5),
)
PICTURES = (("light", "light", 1440), ("dark", "dark", 1440), ("narrow", "light", 390))
WIDTH, TOKENS = 128, 32


def study(address: str, name: str, task: str, rows: int, think_s: float, over: threading.Event) -> None:
    """One student's loop, until it is over."""
    with RemoteTeacher(address, student=name, task=task, message_width=WIDTH, seed=0) as teacher:
        for step in itertools.count(1):
            message = torch.randn(rows, TOKENS, WIDTH, requires_grad=True)
            answer = teacher(message)
            answer.square().mean().backward()
            teacher.step(lr=1e-3)
            if name == "dmitri" and step % 25 == 3:
                with suppress(TeachingError):
                    teacher(torch.full((rows, TOKENS, WIDTH), torch.nan))
            if over.wait(think_s):
                return


@contextmanager
def class_of_students(address: str) -> Iterator[None]:
    """The students, each in a thread of its own."""
    over = threading.Event()
    threads = [threading.Thread(target=study, args=(address, *each, over)) for each in STUDENTS]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


def photograph(port: int, name: str, scheme: str, width: int, out: Path) -> None:
    """One picture of the whole page, in few colours, as it has few."""
    with browsing(width, 900, scheme) as browser:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.wait_for_rows(len(STUDENTS))
        path = out / f"status_{name}.png"
        browser.photograph(path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(96, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def main() -> None:
    """Takes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=270.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    given: Any = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    config = ServerConfig(model="minilm", port=0, metrics_port=0, threads=1, knowledge_cache_bytes=64 * 2**20)
    with TeacherApp(config) as app, class_of_students(f"127.0.0.1:{app.port}"):
        threading.Event().wait(given.seconds)
        for picture in PICTURES:
            photograph(app.metrics_port, *picture, given.out)


if __name__ == "__main__":
    main()
