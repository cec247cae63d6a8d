"""The charts as helm renders them: against Kubernetes' own schemas, for many values; and what contradicts itself is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from teacher_server.config import load_config
from teacher_server.security.tls import check_bind
from tests.deploy.charts import CHARTS, ONE, SECURE, TEACHERS, chart_values, helm, of_kind, refusal, rendered
from tests.deploy.dockerfiles import ROOT
from tests.parts import part

kubernetes_validate = pytest.importorskip("kubernetes_validate")

MONITORED: dict[str, Any] = {
    "serviceMonitor": {
        "enabled": True,
        "tokenSecret": {"name": "prometheus-token"},
        "caSecret": {"name": "teacher-tls"},
    },
    "rules": {"enabled": True, "labels": {"release": "prometheus"}},
}
ALL_OF_IT: dict[str, Any] = {
    **SECURE,
    "config": {"model": "/models/mine", "handoff_s": 20, "dtype": "bfloat16"},
    "gpu": {"count": 2},
    "runtimeClassName": "nvidia",
    "metrics": MONITORED,
    "autoscaling": {"enabled": True},
    "modelVolume": {"existingClaim": "models"},
    "imagePullSecrets": [{"name": "registry"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "extraEnv": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
}
VALUES: dict[str, tuple[str, dict[str, Any]]] = {
    "secure": ("teacher", SECURE),
    "three": ("teacher", SECURE | {"replicaCount": 3}),
    "insecure": ("teacher", {"insecure": True}),
    "gpu": ("teacher", SECURE | {"gpu": {"count": 1}}),
    "client certificates": ("teacher", {"tls": SECURE["tls"] | {"clientCa": True}, "auth": SECURE["auth"]}),
    "no volume": ("teacher", SECURE | {"persistence": {"enabled": False}}),
    "bare": (
        "teacher",
        {
            "insecure": True,
            "metrics": {"enabled": False},
            "serviceAccount": {"create": False},
            "podDisruptionBudget": {"enabled": False},
            "networkPolicy": {"enabled": False},
        },
    ),
    "autoscaling": ("teacher", SECURE | {"autoscaling": {"enabled": True}}),
    "monitored": ("teacher", SECURE | {"metrics": MONITORED}),
    "all of it": ("teacher", ALL_OF_IT),
    "one student": ("students", ONE),
    "students": (
        "students",
        {
            "teachers": TEACHERS,
            "students": [{"name": f"s{seed}", "args": [f"--seed={seed}"]} for seed in range(4)],
            "args": ["--data=newsgroups", "--set", "training.lr=1e-3"],
            "tls": {"caSecretName": "teacher-tls", "serverName": "t.lab.svc"},
            "auth": {"tokenSecret": {"name": "alice"}},
            "gpu": {"count": 1},
            "ttlSecondsAfterFinished": 600,
        },
    ),
}
OURS = {"ServiceMonitor", "PrometheusRule"}


@pytest.fixture(params=VALUES)
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(*VALUES[request.param])


@pytest.mark.parametrize("name", VALUES)
def test_helm_lints(name: str) -> None:
    chart, values = VALUES[name]
    done = helm("lint", "--strict", str(CHARTS / chart), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_knows_every_field(found: list[dict[str, Any]]) -> None:
    for manifest in found:
        if manifest["kind"] not in OURS:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                kubernetes_validate.validate(manifest, "1.32", strict=True)


def test_the_check_itself_finds_a_fault() -> None:
    manifest = of_kind(rendered("teacher", SECURE), "StatefulSet")[0]
    manifest["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.32", strict=True)


def pods(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for manifest in found:
        if manifest["kind"] in ("StatefulSet", "Job"):
            yield manifest["spec"]["template"]["spec"]


def test_pods_keep_the_restricted_standard(found: list[dict[str, Any]]) -> None:
    assert list(pods(found))
    for pod in pods(found):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own["readOnlyRootFilesystem"] is True
        kinds = {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]}
        assert kinds <= {"configMap", "emptyDir", "secret", "persistentVolumeClaim"}


def test_every_mount_has_its_volume(found: list[dict[str, Any]]) -> None:
    for manifest in found:
        if manifest["kind"] in ("StatefulSet", "Job"):
            claims = {each["metadata"]["name"] for each in manifest["spec"].get("volumeClaimTemplates", [])}
            pod = manifest["spec"]["template"]["spec"]
            volumes = [volume["name"] for volume in pod["volumes"]] + sorted(claims)
            assert len(set(volumes)) == len(volumes)
            assert {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]} == set(volumes)


def test_selectors_find_the_pods(found: list[dict[str, Any]]) -> None:
    for name in of_kind(found, "StatefulSet"):
        labels = name["spec"]["template"]["metadata"]["labels"]
        services = of_kind(found, "Service")
        assert name["spec"]["serviceName"] in {
            each["metadata"]["name"] for each in services if "clusterIP" in each["spec"]
        }
        selectors = [each["spec"]["selector"] for each in services]
        selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind(found, "PodDisruptionBudget")]
        selectors += [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(found, "NetworkPolicy")]
        selectors += [name["spec"]["selector"]["matchLabels"]]
        assert all(selector.items() <= labels.items() for selector in selectors)
        ports = {port["name"] for port in name["spec"]["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for each in services for port in each["spec"]["ports"]} <= ports


def test_a_drain_fits_into_the_grace(found: list[dict[str, Any]]) -> None:
    for each in of_kind(found, "StatefulSet"):
        pod = each["spec"]["template"]["spec"]
        before = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
        config = server_config(found)
        assert pod["terminationGracePeriodSeconds"] >= before + config["drain_s"] + config["handoff_s"] + 10


def server_config(found: list[dict[str, Any]]) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(of_kind(found, "ConfigMap")[0]["data"]["teacher.yaml"])
    return loaded


def test_the_server_takes_its_configuration(found: list[dict[str, Any]], tmp_path: Path) -> None:
    for each in of_kind(found, "ConfigMap"):
        (tmp_path / "teacher.yaml").write_text(each["data"]["teacher.yaml"])
        config = load_config(tmp_path / "teacher.yaml", {})
        check_bind(config)
        container = of_kind(found, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"][0]
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for path in (config.tls_cert, config.tls_key, config.tokens, config.client_ca):
            assert path is None or any(str(path).startswith(f"{mount}/") for mount in mounts)
        assert container["args"] == ["serve", "--config", "/etc/talking-models/teacher.yaml"]
        assert container["ports"][0]["containerPort"] == config.port


def test_students_know_their_command(found: list[dict[str, Any]]) -> None:
    from typer.testing import CliRunner

    from student_client.cli import build_app

    for job in of_kind(found, "Job"):
        words = job["spec"]["template"]["spec"]["containers"][0]["args"]
        done = CliRunner().invoke(build_app(), [*words, "--set", "teacher.nothing=1"])
        assert "teacher.nothing" in str(done.exception), "all but the last one is understood"
        assert "--restartable" in words


def test_students_spread_over_the_teachers() -> None:
    jobs = of_kind(rendered(*VALUES["students"]), "Job")
    given = [
        next(word for word in job["spec"]["template"]["spec"]["containers"][0]["args"] if "--teacher=" in word)
        for job in jobs
    ]
    orders = [word.removeprefix("--teacher=").split(",") for word in given]
    assert [order[0] for order in orders] == [*TEACHERS, TEACHERS[0]]
    assert all(sorted(order) == TEACHERS for order in orders)


def test_a_probe_by_kubernetes_or_with_tls_by_the_image() -> None:
    def probe(name: str) -> dict[str, Any]:
        pod = of_kind(rendered(*VALUES[name]), "StatefulSet")[0]["spec"]["template"]["spec"]
        found: dict[str, Any] = pod["containers"][0]["startupProbe"]
        return found

    assert probe("insecure")["grpc"] == {"port": 50051}
    assert probe("insecure")["failureThreshold"] * probe("insecure")["periodSeconds"] >= 600
    command = probe("secure")["exec"]["command"]
    assert command[:3] == ["python", "-m", "teacher_server.probe"]
    assert command[-1] == "t.lab.svc"
    assert "--key" in probe("client certificates")["exec"]["command"]


def test_gpus_are_limits() -> None:
    pod = of_kind(rendered(*VALUES["all of it"]), "StatefulSet")[0]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert pod["runtimeClassName"] == "nvidia"


def test_no_secret_is_made_or_shown() -> None:
    for chart, values in VALUES.values():
        assert not of_kind(rendered(chart, values), "Secret")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "tls.secretName and auth.tokensSecretName"),
        ({"tls": SECURE["tls"]}, "tls.secretName and auth.tokensSecretName"),
        (SECURE | {"config": {"host": "127.0.0.1"}}, "config.host is decided by the chart"),
        (SECURE | {"termination": {"graceS": 30}}, "termination.graceS is 30, and a drain may take 50 s"),
        (SECURE | {"termination": {"graceS": 60}, "config": {"drain_s": 120}}, "may take 140 s"),
        (SECURE | {"gpu": {"count": 1}, "config": {"device": "cpu"}}, "config.device is cpu"),
        (SECURE | {"metrics": {"serviceMonitor": {"enabled": True}}}, "tokenSecret.name"),
        (SECURE | {"metrics": {"enabled": False}, "autoscaling": {"enabled": True}}, "need metrics.enabled"),
        (SECURE | {"autoscaling": {"enabled": True, "minReplicas": 9}}, "minReplicas 9 is more than maxReplicas 4"),
        ({"insecure": True, "tls": {"clientCa": True}}, "tls.clientCa needs tls.secretName"),
        (SECURE | {"replicas": 3}, "replicas"),
        (SECURE | {"resources": {"requests": {"cpu": None}, "limits": {"cpu": None}}}, "resources"),
        (SECURE | {"ports": {"grpc": 0}}, "grpc"),
    ],
)
def test_what_contradicts_itself_is_refused(values: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal("teacher", values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "teachers: name the address"),
        ({"teachers": TEACHERS}, "students: name at least one"),
        (ONE | {"auth": {"tokenSecret": {"name": "a"}}}, "a token is not sent without TLS"),
        (ONE | {"students": [{"name": "Ann_1"}]}, "name"),
        (ONE | {"teachers": ["nowhere"]}, "teachers"),
    ],
)
def test_students_that_contradict_themselves_are_refused(values: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal("students", values)


@pytest.mark.parametrize("chart", ["teacher", "students"])
def test_the_readme_has_every_value_and_its_default(chart: str) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (CHARTS / chart / "README.md").read_text(), re.MULTILINE)
    told = {name: json.loads(default) for name, default in rows}
    assert len(told) == len(rows)
    assert told == dict(leaves(chart_values(chart), told))


def leaves(values: dict[str, Any], whole: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names; a mapping that the README shows whole is one value."""
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict) and value and name not in whole:
            yield from leaves(value, whole, f"{name}.")
        else:
            yield name, value


def test_the_notes_name_every_pod(tmp_path: Path) -> None:
    """`helm template` leaves the notes out, and `install` needs a cluster: so they are rendered as a manifest."""
    chart = shutil.copytree(CHARTS / "teacher", tmp_path / "teacher")
    (chart / "templates/NOTES.txt").rename(chart / "files/notes.txt")
    wrapped = 'kind: Notes\nsaid: |\n{{ tpl (.Files.Get "files/notes.txt") . | indent 2 }}\n'
    (chart / "templates/notes.yaml").write_text(wrapped)
    done = helm("template", "t", str(chart), "--namespace", "lab", values=SECURE | {"replicaCount": 2})
    assert done.returncode == 0, done.stderr
    said = next(each["said"] for each in yaml.safe_load_all(done.stdout) if each and each["kind"] == "Notes")
    assert "--teacher t-0.t-pods.lab.svc:50051,t-1.t-pods.lab.svc:50051 --ca" in said
    assert "has 50 s to drain" in said
    assert "WARNING" not in said


def test_autoscaling_asks_what_the_adapter_gives(tmp_path: Path) -> None:
    """The rule for prometheus-adapter is PromQL over an instrument that exists, under the name the autoscaler asks for."""
    rule = yaml.safe_load((CHARTS / "teacher/files/adapter-rule.yaml").read_text())[0]
    hpa = of_kind(rendered(*VALUES["autoscaling"]), "HorizontalPodAutoscaler")[0]
    assert hpa["spec"]["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    assert hpa["spec"]["scaleTargetRef"]["kind"] == "StatefulSet"
    series = rule["seriesQuery"].partition("{")[0]
    assert f'"{series.removesuffix("_bucket")}"' in (ROOT / "teacher_server/metrics/metrics.py").read_text()
    query = rule["metricsQuery"]
    for blank, text in (("Series", series), ("LabelMatchers", 'namespace="lab"'), ("GroupBy", "pod")):
        assert f"<<.{blank}>>" in query
        query = query.replace(f"<<.{blank}>>", text)
    groups = [{"name": "adapter", "rules": [{"record": "teacher:queue:p90", "expr": query}]}]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    promtool(tmp_path / "rules.yml")


def promtool(path: Path) -> None:
    done = subprocess.run([part("promtool"), "check", "rules", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
