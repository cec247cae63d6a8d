"""What a fleet decides without a process: cores, pauses, who its students are, what is in their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from student_client.fleet.plan import last_checkpoint, plan, start_of
from student_client.fleet.restarts import Restarts
from student_client.fleet.seats import seats
from student_client.fleet.settings import FleetConfig, read_fleet
from teaching_protocol.errors import ConfigError


@given(
    cores=st.sets(st.integers(0, 127), min_size=1, max_size=32),
    at_once=st.integers(0, 40),
    free=st.integers(0, 31),
    threads=st.integers(0, 4),
    pin=st.booleans(),
)
def test_cores_are_dealt_out_evenly_and_to_one_seat_each(
    cores: set[int], at_once: int, free: int, threads: int, pin: bool
) -> None:
    usable = sorted(cores)[free:]
    if not usable:
        with pytest.raises(ConfigError, match="expected fewer than the"):
            seats(cores, at_once, free, threads, pin)
        return
    found = seats(cores, at_once, free, threads, pin)
    assert len(found) == (at_once or len(usable)), "never more at once than asked"
    dealt = [core for seat in found for core in seat.cores]
    if pin and len(found) <= len(usable):
        assert sorted(dealt) == usable
        assert max(len(seat.cores) for seat in found) - min(len(seat.cores) for seat in found) <= 1
    else:
        assert all(list(seat.cores) == usable for seat in found)
    if threads:
        assert all(seat.threads == threads for seat in found)
    else:
        assert sum(seat.threads for seat in found) <= max(len(usable), len(found)), "no more threads than cores"
        assert all(seat.threads >= 1 for seat in found)


@given(st.integers(1, 20), st.floats(0.01, 5), st.floats(1, 100))
def test_pauses_double_are_jittered_and_bounded(crashes: int, first_s: float, longest_s: float) -> None:
    pause_s = Restarts(20, first_s, longest_s).pause_s(crashes)
    assert pause_s is not None
    least = min(longest_s, first_s * 2 ** (crashes - 1))
    assert least - 1e-9 <= pause_s <= min(longest_s, least + first_s) + 1e-9
    assert Restarts(crashes - 1, first_s, longest_s).pause_s(crashes) is None


def fleet(folder: Path, **fields: Any) -> FleetConfig:
    return FleetConfig(
        **{"name": "f", "output": folder / "runs", "common": {"method": {"names": "task_only"}}} | fields
    )


def test_students_one_by_one_and_by_grid_each_over_the_common_settings_and_the_environment(tmp_path: Path) -> None:
    found = plan(
        fleet(
            tmp_path,
            common={"training": {"lr": 0.5, "batch_size": 4, "epochs": 3}, "method.names": "task_only"},
            students=[{"name": "ann", "settings": {"training.lr": 0.25, "student": {"size": "tiny"}}}],
            grid={"seeds": [3, 4], "settings": {"slow": {"training.lr": 0.125}, "fast": {}}},
        ),
        {"STUDENT_CLIENT_TRAINING__LR": "0.75", "STUDENT_CLIENT_TRAINING__BATCH_SIZE": "8"},
    )
    assert [each.name for each in found] == ["ann", "slow-seed3", "slow-seed4", "fast-seed3", "fast-seed4"]
    assert [each.number for each in found] == list(range(5))
    configs = [each.config for each in found]
    assert all(config is not None for config in configs)
    assert [config.training.lr for config in configs if config] == [0.25, 0.125, 0.125, 0.75, 0.75]
    assert {config.training.batch_size for config in configs if config} == {8}
    assert {config.training.epochs for config in configs if config} == {3}
    assert [(c.student.seed, c.method.seed, c.training.seed) for c in configs if c][1:3] == [(3, 3, 3), (4, 4, 4)]
    assert [each.folder for each in found] == [tmp_path / "runs" / each.name for each in found]
    alone = plan(fleet(tmp_path, grid={"seeds": [0, 1]}), {})
    assert [each.name for each in alone] == ["seed0", "seed1"]


def test_a_bad_student_brings_its_reason_and_spoils_nobody_else(tmp_path: Path) -> None:
    students = [
        {"name": "good"},
        {"name": "bad", "settings": {"training.lr": -1}},
        {"name": "typo", "settings": {"trainng.lr": 1}},
        {"name": "where", "settings": {"output": "/elsewhere"}},
    ]
    good, bad, typo, where = plan(fleet(tmp_path, students=students), {})
    assert good.config is not None
    assert "training.lr: received -1, expected" in bad.error
    assert "(from the settings of bad)" in bad.error
    assert "expected no field of this name" in typo.error
    assert "the fleet's own field `output`" in where.error


def test_names_are_folders_and_their_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="received ann more than once"):
        plan(fleet(tmp_path, students=[{"name": "ann"}, {"name": "ann"}]), {})
    path = tmp_path / "fleet.yaml"
    for name in ("../up", "", "a/b", ".hidden"):
        path.write_text(json.dumps({"name": "f", "students": [{"name": name}]}))
        with pytest.raises(ConfigError, match=r"students\.0\.name: received .*fleet\.yaml"):
            read_fleet(path, {})
    path.write_text("name: f\n")
    with pytest.raises(ConfigError, match="expected at least one student"):
        read_fleet(path, {})
    with pytest.raises(ConfigError, match="TRAINING__LRR"):
        plan(fleet(tmp_path, students=[{"name": "ann"}]), {"STUDENT_CLIENT_TRAINING__LRR": "1"})


def test_a_folder_says_how_its_student_begins(tmp_path: Path) -> None:
    (ann,) = plan(fleet(tmp_path, students=[{"name": "ann"}]), {})
    assert ann.config is not None
    assert start_of(ann) == "new"
    ann.folder.mkdir(parents=True)
    (ann.folder / "config.json").write_text(ann.config.model_dump_json())
    assert start_of(ann) == "new", "it died before its first checkpoint"
    for step in (7, 14):
        (ann.folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert (start_of(ann), last_checkpoint(ann.folder)) == ("resume", 14)
    (threads,) = plan(fleet(tmp_path, students=[{"name": "ann", "settings": {"training.threads": 3}}]), {})
    assert start_of(threads) == "resume", "what changes no result does not matter"
    (other,) = plan(fleet(tmp_path, students=[{"name": "ann", "settings": {"training.lr": 3e-4}}]), {})
    with pytest.raises(ConfigError, match=r"holds a run of other settings \(training.lr\)"):
        start_of(other)
    (ann.folder / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no result"):
        start_of(ann)
