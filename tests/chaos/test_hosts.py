"""A teacher on one host and students on two others, whose links delay, lose, or carry little: each ends with the bits of a plain run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.proxy import Proxy
from tests.chaos.world import (
    Ended,
    TeacherProcess,
    assert_same,
    chaos_config,
    ended,
    student_process,
)
from tests.hosts import Host, Link

Network = tuple[Host, list[Link]]
OPEN = {"host": "0.0.0.0", "insecure": True}
LONG = [(0.02, 0.01, 0.0, 50), (0.0, 0.0, 5.0, 50)]


@pytest.mark.parametrize(
    ("delay_s", "loss", "mbit", "steps"),
    [(0.001, 0.03, 0.0, 20), *(pytest.param(*case, marks=pytest.mark.chaos) for case in LONG)],
)
def test_two_students_on_hosts_of_their_own(
    model_folder: Callable[[str], Path],
    whole: Callable[..., Ended],
    network: Network,
    tmp_path: Path,
    delay_s: float,
    loss: float,
    mbit: float,
    steps: int,
) -> None:
    """The first is `delay_s` away each way; the link of the second loses packets; a limit holds for both."""
    plain = whole(steps)
    host, (far, poor) = network
    with ExitStack() as stack:
        teacher = stack.enter_context(TeacherProcess(model_folder("bert"), settings=OPEN, namespace=host.name))
        teacher.wait_until_it_serves()
        with host.entered():
            proxy = stack.enter_context(Proxy(teacher.port, far.address))
        proxy.delay_s = delay_s
        if loss:
            poor.lose(loss)
        for link in (far, poor) if mbit else ():
            link.limit(mbit)
        addresses = (proxy.address, f"{poor.address}:{teacher.port}")
        configs = [chaos_config(tmp_path, f"run{place}", address, steps) for place, address in enumerate(addresses)]
        students = [
            stack.enter_context(student_process(config, namespace=link.student.name))
            for config, link in zip(configs, (far, poor), strict=True)
        ]
        for config, student in zip(configs, students, strict=True):
            assert_same(ended(config, student), plain, steps)
        assert proxy.connections > 0
        assert (poor.lost() > 0) is (loss > 0)
