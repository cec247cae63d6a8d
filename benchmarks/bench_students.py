"""N students of one server against one in-process student at its best batch, and against N students with a teacher each.

Every student is a process: a codec's messages, Forward + Backward + Step, no student model, so that the teacher's side is
measured. Frozen MiniLM, entry 2, exit 6. The server and the in-process student have all cores. Found first and taken, as it serves
each best here: whether the in-process student's waiting threads sleep or spin, and which of two shares of threads the private
teachers have; the server's wait as OpenMP does by itself, students' sleep. Idle processes sleep, and the sides take turns within
each round. The ratio is the median over rounds. Students talk to the server as they do by default: bf16 on the wire, shared memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psutil
from loads import Server, median, minilm, served
from recording import Record, parser
from workers import Worker, Workers, window

WORKER = str(Path(__file__).with_name("student_worker.py"))
CORES = psutil.cpu_count() or 1
Side = tuple[str, int]


class Bench:
    """The processes of one run, and how each side is measured: tokens a second by `(side, students or rows)`."""

    def __init__(self, arguments: argparse.Namespace, server: Server, workers: Workers) -> None:
        self.arguments, self.server, self.students = arguments, server, sorted(arguments.students)
        most, model = self.students[-1], minilm()
        private = ("--private", model, "--dtype", arguments.dtype)
        self.policies = {}
        for policy in ("PASSIVE", "unset"):
            os.environ["OMP_WAIT_POLICY"] = policy
            if policy == "unset":
                del os.environ["OMP_WAIT_POLICY"]
            (self.policies[policy],) = workers.add([(WORKER, f"alone-{policy}", *private)])
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        self.private = workers.add([(WORKER, f"private-{place}", *private) for place in range(most)])
        self.remote = workers.add([(WORKER, f"remote-{place}", "--remote", server.address) for place in range(most)])
        self.threads = {count: max(1, CORES // count) for count in self.students}
        self.merged: dict[int, list[float]] = {count: [] for count in self.students}
        self.memory: dict[Side, float] = {}

    def sides(self) -> dict[Side, Callable[[], float]]:
        def made(side: Callable[[int], float], number: int) -> Callable[[], float]:
            return lambda: side(number)

        return (
            {("in process", rows): made(self.in_process, rows) for rows in self.arguments.batches}
            | {("server", count): made(self.served, count) for count in self.students}
            | {("private", count): made(self.owned, count) for count in self.students}
        )

    def in_process(self, rows: int) -> float:
        return self.rate([self.policies[self.policy]], CORES, rows)

    def served(self, count: int) -> float:
        names = ("teacher_batch_students_sum", "teacher_batch_students_count")
        before = [self.server.metric(name, method="Backward") for name in names]
        found = self.rate(self.remote[:count], 1, self.arguments.rows)
        students, batches = (
            self.server.metric(name, method="Backward") - old for name, old in zip(names, before, strict=True)
        )
        self.merged[count].append(students / max(1.0, batches))
        return found

    def owned(self, count: int) -> float:
        return self.rate(self.private[:count], self.threads[count], self.arguments.rows)

    def rate(self, workers: list[Worker], threads: int, rows: int, seconds: float = 0.0) -> float:
        order = {"threads": threads, "rows": rows, "tokens": self.arguments.tokens, "work": "step"}
        seconds = seconds or self.arguments.seconds
        return sum(each["steps"] for each in window(workers, seconds, **order)) * rows * self.arguments.tokens / seconds

    def find_best(self) -> None:
        """Tries sleeping and spinning, and twice the even share of the cores for each private teacher, where there are several."""
        tried = {name: self.rate([worker], CORES, 32) for name, worker in self.policies.items()}
        self.policy = max(tried, key=lambda name: tried[name])
        for count in self.students:
            even = self.threads[count]
            shares = {
                threads: self.rate(self.private[:count], threads, self.arguments.rows, self.arguments.seconds / 2)
                for threads in sorted({even, min(CORES, 2 * even)} if count > 1 else {1, CORES})
            }
            self.threads[count] = max(shares, key=lambda threads: shares[threads])

    def note_memory(self, side: Side) -> None:
        name, count = side
        if name == "server":
            self.memory["server alone", count] = resident([self.server.pid])
            self.memory[side] = resident([self.server.pid, *(each.pid for each in self.remote[:count])])
        elif name == "private":
            self.memory[side] = resident([each.pid for each in self.private[:count]])


def resident(pids: list[int]) -> float:
    """MiB that these would hold alone on the machine: what each has for itself, and what they share, once.

    PSS would divide the pages of libraries and weights among the other side's processes, too.
    """
    private, shared = 0.0, 0.0
    for pid in pids:
        fields = {
            line.split(":")[0]: float(line.split()[1])
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        }
        own = fields["Private_Clean"] + fields["Private_Dirty"]
        private, shared = private + own, max(shared, fields["Rss"] - own)
    return (private + shared) / 1024


def summary(bench: Bench, rates: dict[Side, list[float]], record: Record) -> None:
    arguments, students = bench.arguments, bench.students
    best = max(arguments.batches, key=lambda rows: median(rates["in process", rows]))
    record.table(
        "in process", [{"rows": rows, "tokens/s": median(rates["in process", rows])} for rows in arguments.batches]
    )
    record.figures["best batch"] = best
    record.figures["OMP_WAIT_POLICY in process"] = bench.policy
    print(
        f"one in-process student is best at {best} rows, OMP_WAIT_POLICY {bench.policy}; private teachers' threads by N: {bench.threads}"
    )

    def over(count: int, side: Side) -> float:
        return median([a / b for a, b in zip(rates["server", count], rates[side], strict=True)])

    rows = [
        {
            "N": count,
            "server, tokens/s": median(rates["server", count]),
            "over in process": over(count, ("in process", best)),
            "over in process, same rows": over(count, ("in process", arguments.rows)),
            "private, tokens/s": median(rates["private", count]),
            "threads each": bench.threads[count],
            "over private": over(count, ("private", count)),
            "students a batch": median(bench.merged[count]),
            "server MiB": bench.memory["server alone", count],
            "server+students MiB": bench.memory["server", count],
            "private MiB": bench.memory["private", count],
        }
        for count in students
    ]
    record.table("students", rows)
    for row in rows:
        record.target(f"N={row['N']}, server / best in-process batch", row["over in process"], at_least=0.97)
    for row in rows:
        record.target(f"N={row['N']}, server / private teachers", row["over private"], at_least=1.0)
    last = rows[-1]
    print(
        f"memory at N={last['N']}: server and students {last['server+students MiB'] / last['private MiB']:.2f} of private ones"
    )
    plot(rows, median(rates["in process", best]), best, record)


def plot(rows: list[dict[str, float]], in_process: float, best: int, record: Record) -> None:
    figure, (left, right) = record.axes(2)
    counts, settings = [row["N"] for row in rows], record.settings
    left.plot(counts, [row["server, tokens/s"] for row in rows], "o-", lw=2.5, label="one server, N students")
    left.plot(counts, [row["private, tokens/s"] for row in rows], "s--", label="N private teachers")
    left.axhline(in_process, color="grey", label=f"one in-process student, {best} rows a batch")
    left.axhline(0.97 * in_process, color="grey", ls=":", label="target: 0.97 of it")
    left.set(ylabel="tokens/s, all students", ylim=(0, None), title="Forward + Backward + Step")
    right.plot(counts, [row["server+students MiB"] for row in rows], "o-", lw=2.5, label="server and N students")
    right.plot(counts, [row["server MiB"] for row in rows], "o:", color="C0", label="server alone")
    right.plot(
        counts, [row["private MiB"] for row in rows], "s--", color="C1", label="N students with private teachers"
    )
    right.set(ylabel="resident memory, MiB", ylim=(0, None), title="Memory")
    for axes in (left, right):
        axes.set(xscale="log", xlabel=f"students, {settings['rows']}x{settings['tokens']} tokens each")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.legend(fontsize=8)
    figure.suptitle(f"Frozen MiniLM, {settings['dtype']} weights, {CORES} cores", fontsize=10)
    record.plot(figure)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--students", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    flags.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64], help="rows of the in-process student")
    flags.add_argument("--rows", type=int, default=8, help="of every other student")
    flags.add_argument("--tokens", type=int, default=64)
    flags.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the teacher's weights")
    flags.add_argument("--seconds", type=float, default=4.0, help="of one side in one round")
    flags.add_argument("--rounds", type=int, default=3)
    arguments = flags.parse_args()
    arguments.batches = sorted(
        {arguments.rows, *arguments.batches}
    )  # with a student's own rows it is no better in process
    name = f"students-{arguments.rows}x{arguments.tokens}" + "-bfloat16" * (arguments.dtype == "bfloat16")
    with (
        Record(name, arguments) as record,
        served(minilm(), CORES, dtype=arguments.dtype) as server,
        Workers() as workers,
    ):
        bench = Bench(arguments, server, workers)  # from here on threads that wait sleep, in all that are started
        bench.find_best()
        sides = bench.sides()
        rates: dict[Side, list[float]] = {side: [] for side in sides}
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
            for side in list(sides)[:: -1 if number % 2 else 1]:
                rates[side].append(sides[side]())
                if not number:  # students come to work one after the other: memory grows with them
                    bench.note_memory(side)
        record.figures["rates"] = {" ".join(map(str, side)): column for side, column in rates.items()}
        record.figures["private threads"] = bench.threads
        summary(bench, rates, record)


if __name__ == "__main__":
    main()
