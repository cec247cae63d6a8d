"""compose.yaml as docker-compose itself reads it, and what it must say: nobody is root, secrets are files, order and health."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from teacher_server.config import ServerConfig, load_config
from teacher_server.security.tls import check_bind
from tests.deploy.dockerfiles import ROOT
from tests.parts import part

FOLDER = ROOT / "deploy"
OURS = ("teacher", "student-a", "student-b")


def rendered(*files: str) -> dict[str, Any]:
    words = [word for file in files for word in ("-f", str(FOLDER / file))]
    done = subprocess.run(
        [part("docker-compose"), *words, "config", "--format", "json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "a warning"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return rendered("compose.yaml")


def test_everybody_is_there(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {*OURS, "prometheus", "grafana"}


def test_nobody_may_more_than_needed(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
    for name in OURS:
        assert compose["services"][name]["user"] == "10001:10001"
        assert {"cpus", "mem_limit"} <= compose["services"][name].keys()


def test_ports_are_open_to_this_machine_alone(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name


def test_all_files_are_there(compose: dict[str, Any]) -> None:
    for config in compose["configs"].values():
        assert Path(config["file"]).is_file(), config
    for service in compose["services"].values():
        for volume in service["volumes"]:
            if volume["type"] == "bind":
                assert any(Path(volume["source"]).iterdir()), volume
        if "build" in service:
            assert Path(service["build"]["context"], service["build"]["dockerfile"]).is_file()


def test_secrets_are_files_that_git_never_sees(compose: dict[str, Any]) -> None:
    for secret in compose["secrets"].values():
        path = Path(secret["file"])
        assert path.parent == FOLDER / "secrets"
        done = subprocess.run(["git", "check-ignore", "-q", str(path)], cwd=ROOT, timeout=20)
        assert done.returncode == 0, path
    text = json.dumps(compose["services"])
    assert "TEACHER_TOKEN" not in text


def test_students_wait_for_a_teacher_that_serves(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("student-a", "student-b", "prometheus"):
        assert services[name]["depends_on"]["teacher"]["condition"] == "service_healthy"
    assert "teacher_server.probe" in services["teacher"]["healthcheck"]["test"]


def test_every_command_is_one_that_is_understood(compose: dict[str, Any]) -> None:
    """Flags and files of the students' commands, by the command line itself."""
    from typer.testing import CliRunner

    from student_client.cli import build_app

    for name in ("student-a", "student-b"):
        words = compose["services"][name]["command"]
        done = CliRunner().invoke(build_app(), [*words, "--set", "teacher.nothing=1"])
        assert "teacher.nothing" in str(done.exception), "all but the last one is understood"
        secrets = {secret["target"] for secret in compose["services"][name]["secrets"]}
        assert {word for word in words if word.startswith("/run/secrets/")} == secrets


def test_the_teachers_configuration_is_good_and_lets_no_stranger_in(compose: dict[str, Any]) -> None:
    config = load_config(FOLDER / "docker/teacher.yaml", {})
    check_bind(config)
    assert config.tokens
    assert not config.insecure
    teacher = compose["services"]["teacher"]
    secrets = {secret["target"] for secret in teacher["secrets"]}
    assert {str(config.tls_cert), str(config.tls_key), str(config.tokens)} <= secrets
    assert teacher["configs"][0]["target"] == "/etc/talking-models/teacher.yaml"
    assert teacher["stop_grace_period"] == "1m0s"
    assert config.drain_s + config.handoff_s < 60


def test_a_gpu_is_one_more_file() -> None:
    teacher = rendered("compose.yaml", "compose.gpu.yaml")["services"]["teacher"]
    assert teacher["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert (FOLDER / "docker" / teacher["build"]["args"]["LOCK"]).is_file()
    command, *flags = teacher["command"]
    given = {name.removeprefix("--"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    assert command == "serve"
    assert given.pop("config") == teacher["configs"][0]["target"]
    assert ServerConfig(model="any", **given).device == "cuda"


def test_prometheus_finds_the_teacher_and_the_rules(compose: dict[str, Any], tmp_path: Path) -> None:
    """promtool reads the configuration with the files where the container has them."""
    mounted = {each["source"]: each["target"] for each in compose["services"]["prometheus"]["configs"]}
    text = (FOLDER / "docker/prometheus.yml").read_text()
    targets = {
        target for job in yaml.safe_load(text)["scrape_configs"] for target in job["static_configs"][0]["targets"]
    }
    assert targets == {"teacher:9464", "student-a:9470", "student-b:9470"}
    shutil.copy(FOLDER / "prometheus/rules.yml", tmp_path)
    (tmp_path / "secret").write_text("")
    for mount in (mounted["rules"], "/run/secrets/ca.pem", "/run/secrets/prometheus.token"):
        assert mount in text
        text = text.replace(mount, str(tmp_path / ("rules.yml" if "rules" in mount else "secret")))
    (tmp_path / "prometheus.yml").write_text(text)
    done = subprocess.run(
        [part("promtool"), "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
