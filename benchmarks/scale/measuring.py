"""The calibration: short real measurements of what the model's constants stand for, on this machine.

Four parts, each by itself: batches of the real engine; calls of one student to a real server whose model is next to nothing; a student's own
work; and the lines put through what was found. Wants the machine to itself for two minutes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from bench_merge import Student, jobs_of
from loads import minilm, served, small_model
from scipy.optimize import nnls

from scale.cases import message_bytes
from scale.costs import Ends, Engine, Line, Local
from student_client import InProcessTeacher, RemoteTeacher
from student_client.teachers.remote import Teacher
from teacher_server.actor import TeacherActor
from teacher_server.jobs import Batch, Job
from teacher_server.local import local_teacher
from teaching_protocol import verbs
from teaching_protocol.threads import compute_with
from teaching_protocol.verbs import Call

WIDTH = 384
WAYS = ("none", "bf16", "int8", "shared")
Sample = tuple[int, int, float]  # calls, tokens, seconds
Row = dict[str, Any]


def line_through(samples: Sequence[Sample]) -> tuple[Line, float]:
    """The line with the least relative error, no coefficient below 0; and its largest relative error."""
    matrix = np.array([[1.0, calls, tokens] for calls, tokens, _ in samples])
    seconds = np.array([each[2] for each in samples])
    found, _ = nnls(matrix / seconds[:, None], np.ones(len(samples)))
    line = Line(*map(float, found))
    return line, max(abs(line.seconds(calls, tokens) / took - 1) for calls, tokens, took in samples)


@dataclass
class EngineSamples:
    """Seconds of batches by kind, on all threads (`team`) or on one beside others (`core`), and of Steps."""

    team: dict[str, list[Sample]]
    core: dict[str, list[Sample]]
    step: list[Sample]
    token_bytes: float


def engine_samples(threads: int, rounds: int) -> EngineSamples:
    """Batches of the real engine on MiniLM, entry 2, exit 6; Steps have a thread beside the model's."""
    torch.set_num_threads(1)
    actor = local_teacher(minilm(), threads=threads)
    found = EngineSamples({"forward": [], "backward": []}, {"forward": [], "backward": []}, [], 0.0)
    calls = [(count, 8, tokens) for count in (1, 2, 4, 8) for tokens in (16, 64)]
    with (
        ThreadPoolExecutor(1, initializer=compute_with, initargs=(threads,)) as team,
        ThreadPoolExecutor(threads, initializer=compute_with, initargs=(1,)) as cores,
        ThreadPoolExecutor(1, initializer=compute_with, initargs=(1,)) as steps,
    ):
        for size in [*calls, (1, 16, 64), (1, 32, 64)]:
            _sample(actor, size, [team], steps, rounds, found, found.team)
        for size in calls if threads > 1 else []:
            _sample(actor, size, [cores] * threads, steps, rounds, found, found.core)
    return found


def _sample(
    actor: TeacherActor,
    size: tuple[int, int, int],
    models: Sequence[ThreadPoolExecutor],
    steps: ThreadPoolExecutor,
    rounds: int,
    found: EngineSamples,
    side: dict[str, list[Sample]],
) -> None:
    """Adds what a batch of so many calls of rows x tokens takes, as many of them at once as there are `models`."""
    count, rows, tokens = size
    students = [
        [Student(actor, f"{place} {number}", rows, tokens, WIDTH) for number in range(count)]
        for place in range(len(models))
    ]
    took = [_round(actor, students, models, steps, found) for _ in range(rounds + 1)][1:]
    forward, backward, step = (min(column) for column in zip(*took, strict=True))  # the rest is others' CPU
    for kind, seconds in (("forward", forward), ("backward", backward)):
        side[kind].append((count, count * rows * tokens, seconds))
    found.step.append((count, 0, step))
    for group in students:
        for student in group:
            actor.leave(verbs.LeaveRequest(student.ref), Call())


def _round(
    actor: TeacherActor,
    students: Sequence[Sequence[Student]],
    models: Sequence[ThreadPoolExecutor],
    steps: ThreadPoolExecutor,
    found: EngineSamples,
) -> tuple[float, ...]:
    """Seconds of each group's Forwards as one batch, all groups at once, in the mean; of the Backwards; of the Steps."""
    engine, seconds = actor._engine, []
    calls = zip(*(jobs_of(group) for group in students), strict=True)
    for groups, threads in zip(calls, (models, models, [steps] * len(models)), strict=True):
        timed = [
            thread.submit(_timed, partial(engine.run, Batch(tuple(jobs))))
            for thread, jobs in zip(threads, groups, strict=True)
        ]
        seconds.append(statistics.mean(each.result() for each in timed))
        for jobs in groups:
            _raise_errors(jobs)
        if threads is models and engine.graphs.size_bytes:
            tokens = sum(job.tokens for jobs in groups for job in jobs)
            found.token_bytes = max(found.token_bytes, engine.graphs.size_bytes / tokens)
    return tuple(seconds)


def _raise_errors(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.future.result(0)


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def engine_of(samples: EngineSamples, threads: int) -> tuple[Engine, list[Row]]:
    """The engine's lines, and how well each goes through its samples."""
    rows, sides = [], {"team": dict[str, Line](), "core": dict[str, Line]()}
    for side, kinds in (("team", samples.team), ("core", samples.core)):
        for kind, each in kinds.items():
            if each:
                sides[side][kind], error = line_through(each)
                rows.append(_row(f"{kind}, {'all cores' if side == 'team' else 'one core'}", sides[side][kind], error))
    step, error = line_through(samples.step)
    rows.append(_row("step", step, error))
    return Engine(sides["team"], sides["core"] or None, step, threads, samples.token_bytes), rows


def _row(what: str, line: Line, error: float) -> Row:
    start, call, token = line.start_s * 1e3, line.call_s * 1e3, line.token_s * 1e6
    return {"batch": what, "start, ms": start, "a call, ms": call, "a token, us": token, "largest error": error}


@dataclass(frozen=True)
class Loop:
    """One student's loop, per step: seconds passed, CPU of this process and of the server's, and of the model."""

    passed_s: float
    own_s: float
    server_s: float
    model_s: float


def looped(teacher: Teacher, rows: int, tokens: int, seconds: float, server: int = 0) -> Loop:
    """Forward, mean square, Backward, Step, again and again."""
    message = torch.randn(rows, tokens, WIDTH, requires_grad=True)

    def step() -> None:
        message.grad = None
        teacher(message).square().mean().backward()
        teacher.step(lr=1e-4)

    for _ in range(10):
        step()
    begun, own, model, theirs = time.perf_counter(), time.process_time(), teacher.seconds, _cpu_s(server)
    count = 0
    while time.perf_counter() - begun < seconds:
        step()
        count += 1
    passed = time.perf_counter() - begun
    took = (passed, time.process_time() - own, _cpu_s(server) - theirs, teacher.seconds - model)
    return Loop(*(each / count for each in took))


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times() if pid else None
    return times.user + times.system if times else 0.0


def ends_and_wake(seconds: float) -> tuple[dict[str, Ends], float, Local, list[Row]]:
    """What calls cost at both ends, by how tensors travel; what they wait beyond; a student's work that has no model."""
    sizes = ((2, 16), (8, 64), (32, 64))
    options: dict[str, Any] = {"message_width": WIDTH, "codec_depth": 1, "entry": 0, "exit": 1, "seed": 0}
    found: dict[str, list[tuple[int, float, float]]] = {way: [] for way in WAYS}
    waits, rows, own = [], [], Local(0, 0, 0)
    with tempfile.TemporaryDirectory() as folder, served(small_model(folder), 1) as server:
        actor = local_teacher(folder, threads=1)
        for size in sizes:
            with InProcessTeacher(actor, student="local", **options) as teacher:
                alone = looped(teacher, *size, seconds)
            if size == (8, 64):
                own = Local(0.0, alone.own_s - alone.model_s, 0.0)
            for way in WAYS:
                wire = {"compression": "bf16" if way == "shared" else way, "shared_memory": way == "shared"}
                with RemoteTeacher(server.address, student="remote", int8_error=1.0, **wire, **options) as teacher:
                    there = looped(teacher, *size, seconds, server.pid)
                server_s = max(0.0, there.server_s - alone.model_s)
                client_s = max(0.0, there.own_s - (alone.own_s - alone.model_s))
                size_bytes = 4 * message_bytes(*size, WIDTH, way)
                found[way].append((size_bytes, server_s, client_s))
                more_s = there.passed_s - alone.passed_s
                waits.append(max(0.0, more_s - server_s - client_s) / 3)
                rows.append(
                    {
                        "way": way,
                        "rows x tokens": f"{size[0]}x{size[1]}",
                        "KB a step": size_bytes / 1e3,
                        "server, ms CPU": server_s * 1e3,
                        "client, ms CPU": client_s * 1e3,
                        "more than in process, ms": more_s * 1e3,
                    }
                )
    return {way: _ends(each) for way, each in found.items()}, statistics.median(waits), own, rows


def _ends(samples: Sequence[tuple[int, float, float]]) -> Ends:
    """Lines through a step's three calls and its bytes."""
    matrix = np.array([[3.0, size] for size, _, _ in samples])
    server, client = (nnls(matrix, np.array([each[place] for each in samples]))[0] for place in (1, 2))
    return Ends(*map(float, (*server, *client)))
