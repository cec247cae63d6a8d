"""The KubeRay manifests: Kubernetes' own parts against its schemas, KubeRay's fields against a list of ours, the commands against the commands."""

from __future__ import annotations

import copy
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from student_client.cli import build_app
from teacher_server.cli import app as teacher_app
from teacher_server.config import ServerConfig
from teacher_server.security.tls import check_bind
from tests.deploy.dockerfiles import ROOT

kubernetes_validate = pytest.importorskip("kubernetes_validate")

FILES = sorted((ROOT / "deploy" / "ray").glob("*.yaml"))

# what the CRDs of KubeRay (ray.io/v1) have that these files use, with the type of each; a star is one that must be there
CLUSTER = {"rayVersion": str, "enableInTreeAutoscaling": bool, "headGroupSpec*": dict, "workerGroupSpecs": list}
HEAD = {"rayStartParams*": dict, "template*": dict}
WORKERS = HEAD | {"groupName*": str, "replicas": int, "minReplicas*": int, "maxReplicas*": int}
JOB = {"entrypoint*": str, "submissionMode": str, "backoffLimit": int, "shutdownAfterJobFinishes": bool}
JOB |= {"clusterSelector": dict, "rayClusterSpec": dict}


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


ALL = [each for path in FILES for each in documents(path)]


def kinds(kind: str, found: list[dict[str, Any]] = ALL) -> list[dict[str, Any]]:
    return [each for each in found if each["kind"] == kind]


def check(value: dict[str, Any], known: dict[str, type], where: str) -> None:
    """Refuses a field that the CRD has not, one of another type, and a missing one."""
    types = {name.rstrip("*"): kind for name, kind in known.items()}
    assert value.keys() <= types.keys(), f"{where}: {value.keys() - types.keys()}"
    missing = {name[:-1] for name in known if name.endswith("*")} - value.keys()
    assert not missing, f"{where}: {missing}"
    for name, each in value.items():
        assert type(each) is types[name], f"{where}.{name}"


def check_cluster(spec: dict[str, Any]) -> None:
    check(spec, CLUSTER, "cluster")
    check(spec["headGroupSpec"], HEAD, "head")
    for group in spec.get("workerGroupSpecs", []):
        check(group, WORKERS, "workers")
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
        for name, value in group["rayStartParams"].items():
            assert type(value) is str, f"{name}: the CRD takes strings alone"


def clusters(found: list[dict[str, Any]] = ALL) -> Iterator[dict[str, Any]]:
    for each in found:
        if each["kind"] == "RayCluster":
            yield each["spec"]
        elif each["kind"] == "RayJob" and "rayClusterSpec" in each["spec"]:
            yield each["spec"]["rayClusterSpec"]


def templates(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def validate(manifest: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kubernetes_validate.validate(manifest, "1.32", strict=True)


def test_kubernetes_knows_every_field() -> None:
    assert len(FILES) == 2
    for each in ALL:
        if not each["apiVersion"].startswith("ray.io"):
            validate(each)
    pods = [template for spec in clusters() for template in templates(spec)]
    assert len(pods) == 4
    for number, template in enumerate(pods):
        meta = {**template["metadata"], "name": f"pod-{number}"}
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]})


def test_kuberay_knows_every_field() -> None:
    for each in ALL:
        assert (
            each["apiVersion"] == "ray.io/v1"
            if each["kind"].startswith("Ray")
            else not each["apiVersion"].startswith("ray")
        )
    for spec in clusters():
        check_cluster(spec)
    for job in kinds("RayJob"):
        check(job["spec"], JOB, "job")
        assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
        assert job["spec"]["backoffLimit"] > 0, "begun again where it fails, which needs a cluster of its own"
        assert "rayClusterSpec" in job["spec"]
        ports = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].get("ports")
        # where any are named, the head's service has these alone; the operator submits at dashboard
        assert ports is None or {"gcs-server", "dashboard", "client"} <= {each["name"] for each in ports}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(headGroup={}),
        lambda spec: spec["headGroupSpec"].pop("rayStartParams"),
        lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="4"),
        lambda spec: spec["workerGroupSpecs"][0].update(minReplicas=3),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ],
)
def test_the_check_itself_finds_a_fault(spoil: Any) -> None:
    spec = copy.deepcopy(next(clusters()))
    check_cluster(spec)
    spoil(spec)
    with pytest.raises(AssertionError):
        check_cluster(spec)


def test_pods_may_do_little_and_mount_what_they_have() -> None:
    for spec in clusters():
        for template in templates(spec):
            pod = template["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            for container in pod["containers"]:
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                mounts = {each["name"] for each in container["volumeMounts"]}
                assert mounts == {each["name"] for each in pod["volumes"]}


def test_the_service_finds_the_directory() -> None:
    found = documents(ROOT / "deploy" / "ray" / "teachers.yaml")
    service, head = kinds("Service", found)[0], next(clusters(found))["headGroupSpec"]["template"]
    # a label of ours, and one that KubeRay gives every head
    labels = {**head["metadata"]["labels"], "ray.io/node-type": "head"}
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {each["name"]: each["containerPort"] for each in head["spec"]["containers"][0]["ports"]}
    assert ports[service["spec"]["ports"][0]["targetPort"]] == service["spec"]["ports"][0]["port"] == 50050


RAYS_OWN = {6379, 8265, 10001, 52365, 8080, *range(10002, 20000)}  # with those below that the manifest fixes


def test_students_reach_teachers_and_nobody_else_reaches_ray() -> None:
    found = documents(ROOT / "deploy" / "ray" / "teachers.yaml")
    (policy,), (spec,) = kinds("NetworkPolicy", found), clusters(found)
    selected = policy["spec"]["podSelector"]["matchLabels"]
    rays, low, high = set(RAYS_OWN), 0, 0
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert selected.items() <= group["template"]["metadata"]["labels"].items()
        fixed = {name: int(value) for name, value in group["rayStartParams"].items() if name.endswith("-port")}
        assert fixed.keys() == {f"{each}-port" for each in ("node-manager", "object-manager", "runtime-env-agent", "dashboard-agent-grpc")}  # fmt: skip
        rays |= set(fixed.values())
        (control,) = group["template"]["spec"]["securityContext"]["sysctls"]
        low, high = map(int, control["value"].split())
        assert control["name"] == "net.ipv4.ip_local_port_range"
    among, operator, students, monitoring = policy["spec"]["ingress"]
    assert among == {"from": [{"podSelector": {"matchLabels": selected}}]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    label = next(clusters(documents(ROOT / "deploy" / "ray" / "students.yaml")))["headGroupSpec"]["template"][
        "metadata"
    ]["labels"]
    assert students["from"][0]["podSelector"]["matchLabels"].items() <= label.items()
    for rule in (students, monitoring):
        open_to = {
            port for each in rule["ports"] for port in range(each["port"], each.get("endPort", each["port"]) + 1)
        }
        assert not open_to & rays
        assert set(range(low, high + 1)) <= open_to, "the free ports that teachers take"
    assert {50050} == {each["port"] for each in students["ports"] if "endPort" not in each}


def test_one_teacher_at_a_time_is_taken_from_a_node() -> None:
    found = documents(ROOT / "deploy" / "ray" / "teachers.yaml")
    (budget,), (spec,) = kinds("PodDisruptionBudget", found), clusters(found)
    chosen = budget["spec"]["selector"]["matchLabels"].items()
    head, *workers = (each["metadata"]["labels"].items() for each in templates(spec))
    assert not chosen <= head
    assert all(chosen <= each for each in workers)


def given(words: list[str], command: click.Command) -> dict[str, Any]:
    """What a command line sets; click refuses what the command does not have."""
    context = command.make_context(words[0], list(words[1:]))
    return {name: value for name, value in context.params.items() if value is not None}


def test_the_commands_are_those_of_the_product() -> None:
    teachers, students = (each["spec"]["entrypoint"] for each in sorted(kinds("RayJob"), key=lambda each: each["metadata"]["name"], reverse=True))  # fmt: skip
    program, name, *words = shlex.split(teachers)
    fleet: Any = typer.main.get_command(teacher_app)
    chosen = given([name, *words], fleet.commands[name])
    assert (program, name) == ("teacher-server", "fleet")
    assert (chosen["replicas"], chosen["least"], chosen["most"], chosen["gpus"]) == (2, 1, 4, 1.0)
    program, name, *words = shlex.split(students)
    client: Any = typer.main.get_command(build_app())
    chosen = given([name, *words], client.commands[name])
    assert (program, name, chosen["on"], chosen["ray"]) == ("student-client", "fleet", "ray", "auto")


def test_the_teachers_are_served_to_those_with_a_token_alone() -> None:
    config = ServerConfig.model_validate(yaml.safe_load(kinds("ConfigMap")[0]["data"]["teacher.yaml"]))
    check_bind(config)
    with pytest.raises(Exception, match="insecure"):
        check_bind(config.model_copy(update={"tokens": None}))
