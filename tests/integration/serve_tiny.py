"""Serves several tiny teachers from one process: configurations as JSON in, ports as JSON out.

Each value of the mapping in argv[1] is a `ServerConfig`, and may have a `gate`: the folder of a `Gate`.
Ends when its standard input is closed.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.loading import load_teacher
from tests.integration.gate import Gate


def start(settings: dict[str, Any]) -> TeacherApp:
    gate = settings.pop("gate", None)
    config = ServerConfig(**{"port": 0, "metrics_port": 0} | settings)
    teacher = load_teacher(config.model)
    if gate is not None:
        teacher.family.blocks[-1].register_forward_pre_hook(Gate(Path(gate)).hold)
    return TeacherApp(config, teacher)


def main() -> None:
    torch.set_num_threads(1)
    apps = {name: start(each).start() for name, each in json.loads(sys.argv[1]).items()}
    print(json.dumps({name: [app.port, app.metrics_port] for name, app in apps.items()}), flush=True)  # noqa: T201
    sys.stdin.read()
    with ThreadPoolExecutor(len(apps)) as pool:
        list(pool.map(TeacherApp.close, apps.values()))


if __name__ == "__main__":
    main()
