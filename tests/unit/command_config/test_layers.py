"""Layers over each other: the order, who gave what, names that are no field's, and what is never shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_config import Layers, as_json, field_rows, fields_of
from command_config.masks import masked
from student_client import config as student
from student_client.config import RunConfig, effective_run_config
from teacher_server import config as teacher
from teacher_server.config import ServerConfig, effective_config
from teaching_protocol.errors import ConfigError

BOTH = [(ServerConfig, teacher.ENVIRONMENT), (RunConfig, student.ENVIRONMENT)]


def test_later_layers_hold_and_every_value_says_who_gave_it(tmp_path: Path) -> None:
    path = tmp_path / "teacher.toml"
    path.write_text('model = "m"\nport = 1\npermits = 7\nlease_s = 9.0\n')
    environ = {
        "TEACHER_SERVER_PORT": "2",
        "TEACHER_SERVER_PERMITS": "8",
        "HOME": "/root",
        "TEACHER_TOKEN": "ttk-secret",
    }
    found = effective_config(path, environ, {"port": 3, "host": None})
    assert (found.config.port, found.config.permits, found.config.lease_s, found.config.max_rows) == (3, 8, 9.0, 1024)
    assert found.source("port") == "flag"
    assert found.source("permits") == "environment TEACHER_SERVER_PERMITS"
    assert found.source("lease_s") == f"file {path}"
    assert found.source("host") == found.source("max_rows") == "default"


@given(st.lists(st.sampled_from(["file", "environment", "flag"]), unique=True))
def test_the_order_holds_whichever_layers_there_are(given_by: list[str]) -> None:
    layers = Layers()
    if "file" in given_by:
        layers.mapping({"training": {"batch_size": 1, "lr": 1.0}}, "file")
    if "environment" in given_by:
        layers.environment(RunConfig, student.ENVIRONMENT, {"STUDENT_CLIENT_TRAINING__BATCH_SIZE": "2"})
    if "flag" in given_by:
        layers.dotted({"training.batch_size": 3}, "flag")
    found = layers.validate(RunConfig)
    rank = {"file": 1, "environment": 2, "flag": 3}
    assert found.config.training.batch_size == max((rank[each] for each in given_by), default=32)
    assert found.source("training.batch_size").split(" ")[0] == max(
        given_by, key=lambda each: rank[each], default="default"
    )


def test_the_environment_reads_every_kind_of_value() -> None:
    environ = {
        "STUDENT_CLIENT_TRAINING__LR": "3e-3",
        "STUDENT_CLIENT_TRAINING__PIPELINE": "false",
        "STUDENT_CLIENT_TRAINING__PATIENCE": "null",
        "STUDENT_CLIENT_TRAINING__LABELLED_SHARE": "NULL",
        "STUDENT_CLIENT_METHOD__NAMES": "talking,one_way",
        "STUDENT_CLIENT_TEACHER__ADDRESS": "there:1",
        "STUDENT_CLIENT_TEACHER__ADDRESSES": '["here:1", "near:2"]',
        "STUDENT_CLIENT_TEACHER__STUDENT": "007",
        "STUDENT_CLIENT_DATA__TEXT_COLUMN": "null",
        "STUDENT_CLIENT_COMPLEMENTARY": '[{"address": "c:1", "lr": 0.1}]',
        "STUDENT_CLIENT_OUTPUT": "runs/x",
    }
    found = effective_run_config(None, environ, {}).config
    assert (found.training.lr, found.training.pipeline, found.training.patience) == (3e-3, False, None)
    assert found.training.labelled_share is None
    assert found.method.names == ("talking", "one_way")
    assert found.teacher is not None
    assert (found.teacher.address, found.teacher.addresses, found.teacher.student) == (
        "there:1",
        ("here:1", "near:2"),
        "007",
    )
    assert found.data.text_column == "null", "a text is a text"
    assert (found.complementary[0].address, found.complementary[0].lr) == ("c:1", 0.1)
    assert found.output == Path("runs/x")
    quotas = effective_config(
        None, {"TEACHER_SERVER_MODEL": "1e3", "TEACHER_SERVER_QUOTAS": '[{"students": "a-*"}]'}, {}
    )
    assert quotas.config.model == "1e3"
    assert quotas.config.quotas[0].students == "a-*"


@pytest.mark.parametrize(("model", "prefix"), BOTH)
def test_every_field_has_one_variable_and_no_two_share_it(model: Any, prefix: str) -> None:
    rows = field_rows(model, prefix)
    assert [row.field for row in rows] == list(fields_of(model))
    assert len({row.variable for row in rows}) == len(rows)
    assert all(row.variable.startswith(prefix) and row.about for row in rows)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TEACHER_SERVER_PROT", "did you mean TEACHER_SERVER_PORT?"),
        ("TEACHER_SERVER_LINGER__S", "did you mean TEACHER_SERVER_LINGER_S?"),
        ("TEACHER_SERVER_XYZZY_PLUGH_QQ", "fields are set by TEACHER_SERVER_FIELD"),
        ("TEACHER_SERVER_SERVICE_HOST", "Kubernetes sets it for a Service named teacher-server"),
        ("TEACHER_SERVER_PORT_50051_TCP_ADDR", "enableServiceLinks: false"),
    ],
)
def test_a_variable_that_is_no_fields_is_an_error_and_its_value_is_not_said(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as failure:
        effective_config(None, {name: "hunter2", "TEACHER_TOKEN": "x"}, {"model": "m"})
    assert name in str(failure.value)
    assert said in str(failure.value)
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize(
    ("file", "environ", "flags", "said"),
    [
        ("port: 70000", {}, {}, "port: received 70000, expected .* 65535 (from the file FILE)"),
        (
            "port: 70000",
            {"PORT": "70001"},
            {},
            "received '70001', expected .* (from the environment TEACHER_SERVER_PORT)",
        ),
        ("port: 70000", {"PORT": "70001"}, {"port": "x"}, "port: received 'x', expected .* (from the flag)"),
        (
            "prot: 5",
            {},
            {},
            "prot: received 5, expected no field of this name (from the file FILE); did you mean port?",
        ),
        ("quotas: [{weight: 1}]", {}, {}, "quotas.0.students: received nothing, expected a value (from the file FILE)"),
        ("", {"QUOTAS": "[{"}, {}, "environment variable TEACHER_SERVER_QUOTAS: received a text that is no JSON"),
        (
            "",
            {"QUOTAS": "a"},
            {},
            "quotas: received 'a', expected .* tuple (from the environment TEACHER_SERVER_QUOTAS)",
        ),
        ("api_token: hunter2", {}, {}, "api_token: received '***', expected no field of this name"),
        ("quotas: [{students: a, password: hunter2}]", {}, {}, "quotas.0.password: received '***', expected no field"),
    ],
)
def test_a_bad_value_says_what_was_received_what_was_expected_and_who_gave_it(
    tmp_path: Path, file: str, environ: dict[str, str], flags: dict[str, Any], said: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"model: m\n{file}\n")
    with pytest.raises(ConfigError) as failure:
        effective_config(path, {f"TEACHER_SERVER_{name}": value for name, value in environ.items()}, flags)
    found = str(failure.value)
    for part in said.replace("FILE", str(path)).split(".* "):
        assert part in found
    assert "hunter2" not in found


def test_a_section_that_is_none_says_who_made_it_so(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training: 5\n")
    with pytest.raises(ConfigError, match=r"training is 5, expected a mapping .* \(from the file .*a.yaml\)"):
        effective_run_config(path, {}, {"training.lr": 1.0})


def test_secrets_are_masked_wherever_they_land() -> None:
    token = "ttk-0123456789abcdef-" + "x" * 43
    assert masked("model", "https://ann:hunter2@host/model") == "https://***@host/model"
    assert masked("teacher.token_file", "/run/secrets/token") == "/run/secrets/token"
    assert masked("teacher.token_file", token) == "***"
    assert masked("x", {"password": "hunter2", "list": [{"api_key": "k"}]}, is_known=False) == {
        "password": "***",
        "list": [{"api_key": "***"}],
    }


def test_as_json_has_every_field_masked_and_with_its_source() -> None:
    environ = {"STUDENT_CLIENT_DATA__PATH": "https://ann:hunter2@host/data.csv"}
    found = json.loads(as_json(effective_run_config(None, environ, {"training.lr": 0.5})))
    assert found["training.lr"] == {"value": 0.5, "from": "flag"}
    assert found["teacher"] == {"value": None, "from": "default"}, "a section that is not there is one line"
    assert found["data.path"]["from"] == "environment STUDENT_CLIENT_DATA__PATH"
    assert "hunter2" not in json.dumps(found)
    given = json.loads(as_json(effective_run_config(None, {}, {"teacher.address": "a:1"})))
    assert given["teacher.address"] == {"value": "a:1", "from": "flag"}
    assert set(given) == set(fields_of(RunConfig))
