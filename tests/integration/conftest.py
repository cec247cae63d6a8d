"""One extra process that serves every tiny teacher the integration tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher_server.local import local_teacher
from tests.calls import Caller, good_step
from tests.integration.processes import Address, ServerProcess
from tests.integration.school import School
from tests.unit.teacher_server.tiny_models import MODEL_TYPES


@pytest.fixture(scope="session")
def servers(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Address]]:
    """By name: every family, and BERT under other configurations."""
    gates = tmp_path_factory.mktemp("gates")
    configs: dict[str, dict[str, Any]] = {name: {} for name in MODEL_TYPES}
    configs["strict"] = {"message_bytes": 100_000, "max_rows": 16, "max_tokens": 32, "gate": str(gates / "strict")} | {
        "reflection": True
    }
    configs["short_lease"] = {"lease_s": 1.0}
    configs["tight"] = {"permits": 1, "gate": str(gates / "tight")}
    configs["forgetful"] = {"graph_cache_bytes": 0, "session_input_bytes": 0}
    configs |= {name: {"deterministic": True} for name in ("alone_a", "alone_b", "together")}
    for name, config in configs.items():
        if name not in ("bert", "strict", "short_lease", "tight", "forgetful"):
            config["metrics_port"] = -1
        config["model"] = str(model_folder(name if name in MODEL_TYPES else "bert"))
    process = ServerProcess(configs)
    yield process.addresses
    assert process.close() == 0


@pytest.fixture(scope="session")
def expected(model_folder: Callable[[str], Path]) -> dict[str, torch.Tensor]:
    """What a good student gets of BERT, computed in this process."""
    return good_step(local_teacher(str(model_folder("bert"))), "expected")


@pytest.fixture(scope="module")
def school() -> Iterator[School]:
    """A teacher in this process, with a door that tests can close."""
    found = School(deterministic=True)
    with found.app:
        yield found


@pytest.fixture
def server(servers: dict[str, Address]) -> Address:
    """A server with narrow limits, to be sent what is bad."""
    return servers["strict"]


@pytest.fixture
def caller(server: Address) -> Iterator[Caller]:
    """The session that sends what is bad."""
    with Caller(server.name, "bad") as found:
        yield found


@pytest.fixture
def next_student_is_served(server: Address, expected: dict[str, torch.Tensor]) -> Iterator[None]:
    """After the test the same server takes a good student's step to the right numbers."""
    yield
    got = good_step(server.name, "good")
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5)
