"""Several hosts on one machine: network namespaces, a veth pair from each student's to the teacher's, and what links suffer.

Root alone makes them. Loss is a filter of our own in the receiver's kernel: classic BPF at its `clsact` queue, which needs nothing but iproute2
(netem is not in every kernel, iptables not on every machine); a limited rate is `tbf` at the sender. A delay is `tests/chaos/proxy.py`.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["CannotMake", "Host", "Link", "hosts", "inside"]

_PASS, _DROP = 0, 2
_RANDOM = 0xFFFFF038  # where classic BPF reads a random number: SKF_AD_OFF + SKF_AD_RANDOM
_NETWORK = 0x40000000  # CLONE_NEWNET


class CannotMake(RuntimeError):
    """This machine makes no such hosts; says what refused."""


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str

    def run(self, *words: str) -> str:
        """Runs a command of iproute2 inside; gives what it prints."""
        return _ran("ip", "netns", "exec", self.name, *words)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside the block's time; threads and processes that it starts there stay."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self.enter()
            yield
        finally:
            _set_namespace(before)
            os.close(before)

    def enter(self) -> None:
        """The calling thread, and those it starts from here on, are inside for good."""
        place = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _set_namespace(place)
        finally:
            os.close(place)


@dataclass(frozen=True)
class Link:
    """A student's host and its way to the teacher's; `address` is the teacher's end."""

    student: Host
    teacher: Host
    device: str
    address: str

    @property
    def ends(self) -> tuple[Host, Host]:
        return (self.student, self.teacher)

    def lose(self, share: float) -> None:
        """Each packet is lost with this probability, at the host that receives it, both ways.

        Packets are those of a wire: cards that pass larger ones on in one piece are told not to.
        """
        code = f"4,32 0 0 {_RANDOM},53 1 0 {int(share * 2**32)},6 0 0 {_DROP},6 0 0 {_PASS}"
        for host in self.ends:
            host.run("ip", "link", "set", "dev", self.device, "gso_max_segs", "1")
            host.run("tc", "qdisc", "add", "dev", self.device, "clsact")
            host.run("tc", "filter", "add", "dev", self.device, "ingress", "bpf", "da", "bytecode", code)

    def lost(self) -> int:
        """Packets that were lost so far, both ways."""
        told = [host.run("tc", "-s", "qdisc", "show", "dev", self.device, "clsact") for host in self.ends]
        return sum(int(count) for text in told for count in re.findall(r"dropped (\d+)", text))

    def limit(self, mbit: float) -> None:
        """So many megabits a second, each way; up to 50 ms of them wait."""
        burst = f"{max(16, int(mbit * 0.5))}kb"  # 4 ms
        for host in self.ends:
            words = ("tbf", "rate", f"{mbit:g}mbit", "burst", burst, "latency", "50ms")
            host.run("tc", "qdisc", "add", "dev", self.device, "root", *words)

    def heal(self) -> None:
        """No loss and no limit any more."""
        for host in self.ends:
            for place in ("clsact", "root"):
                words = ["tc", "qdisc", "del", "dev", self.device, place]
                subprocess.run(["ip", "netns", "exec", host.name, *words], capture_output=True, timeout=20, check=False)
            host.run("ip", "link", "set", "dev", self.device, "gso_max_segs", "65535")

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Nothing passes while the block runs, and nobody is told."""
        self.teacher.run("ip", "link", "set", self.device, "down")
        try:
            yield
        finally:
            self.teacher.run("ip", "link", "set", self.device, "up")


@contextmanager
def hosts(students: int = 2) -> Iterator[tuple[Host, list[Link]]]:
    """A teacher's host, and links to it from hosts of so many students; they go with the block.

    Raises:
        CannotMake: not root, no iproute2, or the kernel refuses.
    """
    if os.geteuid() != 0:
        raise CannotMake("only root makes network namespaces")
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        raise CannotMake(f"{', '.join(missing)} of iproute2 is not installed")
    number = os.getpid() % 100_000
    made: list[str] = []
    try:
        teacher = _made(f"teach{number}", made)
        yield teacher, [_linked(teacher, _made(f"learn{number}x{place}", made), place) for place in range(students)]
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20, check=False)


def _made(name: str, made: list[str]) -> Host:
    _ran("ip", "netns", "add", name)
    made.append(name)
    _ran("ip", "-n", name, "link", "set", "lo", "up")
    return Host(name)


def _linked(teacher: Host, student: Host, place: int) -> Link:
    """A veth pair of one name at both ends, a network of its own."""
    device, network = f"way{place}", f"10.213.{10 + place}"
    _ran("ip", "-n", student.name, "link", "add", device, "type", "veth", "peer", "name", device, "netns", teacher.name)
    for host, last in ((teacher, 1), (student, 2)):
        _ran("ip", "-n", host.name, "addr", "add", f"{network}.{last}/24", "dev", device)
        _ran("ip", "-n", host.name, "link", "set", device, "up")
    return Link(student, teacher, device, f"{network}.1")


def _ran(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise CannotMake(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _set_namespace(place: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(place, _NETWORK):
        raise CannotMake(f"setns: {os.strerror(ctypes.get_errno())}")


def inside(name: str, work: Callable[..., None], *arguments: Any) -> None:
    """What a process of a host runs first: enters, and does its work. A function of the module, so that processes can be given it."""
    Host(name).enter()
    work(*arguments)
