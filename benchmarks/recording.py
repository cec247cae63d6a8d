"""What every benchmark leaves behind: its figures as one line of JSON, a plot, the machine, and the CPU others took meanwhile.

Knows no teacher. Figures go to `benchmarks/results/NAME.json`, plots to `benchmarks/plots/NAME.png`, or below `--folder`.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil


def parser(description: str | None) -> argparse.ArgumentParser:
    """Flags that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument(
        "--folder", type=Path, default=Path(__file__).parent, help="where results/ and plots/ are written"
    )
    return made


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": psutil.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
    } | {package: version(package) for package in ("torch", "grpcio")}


class OwnCpu:
    """CPU seconds of this process and of all that it started, alive or not.

    A child's time is known while it runs, and from its parent once that has waited for it. Where a parent has the system bury
    its children (Ray's raylet does), their time is gone with them: what was seen at the last look counts then.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._seen: dict[tuple[int, float], tuple[float, float]] = {}
        self._looking = threading.Lock()

    def look(self) -> float:
        """Seconds until now; the more often it is asked, the less of what nobody waits for is missed."""
        with self._looking:
            before, self._seen = self._seen, _times()
            gone = sum(sum(before[each]) for each in before.keys() - self._seen.keys())
            own = waited = 0.0
            for each, (its_own, its_waited) in self._seen.items():
                known, known_waited = before.get(each, (0.0, 0.0))
                own += its_own - known
                waited += its_waited - known_waited
            # what parents have got of those that are gone was counted in part when it was seen
            self._total += own + max(0.0, waited - gone)
            return self._total


class ForeignCpu:
    """The share of the machine's CPU time that went to others than this process and those it started.

    Time the host gave to other guests counts as foreign.

    Args:
        every_s: seconds from look to look, in a thread; 0 looks only when it is asked, which is enough where every process
            is waited for by the one that started it.
    """

    def __init__(self, every_s: float = 0.0) -> None:
        self._own, self._ending = OwnCpu(), threading.Event()
        self._start = self._last = self._read()
        if every_s:
            threading.Thread(target=self._look, args=(every_s,), daemon=True).start()

    def end(self) -> None:
        """Looks no more by itself."""
        self._ending.set()

    def _look(self, every_s: float) -> None:
        while not self._ending.wait(every_s):
            self._own.look()

    def lap(self) -> float:
        """Share since the last lap."""
        before, self._last = self._last, self._read()
        return self._share(before, self._last)

    def whole(self) -> float:
        """Share since the beginning."""
        return self._share(self._start, self._read())

    @staticmethod
    def _share(before: Sequence[float], after: Sequence[float]) -> float:
        busy, total, own = (late - early for early, late in zip(before, after, strict=True))
        return min(1.0, max(0.0, busy - own) / max(1e-9, total))

    def _read(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        total = sum(times) - times.guest - times.guest_nice
        return total - times.idle - times.iowait, total, self._own.look()


def _times() -> dict[tuple[int, float], tuple[float, float]]:
    """Seconds of this process and of each that came of it: its own, and those of children that it has waited for."""
    found: dict[tuple[int, float], tuple[float, float]] = {}
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            waited = times.children_user + times.children_system
            found[process.pid, process.create_time()] = times.user + times.system, waited
    return found


class Record:
    """One run of a benchmark: prints as it goes, and writes everything when the block ends without an error.

    Args:
        name: of its files.
        arguments: its flags.
        look_every_s: see `ForeignCpu`.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, look_every_s: float = 0.0) -> None:
        self._look_every_s = look_every_s
        self.name, self.folder = name, Path(arguments.folder)
        self.settings = {key: value for key, value in vars(arguments).items() if key != "folder"}
        self.figures: dict[str, Any] = {}
        self.targets: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends, too
        self.machine, self.began, self.cpu = machine(), time.time(), ForeignCpu(self._look_every_s)
        print(f"{self.name}: " + ", ".join(f"{key} {value}" for key, value in self.machine.items()), flush=True)
        return self

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prints rows of the same keys and keeps them among the figures."""
        self.figures[name] = [dict(row) for row in rows]
        cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)

    def target(self, what: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> None:
        """Says whether a figure keeps its target, and keeps that."""
        limit, sign = (at_most, "<=") if at_most is not None else (at_least, ">=")
        assert limit is not None
        is_held = value <= limit if sign == "<=" else value >= limit
        self.targets.append({"what": what, "value": value, "target": f"{sign} {limit:g}", "held": is_held})
        print(f"{what}: {value:.3f}, target {sign} {limit:g}: {'held' if is_held else 'MISSED'}", flush=True)

    def axes(self, columns: int = 1, **options: Any) -> tuple[Any, Any]:
        """A figure with so many plots side by side."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, columns, figsize=(1 + 5.5 * columns, 4.2), layout="constrained", **options)
        for each in axes if columns > 1 else [axes]:
            each.grid(alpha=0.3)
        return figure, axes

    def plot(self, figure: Any) -> None:
        """Writes the plot beside the figures."""
        path = self.folder / "plots" / f"{self.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        print(f"plot: {path}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cpu.end()
        if kind is not None:
            return
        foreign = self.cpu.whole()
        path = self.folder / "results" / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "name": self.name,
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began, 1),
            "command": " ".join(["benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
            "machine": self.machine,
            "foreign_cpu": round(foreign, 4),
            "settings": self.settings,
            "figures": self.figures,
            "targets": self.targets,
        }
        path.write_text(json.dumps(found, default=str) + "\n")
        print(
            f"foreign CPU use {foreign:.1%} of the machine over {found['seconds']:.0f} s; figures: {path}", flush=True
        )


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
