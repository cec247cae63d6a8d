"""A process of a split teacher that serves nobody: it loads its share and runs what the one that serves runs; knows no student.

It ends when the process that started it closes the socket between them or ends, at once, wherever it is. Signals of a terminal or a
service manager reach all processes alike, and are the other's to act on: it drains, and this one is needed until then.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import IO

import torch
from transformers.utils import logging as transformers_logging

from command_config.exits import ExitCode
from teacher_server.families import LayerSpan
from teacher_server.logs import start_log
from teacher_server.models.loading import load_teacher
from teacher_server.models.sharding import Shards
from teacher_server.models.split import FrozenTeacher
from teacher_server.parallel.group import join
from teacher_server.parallel.mirrored import SpanGraph
from teacher_server.parallel.passes import Back, Begin, Drop, Look, Run, Say, read_begin, read_pass, receive
from teaching_protocol.memory import keep_freed_memory

__all__ = ["follow"]

_log = logging.getLogger(__name__)

_OTHERS_S = 2.0


def follow(control: socket.socket) -> None:
    """Does what the lines at `control` say, until its end; never returns."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lines = control.makefile("rb")
    first = lines.readline()
    if not first:
        os._exit(ExitCode.WELL)
    begin = read_begin(first)
    start_log(begin.log_json, begin.log_level)
    waiting: queue.SimpleQueue[bytes] = (
        queue.SimpleQueue()
    )  # a line or two: each pass is run together with who wrote it
    threading.Thread(target=_read, args=(lines, waiting, Path(begin.meeting).parent), daemon=True).start()
    try:
        _work(_loaded(begin), waiting)
    except BaseException as error:
        time.sleep(_OTHERS_S)  # if another ended first, this one does so now, and says nothing
        _log.critical("process %d of %d: %s", begin.rank, begin.ranks, error, exc_info=error)
        os._exit(ExitCode.FAILED)


def _read(lines: IO[bytes], waiting: queue.SimpleQueue[bytes], folder: Path) -> None:
    for line in lines:
        waiting.put(line)
    shutil.rmtree(folder, ignore_errors=True)  # who made it may have been killed
    os._exit(ExitCode.WELL)


def _loaded(begin: Begin) -> FrozenTeacher:
    if begin.threads:
        torch.set_num_threads(begin.threads)
    if begin.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    transformers_logging.disable_progress_bar()
    join(begin.rank, begin.ranks, begin.meeting)
    shards = Shards(begin.ranks)
    teacher = load_teacher(begin.model, begin.dtype, "auto", begin.trust_remote_code, spread=shards)
    _ = teacher.model_hash, teacher.head_hash  # its share of the sums: no process has all of the weights
    return teacher


def _work(teacher: FrozenTeacher, waiting: queue.SimpleQueue[bytes]) -> None:
    graphs: dict[int, SpanGraph] = {}  # as many as the process that serves keeps: it says which go
    while True:
        wanted, shapes = read_pass(waiting.get())
        tensors = receive(shapes, teacher.device)
        match wanted:
            case Look(layers, with_logits, with_pooled, with_finished):
                with torch.no_grad():
                    teacher.look(tensors, layers, with_logits, with_pooled, with_finished)
            case Say():
                with torch.no_grad():
                    teacher.say(tensors["finished"])
            case Run(start, stop, 0):
                with torch.no_grad():
                    teacher.run(tensors["states"], tensors.get("mask"), LayerSpan(start, stop))
            case Run(start, stop, key):
                span = LayerSpan(start, stop)
                graphs[key] = SpanGraph(teacher.family, tensors["states"], tensors.get("mask"), span)
            case Back(key):
                graphs.pop(key).back(tensors["grad"])
            case Drop(keys):
                for each in keys:
                    graphs.pop(each, None)


if __name__ == "__main__":
    keep_freed_memory()
    follow(socket.socket(fileno=int(sys.argv[1])))
