"""What each replica is given, and whether so many fit: said before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_server.config import ServerConfig
from teacher_server.fleet.placing import Needs, check_room, needs_of
from teacher_server.fleet.settings import FleetSettings
from teaching_protocol.errors import ConfigError


def needs(gpus_there: float, gpus: float | None = None, **fields: Any) -> Needs:
    return needs_of(ServerConfig(model="tiny", **fields), FleetSettings(gpus=gpus, cpus=2.0), gpus_there)


SPREAD = {"device_map": "auto", "device_memory": ("0=20GiB", "1=20GiB", "cpu=60GiB")}


@pytest.mark.parametrize(
    ("gpus_there", "given_gpus", "fields", "wanted"),
    [
        (0, None, {}, 0),
        (4, None, {}, 1),
        (4, None, {"device": "cpu"}, 0),
        (0, None, {"device": "cuda"}, 1),  # a node with one may come
        (4, 0.5, {}, 0.5),
        (4, 0, {}, 0),
        (4, None, {"tensor_parallel": 2}, 2),
        (0, None, {"tensor_parallel": 2}, 0),  # processes on the CPU
        (4, 4, {"tensor_parallel": 2}, 4),
        (4, None, SPREAD, 2),
        (0, None, SPREAD, 2),
        (4, None, {"device_map": "auto", "device_memory": ("cpu=60GiB",)}, 0),
        (4, 3, {"device_map": "auto"}, 3),
    ],
)
def test_gpus_of_a_replica(gpus_there: float, given_gpus: float | None, fields: Any, wanted: float) -> None:
    assert needs(gpus_there, given_gpus, **fields) == Needs(2.0, wanted)


@pytest.mark.parametrize(("devices", "wanted"), [({"": 0, "layers.3": 2, "head": "cpu"}, 3), ({"": "disk"}, 0)])
def test_gpus_of_a_written_map(devices: dict[str, Any], wanted: float, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(devices))
    assert needs(4, device_map=str(path)).gpus == wanted


@pytest.mark.parametrize(
    ("given_gpus", "fields", "sentence"),
    [
        (None, {"device_map": "auto"}, "how many GPUs each teacher spreads over; say --gpus N"),
        (None, {"device": "cuda:1"}, "received 'cuda:1' in a fleet, expected cuda or auto"),
        (1, {"tensor_parallel": 2}, "received 1, expected 2 or more: each teacher has tensor_parallel 2"),
        (1, SPREAD, "received 1, expected 2 or more: each teacher has a device map over GPUs 0 to 1"),
        (1.5, {}, "received 1.5, expected a part of one GPU, or a whole number"),
        (0, {"device": "cuda"}, "received 0 with device cuda"),
    ],
)
def test_what_does_not_fit_the_server_is_refused(given_gpus: float | None, fields: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        needs(4, given_gpus, **fields)


def test_more_than_a_machine_has_is_refused_at_once() -> None:
    check_room(Needs(1, 1), 2, {"CPU": 2, "GPU": 2})
    with pytest.raises(
        ConfigError,
        match="received 3, and each wants 1 CPU and 1 GPU, but Ray on this machine has 8 CPUs and 2 GPUs: room for 2",
    ):
        check_room(Needs(1, 1), 3, {"CPU": 8, "GPU": 2})


sizes = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0])


@given(sizes, sizes, st.integers(0, 64), st.integers(0, 16))
def test_what_fits_is_no_more_than_there_is(cpus: float, gpus: float, cpus_there: int, gpus_there: int) -> None:
    fit = Needs(cpus, gpus).fit({"CPU": cpus_there, "GPU": gpus_there})
    if fit is None:
        assert cpus == gpus == 0
        return
    assert fit * cpus <= cpus_there + 1e-5
    assert fit * gpus <= gpus_there + 1e-5
    assert (fit + 1) * cpus > cpus_there or (fit + 1) * gpus > gpus_there
