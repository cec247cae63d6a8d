"""Two replicas of a fleet under Ray against one, and a replica under Ray against the same server without it.

Frozen MiniLM, entry 2, exit 6; every student is a process: Forward + Backward + Step of a codec's messages, no student model.
The fleet's students know the directory's address alone. All sides are up at once, idle processes sleep, and the sides take turns
within each round; ratios are medians over rounds. On a machine of two cores this shows two things and no third: what a second
process with a core of its own adds while the students use the same cores, and what Ray costs a call. What a second GPU or a
second machine adds it cannot show. Runs in a network of its own, as Ray listens on every interface.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from loads import median, minilm, served
from processes import started
from recording import Record, parser
from workers import Workers, window

from student_client.connection.pinning import ranked

WORKER = str(Path(__file__).with_name("student_worker.py"))
INSIDE = "TALKING_MODELS_BENCH_ALONE"
PLACES = ("replica-0", "replica-1")
SIDES = ("serve, 1 thread", "serve, 2 threads", "fleet of 1, 1 thread", "fleet of 2, 1 thread each")


def alone() -> None:
    """Begins this program again in a network that has nothing but loopback."""
    around = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c"]
    inside = 'ip link set lo up && exec "$@"'
    os.environ[INSIDE] = "1"
    os.execvp("unshare", [*around, inside, "bash", sys.executable, *sys.argv])


def even_names(count: int) -> list[str]:
    """Names of students of which each replica of two is preferred by the same number."""
    mine: dict[str, list[str]] = {place: [] for place in PLACES}
    for number in range(40 * count):
        mine[ranked(f"student-{number}", PLACES)[0]].append(f"student-{number}")
    return [name for pair in zip(*(mine[place] for place in PLACES), strict=False) for name in pair][:count]


def fleet(stack: ExitStack, replicas: int, *words: str) -> str:
    """A fleet; gives its directory's address."""
    command = ["-m", "teacher_server", "fleet", "--name", f"of-{replicas}", "--replicas", str(replicas), "--port", "0"]
    command += ["--model", minilm(), "--cpus", "0", "--gpus", "0", "--set", "threads=1", "--set", "device=cpu"]
    line = stack.enter_context(started(*command, *words))
    return line.split()[1]


def summary(rates: dict[str, list[float]], record: Record) -> None:
    def over(one: str, other: str) -> float:
        return median([a / b for a, b in zip(rates[one], rates[other], strict=True)])

    one, two, alone_one, alone_two = SIDES[2], SIDES[3], SIDES[0], SIDES[1]
    record.table("throughput", [{"side": side, "tokens/s": median(rates[side])} for side in SIDES])
    record.figures["2 replicas / 1"] = over(two, one)
    record.figures["2 replicas / 1 server with 2 threads"] = over(two, alone_two)
    print(
        f"2 replicas / 1, a thread each: {over(two, one):.2f}; 2 replicas / 1 server with both cores: {over(two, alone_two):.2f}"
    )
    record.target("1 replica under Ray / the same server without", over(one, alone_one), at_least=0.95)
    figure, axes = record.axes()
    axes.barh(SIDES[::-1], [median(rates[side]) for side in SIDES[::-1]])
    axes.set(
        xlabel=f"tokens/s, {record.settings['students']} students", title="Forward + Backward + Step, MiniLM, 2 cores"
    )
    record.plot(figure)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--students", type=int, default=4, help="an even number")
    flags.add_argument("--rows", type=int, default=8)
    flags.add_argument("--tokens", type=int, default=64)
    flags.add_argument("--seconds", type=float, default=5.0, help="of one side in one round")
    flags.add_argument("--rounds", type=int, default=3)
    arguments = flags.parse_args()
    if INSIDE not in os.environ:
        alone()
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with Record("fleet", arguments, look_every_s=0.5) as record, ExitStack() as stack:
        os.environ["RAY_TMPDIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="tm-ray-"))
        run(arguments, record, stack)


def run(arguments: argparse.Namespace, record: Record, stack: ExitStack) -> None:
    addresses = [stack.enter_context(served(minilm(), threads)).address for threads in (1, 2)]
    addresses.append(fleet(stack, 1))
    addresses.append(fleet(stack, 2, "--ray", "auto"))
    workers, names = stack.enter_context(Workers()), even_names(arguments.students)
    sides = {
        side: workers.add([(WORKER, name, "--remote", address) for name in names])
        for side, address in zip(SIDES, addresses, strict=True)
    }
    order = {"threads": 1, "rows": arguments.rows, "tokens": arguments.tokens, "work": "step"}
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(arguments.rounds + 1):
        for side in SIDES if number % 2 else SIDES[::-1]:
            done = window(sides[side], arguments.seconds if number else 1.0, **order)
            if number:  # the first round warms up
                tokens = sum(each["steps"] for each in done) * arguments.rows * arguments.tokens
                rates[side].append(tokens / arguments.seconds)
                print(f"round {number}, {side}: {rates[side][-1]:.0f} tokens/s", flush=True)
    summary(rates, record)


if __name__ == "__main__":
    main()
