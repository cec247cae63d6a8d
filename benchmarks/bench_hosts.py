"""Several hosts: a teacher in one network namespace, two students in two others, and links that delay, lose, or carry little.

Throughput: two students without a model of their own, each on its host, against a served MiniLM; per condition the sum of their steps, beside what
`simulate_scale.py`'s model says. Recovery: two real training runs against a deterministic teacher; whether they end with the bits of a plain
run, their seconds a step, and, where the link is cut for longer than a call may take, the seconds from its return to the next step. Needs root.
A delay is a proxy of our own in the teacher's namespace (it costs some CPU); all hosts share the cores of one machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import psutil
from loads import median, minilm, quantile, served
from recording import Record, parser
from scale.cases import Scenario
from scale.costs import CALIBRATION, measured
from scale.world import simulate
from workers import Worker, Workers, window

from tests.chaos.proxy import Proxy
from tests.chaos.world import (
    Ended,
    TeacherProcess,
    assert_same,
    chaos_config,
    ended,
    steps_of,
    student_process,
    unbroken,
    wait_for_step,
)
from tests.hosts import CannotMake, Host, Link, hosts
from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

WORKER = str(Path(__file__).with_name("student_worker.py"))
OPEN: dict[str, Any] = {"host": "0.0.0.0", "insecure": True}
ROWS, TOKENS = 8, 64


@dataclass(frozen=True)
class Condition:
    """What a link suffers: seconds of delay each way, a share of packets lost, megabits a second (0 is no limit), seconds cut."""

    name: str
    delay_s: float = 0.0
    loss: float = 0.0
    mbit: float = 0.0
    cut_s: float = 0.0


CONDITIONS = (
    Condition("a link alone"),
    Condition("1 ms delay", delay_s=0.001),
    Condition("20 ms delay", delay_s=0.02),
    Condition("1% loss", loss=0.01),
    Condition("1 Gbit/s", mbit=1000),
    Condition("100 Mbit/s", mbit=100),
)
CUT = Condition("cut for 4 s", cut_s=4.0)


@contextmanager
def suffering(links: Sequence[Link], condition: Condition) -> Iterator[None]:
    """Loss and limit of all links, while the block runs."""
    for link in links:
        if condition.loss:
            link.lose(condition.loss)
        if condition.mbit:
            link.limit(condition.mbit)
    try:
        yield
    finally:
        for link in links:
            link.heal()


def proxies(host: Host, links: Sequence[Link], port: int, stack: ExitStack) -> list[Proxy]:
    """One for each link, in the teacher's host."""
    with host.entered():
        return [stack.enter_context(Proxy(port, link.address)) for link in links]


def throughput(network: tuple[Host, list[Link]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    host, links = network
    with ExitStack() as stack:
        with host.entered():
            server = stack.enter_context(served(minilm(), psutil.cpu_count() or 1, **OPEN))
        port = int(server.address.rpartition(":")[2])
        delaying = proxies(host, links, port, stack)
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        workers = stack.enter_context(Workers())
        direct = [student(workers, link, f"{link.address}:{port}", f"direct-{link.device}") for link in links]
        far = [
            student(workers, link, proxy.address, f"far-{link.device}")
            for link, proxy in zip(links, delaying, strict=True)
        ]
        rows = []
        for condition in CONDITIONS:
            for proxy in delaying:
                proxy.delay_s = condition.delay_s
            with suffering(links, condition):
                answers = work(far if condition.delay_s else direct, arguments.seconds)
                lost = sum(link.lost() for link in links) if condition.loss else 0
            rows.append(row(condition, answers, lost, arguments))
        return rows


def student(workers: Workers, link: Link, address: str, name: str) -> Worker:
    with link.student.entered():
        (made,) = workers.add([(WORKER, name, "--remote", address, "--no-shared-memory")])
    return made


def work(workers: Sequence[Worker], seconds: float) -> list[dict[str, Any]]:
    return window(workers, seconds, threads=1, rows=ROWS, tokens=TOKENS, work="step")


def row(
    condition: Condition, answers: Sequence[dict[str, Any]], lost: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    took = [each for answer in answers for each in answer["seconds"]]
    steps_s = sum(answer["steps"] for answer in answers) / arguments.seconds
    found = {
        "link": condition.name,
        "steps/s": steps_s,
        "step p50, ms": median(took) * 1e3,
        "p95, ms": quantile(took, 0.95) * 1e3,
        "packets lost": lost,
    }
    predicted = modelled(condition, len(answers)) if arguments.calibration.exists() else None
    return found | {"model, steps/s": predicted, "error": predicted and predicted / steps_s - 1}


def modelled(condition: Condition, students: int) -> float | None:
    """What the model says; it knows no loss."""
    if condition.loss:
        return None
    here: dict[str, Any] = {"one_host": True, "teacher_cores": psutil.cpu_count() or 1, "host_students": 1}
    gbps = condition.mbit / 1e3 or 20.0
    wire = {"gbps": gbps, "delay_s": condition.delay_s or 5e-5, "way": "bf16", "local": "none", "steps": 20}
    return simulate(Scenario(students, **here, **wire), measured()).steps_s


def recovery(network: tuple[Host, list[Link]], folder: Path, steps: int) -> list[dict[str, Any]]:
    model = folder / "bert"
    tiny_model("bert").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    plain = unbroken(model, folder, steps)
    return [trained(network, model, folder, condition, plain, steps) for condition in (*CONDITIONS, CUT)]


def trained(
    network: tuple[Host, list[Link]], model: Path, folder: Path, condition: Condition, plain: Ended, steps: int
) -> dict[str, Any]:
    """Two runs at once under one condition."""
    host, links = network
    with ExitStack() as stack:
        teacher = stack.enter_context(TeacherProcess(model, settings=OPEN, namespace=host.name))
        teacher.wait_until_it_serves()
        addresses = [f"{link.address}:{teacher.port}" for link in links]
        if condition.delay_s:
            delaying = proxies(host, links, teacher.port, stack)
            for proxy in delaying:
                proxy.delay_s = condition.delay_s
            addresses = [proxy.address for proxy in delaying]
        stack.enter_context(suffering(links, condition))
        limits = {"teacher__deadline_s": 2.0} if condition.cut_s else {}
        outputs = [f"{condition.name.replace(' ', '-').replace('/', '-')}-{place}" for place in range(len(links))]
        configs = [
            chaos_config(folder, output, address, steps, **limits)
            for output, address in zip(outputs, addresses, strict=True)
        ]
        begun = time.monotonic()
        students = [
            stack.enter_context(student_process(config, namespace=link.student.name))
            for config, link in zip(configs, links, strict=True)
        ]
        back_s = cut(links[0], configs[0], students[0], condition.cut_s) if condition.cut_s else None
        found = [ended(config, each) for config, each in zip(configs, students, strict=True)]
        seconds = time.monotonic() - begun
    for each in found:
        assert_same(each, plain, steps)
    return {
        "link": condition.name,
        "bits of the plain run": "yes",
        "steps, both": 2 * steps,
        "seconds, with the start": seconds,
        "recoveries": sum(each.result["recoveries"] for each in found),
        "replayed steps": sum(each.result["replayed_steps"] for each in found),
        "from the link's return to the next step, s": back_s,
    }


def cut(link: Link, config: Any, student: Any, seconds: float) -> float:
    """Cuts a student's link in mid-training; gives the seconds from its return to the next step that is written down."""
    before = wait_for_step(config, student, 5)
    with link.cut():
        time.sleep(seconds)
        before = max([before, *steps_of(config)])
    begun = time.monotonic()
    wait_for_step(config, student, before)
    return time.monotonic() - begun


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--seconds", type=float, default=6.0, help="of throughput in each condition")
    flags.add_argument("--steps", type=int, default=50, help="of each training run")
    flags.add_argument("--calibration", type=Path, default=CALIBRATION)
    arguments = flags.parse_args()
    try:
        with hosts(2) as network, tempfile.TemporaryDirectory() as folder, Record("hosts", arguments) as record:
            record.table("recovery", recovery(network, Path(folder), arguments.steps))
            record.table("throughput", throughput(network, arguments))
    except CannotMake as error:
        raise SystemExit(f"this machine makes no hosts: {error}") from None


if __name__ == "__main__":
    main()
