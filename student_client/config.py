"""Every setting of a student as frozen values read once at the edge; knows nothing that uses them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from command_config import Effective, Layers
from student_client.method_config import MethodConfig
from task_data.config import DataConfig
from teaching_protocol.channel import check_address
from teaching_protocol.errors import ConfigError

__all__ = [
    "ENVIRONMENT",
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainingConfig",
    "effective_run_config",
    "load_run_config",
    "run_file",
]

ENVIRONMENT = "STUDENT_CLIENT_"
"""What the names of variables that set fields begin with."""

_CONNECTION = {
    *("address", "addresses", "spread", "settle_s", "patience_s", "student", "deadline_s"),
    *("ca", "cert", "key", "token_file", "tls", "server_name", "insecure"),
}
"""Fields of a teacher that say how it is reached and change nothing that is learned."""


def _checked(address: str) -> str:
    try:
        check_address(address)
    except ConfigError as error:
        raise ValueError("HOST:PORT with a port of 1 to 65535, such as 127.0.0.1:50051") from error
    return address


_Address = Annotated[str, AfterValidator(_checked)]


class StudentConfig(BaseModel):
    """How large a student is; what is None comes from the preset of its modality."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: Literal["tiny", "small", "complementary"] = Field(
        "small", description="Preset: `tiny` for tests, `small` for a laptop run, `complementary` for a larger peer."
    )
    width: int | None = Field(None, ge=1, le=2**20, description="Width of the hidden states.")
    layers: int | None = Field(
        None, ge=1, le=2**20, description="Layers or residual blocks; half of them lie below the entry tap."
    )
    heads: int | None = Field(None, ge=1, le=2**20, description="Attention heads, text only; they divide the width.")
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="Dropout in training.")
    vocabulary_size: int | None = Field(None, ge=4, le=2**20, description="Most words the tokenizer keeps, text only.")
    max_tokens: int | None = Field(None, ge=2, le=2**20, description="Tokens after which a text is cut, text only.")
    seed: int = Field(0, ge=0, description="Seed of the initial weights.")
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="A model, by name or folder, whose tokenizer a new text student takes; None makes one of the training words.",
    )
    pretrained: str | None = Field(
        None,
        min_length=1,
        description="A transformers model to begin from, by name or folder, in place of a new student.",
    )
    keep_layers: tuple[int, ...] | None = Field(
        None, description="Layers of `pretrained` that are kept, from 0; None keeps every `keep_every`-th."
    )
    keep_every: int | None = Field(
        None,
        ge=1,
        description="One of how many layers of `pretrained` is kept, the last of each such many; None keeps all.",
    )


class TeacherConfig(BaseModel):
    """Which teacher is asked, and what its side of the session is like."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    address: _Address = Field(
        "127.0.0.1:50051",
        description="`host:port` of the teacher server, or of a fleet's directory; `dns:///NAME:PORT` is every address of a name.",
    )
    addresses: tuple[_Address, ...] = Field(
        (), description="Where else the same teacher serves: asked in turn when it is lost."
    )
    spread: bool = Field(
        False,
        description="Rank the addresses by the student's name, as those of a fleet are; else the first is preferred.",
    )
    settle_s: float = Field(
        30.0,
        ge=0.0,
        description="Seconds after a replica of a fleet failed before the session goes back to it; they double each time.",
    )
    patience_s: float = Field(
        300.0, ge=0.0, description="Seconds a lost teacher is waited for without progress; 0 ends the run at once."
    )
    ca: Path | None = Field(None, description="PEM file of the CA of the teacher's certificate; turns TLS on.")
    cert: Path | None = Field(
        None, description="PEM file of this student's own certificate, if the server asks for one."
    )
    key: Path | None = Field(None, description="PEM file of that certificate's key.")
    token_file: Path | None = Field(
        None, description="File with the token, readable by its owner alone; None takes the variable TEACHER_TOKEN."
    )
    tls: bool = Field(False, description="TLS with the public CAs that gRPC brings, where `ca` is not given.")
    server_name: str | None = Field(None, description="Name in the teacher's certificate, if it is not the address's.")
    insecure: bool = Field(
        False, description="Send the token without TLS to another machine, where others may read it."
    )
    student: str | None = Field(
        None, min_length=1, description="Name of this student at the teacher; None makes one that nobody else has."
    )
    entry: int | None = Field(None, ge=0, description="Layer at which a message enters; None takes the server's.")
    exit: int | None = Field(None, ge=1, description="Layer at which the answer is read; None takes the server's.")
    deadline_s: float = Field(60.0, gt=0.0, description="Seconds any one call may take.")
    compression: Literal["none", "bf16", "fp16", "int8"] = Field("bf16", description="How float tensors travel.")
    int8_error: float = Field(
        0.02, ge=0.0, description="Largest relative error of a tensor sent as int8; one that has more goes as bf16."
    )
    shared_memory: bool = Field(
        True, description="Whether large messages go through shared memory where the teacher is on this host."
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimizer of the teacher-side codec.")
    lr: float | None = Field(
        None, gt=0.0, description="Peak learning rate of the teacher-side codec; None takes that of the training."
    )
    weight_decay: float = Field(0.01, ge=0.0, description="Weight decay of the teacher-side codec.")


class TrainingConfig(BaseModel):
    """How long and how fast a student learns, and what is written down on the way."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(10, ge=1, description="Passes over the training rows, where `max_steps` is not given.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps; given, `epochs` is not read.")
    batch_size: int = Field(32, ge=1, description="Examples of one microbatch, of all ranks together.")
    labelled_share: float | None = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="Part of each batch that is labelled, where unlabelled rows teach; None draws from all alike, as does a "
        "stream (`data.streaming`) unless it is 1.",
    )
    group_by_length: bool = Field(
        False,
        description="Whether a batch has texts of similar length, so that less of it is padding; images and ratings have "
        "no length, and stay as they are.",
    )
    accumulation: int = Field(1, ge=1, description="Microbatches of one optimizer step.")
    pipeline: bool = Field(
        True,
        description="Whether the next microbatches' questions go to the teacher while the student computes on this one, "
        "where a step has several; the result is the same, the memory that of three microbatches.",
    )
    lr: float = Field(1e-3, gt=0.0, description="Peak learning rate of the student and its codec.")
    weight_decay: float = Field(0.01, ge=0.0, description="Weight decay of AdamW.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate of both sides falls after the warm-up."
    )
    warmup_steps: int = Field(20, ge=0, description="Steps over which the learning rate of both sides rises.")
    max_grad_norm: float = Field(
        1.0, ge=0.0, description="Largest gradient norm of the student, and of each codec, on its own; 0 clips nothing."
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Autocast dtype; fp16 needs a GPU.")
    device: Literal["auto", "cpu"] = Field(
        "auto", description="Where the student runs; auto takes a GPU if there is one."
    )
    evaluate_every: int = Field(50, ge=1, description="Steps from one validation to the next.")
    patience: int | None = Field(
        None, ge=1, description="Validations without a new best after which training ends; None never ends early."
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps from one checkpoint to the next.")
    rewind_steps: int = Field(
        50, ge=1, description="Steps from one rewind point in memory to the next: the most a lost teacher costs."
    )
    rewind_bytes: int = Field(
        2**30, ge=0, description="Memory for two rewind points; where they do not fit, checkpoints take their place."
    )
    log_every: int = Field(10, ge=1, description="Steps from one line of metrics.jsonl to the next.")
    metrics_port: int = Field(
        -1, ge=-1, le=65535, description="Prometheus port of this run; 0 takes a free one and says it, -1 opens none."
    )
    metrics_host: str = Field("127.0.0.1", description="Address the metrics port binds; it has no lock.")
    metrics_push: str | None = Field(
        None, min_length=1, description="Pushgateway, `host:port` or URL, that metrics are pushed to every 15 s."
    )
    tracing: str = Field(
        "", description="OTLP endpoint for spans, http://host:4317; empty takes OTEL_EXPORTER_OTLP_ENDPOINT, or none."
    )
    tensorboard: bool = Field(True, description="Whether TensorBoard files are written.")
    seed: int = Field(0, ge=0, description="Seed of the order of the rows and of dropout.")
    threads: int = Field(0, ge=0, le=1024, description="Compute threads; 0 leaves torch's choice.")
    rank_timeout_s: float = Field(
        300.0,
        gt=0.0,
        description="Seconds the ranks of one student wait for each other before the run ends (torchrun).",
    )
    deterministic: bool = Field(False, description="Use deterministic algorithms only; slower on a GPU.")


class RunConfig(BaseModel):
    """One training run, whole: written to config.json of its folder and enough to repeat it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: DataConfig = Field(default_factory=lambda: DataConfig.model_validate({}), description="The data set.")
    student: StudentConfig = Field(default_factory=lambda: StudentConfig.model_validate({}), description="The student.")
    method: MethodConfig = Field(
        default_factory=lambda: MethodConfig.model_validate({}), description="What is learned from the teacher."
    )
    teacher: TeacherConfig | None = Field(None, description="The teacher; None for a method that asks none.")
    complementary: tuple[TeacherConfig, ...] = Field(
        (), description="Further teachers, closer to the student; only a method of several teachers asks them."
    )
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig.model_validate({}), description="The training."
    )
    output: Path = Field(Path("runs/latest"), description="Folder of the run: metrics, checkpoints, the best student.")

    def identity(self) -> dict[str, Any]:
        """The fields that a resumed run must share with the run it goes on with, as JSON values."""
        unbound: dict[str, Any] = {
            "output": True,
            "teacher": _CONNECTION,
            "complementary": {"__all__": _CONNECTION},
            "method": {"committee": {"on_missing", "wait_s", "retry_s"}, "selection": {"learning"}},
            "training": {
                "checkpoint_every",
                "rewind_steps",
                "rewind_bytes",
                "log_every",
                "tensorboard",
                "metrics_port",
                "metrics_host",
                "metrics_push",
                "tracing",
                "threads",
                "rank_timeout_s",
                "pipeline",
                "device",
            },
        }
        return self.model_dump(mode="json", exclude=unbound)


def effective_run_config(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> Effective[RunConfig]:
    """Lays a file, the environment (`STUDENT_CLIENT_SECTION__FIELD`) and flags over the defaults, in this order.

    Args:
        path: a YAML or TOML file, or the config.json of a run; None is none.
        environ: the environment.
        overrides: values by dotted field, such as {"training.lr": 1e-3}.

    Raises:
        ConfigError: a file that cannot be read, an unknown field or variable, or a value out of range; says who gave it.
    """
    layers = Layers().file(path).environment(RunConfig, ENVIRONMENT, environ)
    return layers.dotted(overrides, "flag").validate(RunConfig)


def load_run_config(path: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """A file with dotted overrides over it, whatever the environment says; errors as of `effective_run_config`."""
    return effective_run_config(path, {}, overrides).config


def run_file(folder: Path) -> Path:
    """The configuration in the folder of a run.

    Raises:
        ConfigError: it is the folder of no run.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"no run in {folder}: config.json is missing; give the folder that `train --output` named")
    return path
