"""How to run the same fleet on Kubernetes, Slurm or Ray, as text to apply: each student by its number; runs nothing.

Everywhere the same command does one student, `student-client fleet FILE --index N`: it skips, resumes and restarts as on one machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from student_client.fleet.settings import FleetConfig

__all__ = ["PLACES", "Job"]

_GRACE_MORE_S = 30  # after the students have had theirs


@dataclass(frozen=True)
class Job:
    """What is to be run elsewhere.

    Args:
        fleet: its settings.
        path: of its file.
        text: of its file.
        students: how many there are.
        image: of a container with student-client.
    """

    fleet: FleetConfig
    path: Path
    text: str
    students: int
    image: str

    @property
    def name(self) -> str:
        """The fleet's name as the name of an object: lower case, at most 50 characters."""
        return re.sub(r"[^a-z0-9-]+", "-", self.fleet.name.lower()).strip("-")[:50].strip("-") or "fleet"

    @property
    def threads(self) -> int:
        """Compute threads of a student; one, where the file says none."""
        return self.fleet.threads or 1

    @property
    def at_once(self) -> int:
        """Students that train at the same time."""
        return min(self.fleet.at_once or self.students, self.students)

    def command(self, path: str, index: str, output: str) -> list[str]:
        """The command of one student."""
        words = ["student-client", "fleet", path, "--index", index, "--threads", str(self.threads)]
        return [*words, "--output", output]


def _kubernetes(job: Job) -> str:
    """A ConfigMap with the file, a claim for the runs, and one indexed Job; `kubectl apply -f -` takes it."""
    file = f"fleet{job.path.suffix}"
    meta = {"name": job.name, "labels": {"app.kubernetes.io/name": "student", "app.kubernetes.io/instance": job.name}}
    token = {"secretKeyRef": {"name": "teacher-token", "key": "token", "optional": True}}
    container = {
        "name": "student",
        "image": job.image,
        "command": job.command(f"/etc/fleet/{file}", "$(JOB_COMPLETION_INDEX)", "/runs"),
        "env": [{"name": "TEACHER_TOKEN", "valueFrom": token}, {"name": "OMP_NUM_THREADS", "value": str(job.threads)}],
        "resources": {"requests": {"cpu": str(job.threads), "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "file", "mountPath": "/etc/fleet", "readOnly": True},
            {"name": "runs", "mountPath": "/runs"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": int(job.fleet.grace_s) + _GRACE_MORE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "file", "configMap": {"name": job.name}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": job.name}},
        ],
    }
    given_up = {"containerName": "student", "operator": "In", "values": [1]}
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    spec = {
        "completionMode": "Indexed",
        "completions": job.students,
        "parallelism": job.at_once,
        "backoffLimitPerIndex": job.fleet.restarts,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": disrupted},
                {"action": "FailIndex", "onExitCodes": given_up},
            ]
        },
        "template": {"metadata": {"labels": meta["labels"]}, "spec": pod},
    }
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "10Gi"}}}
    documents: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {file: job.text}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec},
    ]
    head = (
        f"# {job.students} students, {job.at_once} at once: kubectl apply -f THIS_FILE\n"
        "# A token: kubectl create secret generic teacher-token --from-file=token=alice.token\n"
        "# All pods share one volume (ReadWriteMany); each student has a folder of its own on it.\n"
    )
    return head + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False)


def _slurm(job: Job) -> str:
    """An array script: `sbatch THIS_FILE`."""
    command = job.command(shlex.quote(str(job.path)), '"$SLURM_ARRAY_TASK_ID"', shlex.quote(str(job.fleet.root)))
    return f"""#!/bin/bash
# {job.students} students, {job.at_once} at once: sbatch THIS_FILE, from the folder that FILE's own paths start at
#SBATCH --job-name={job.name}
#SBATCH --array=0-{job.students - 1}%{job.at_once}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={job.threads}
#SBATCH --mem=4G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@{int(job.fleet.grace_s)}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={job.name}-%A_%a.log
set -u
export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"
# The token, if the teacher asks for one: export TEACHER_TOKEN before sbatch, or teacher.token_file in the file.
srun --cpu-bind=cores {" ".join(command)}
code=$?
if [ "$code" -eq 143 ]; then # its time was over: it has written a checkpoint, and goes on when it is its turn again
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def _ray(job: Job) -> str:
    """A program that has Ray run the students: `ray job submit --working-dir . -- python THIS_FILE`."""
    words = job.command(str(job.path), "{index}", str(job.fleet.root))
    listed = ", ".join("str(index)" if word == "{index}" else _quoted(word) for word in words[1:])
    return f'''"""{job.students} students, {job.at_once} at once: ray job submit --working-dir . -- python THIS_FILE

Every node needs student-client installed; the folder of the runs lies on storage that all nodes share. A student whose node
is lost goes on from its checkpoint on another one.
"""

import subprocess
import sys

import ray

STUDENTS, AT_ONCE, THREADS = {job.students}, {job.at_once}, {job.threads}


@ray.remote(num_cpus=THREADS, max_retries={job.fleet.restarts})
def train(index):
    """The exit code of one student."""
    return subprocess.run([sys.executable, "-m", "student_client", {listed}]).returncode


def main():
    """Exit code 1 if a student did not finish."""
    ray.init()
    waiting, running, codes = list(range(STUDENTS)), {{}}, {{}}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            index = waiting.pop(0)
            running[train.remote(index)] = index
        for done in ray.wait(list(running), num_returns=1)[0]:
            index = running.pop(done)
            codes[index] = ray.get(done)
            print(f"student {{index}}: exit code {{codes[index]}}", flush=True)
    sys.exit(1 if any(codes.values()) else 0)


if __name__ == "__main__":
    main()
'''


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Dumper(yaml.SafeDumper):
    """YAML as one writes it by hand: no references, texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes everything out."""
        return True


def _written(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _written)

PLACES: dict[str, Callable[[Job], str]] = {"kubernetes": _kubernetes, "slurm": _slurm, "ray": _ray}
"""Where a fleet may run, by the name that `--print` takes."""
