"""The server's configuration, read once at the edge; knows no model and no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from command_config import Effective, Layers
from teaching_protocol.errors import ConfigError

__all__ = [
    "DTYPES",
    "ENVIRONMENT",
    "PACKAGED",
    "IdentityQuota",
    "Quota",
    "ServerConfig",
    "effective_config",
    "load_config",
]

ENVIRONMENT = "TEACHER_SERVER_"
"""What the names of variables that set fields begin with."""

PACKAGED = ("minilm", "mpnet", "smollm2", "efficientnet_lite0")
"""Names of the teachers that ship in packages; `packaged.TEACHERS` makes their folders."""

DTYPES = ("float32", "bfloat16", "float16")
"""Dtypes that weights may have."""

_MIB = 2**20
_INT32 = 2**31 - 1  # what the card and gRPC's options can say


class Quota(BaseModel):
    """What students whose name fits a pattern may take; the first quota that fits a name holds for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    students: str = Field(min_length=1, description="Pattern of student names, as in a shell: `team-a-*`.")
    weight: float = Field(1.0, gt=0, le=1000, description="Share of the teacher next to others' weights, a session.")
    tokens_per_s: float = Field(0.0, ge=0, description="Forward and backward tokens a second of a session; 0: any.")
    sessions: int = Field(0, ge=0, description="Sessions that all these students may have at once; 0: any.")
    state_bytes: int = Field(0, ge=0, description="Bytes of codecs and optimizers of all these students; 0: any.")


class IdentityQuota(BaseModel):
    """What each identity (of a token or a certificate) whose name fits may take; the first quota that fits holds for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    identities: str = Field(min_length=1, description="Pattern of identities, as in a shell: `team-a-*`.")
    sessions: int = Field(0, ge=0, description="Sessions an identity may have at once; 0: any.")
    state_bytes: int = Field(0, ge=0, description="Bytes of codecs and optimizers of its sessions; 0: any.")
    in_flight: int = Field(0, ge=0, description="Calls it may have open at once; 0: any.")
    tokens_per_s: float = Field(
        0.0, ge=0, description="Forward and backward tokens a second of all its sessions; 0: any."
    )
    enrolls_per_minute: float = Field(0.0, ge=0, description="Sessions it may open or resume a minute; 0: any.")


class ServerConfig(BaseModel):
    """Everything a teacher server can be told; the defaults serve a laptop."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: str = Field(
        description="Hugging Face model name, a folder with config.json and safetensors, or the folder of a student's run."
    )
    entry: int | None = Field(None, ge=0, description="Default layer at which a message enters; a third of the way in.")
    exit: int | None = Field(None, ge=1, description="Default layer at which the answer is read; the last one.")
    image_size: int | None = Field(
        None,
        ge=32,
        description="Side in pixels of a convolutional teacher's images; the model's own, smaller is faster.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Dtype of the teacher's weights.")
    device: str = Field("auto", description="Device of the teacher: auto, cpu, cuda, cuda:1, mps.")
    device_map: str | None = Field(
        None, description="Spread the weights: auto, balanced, sequential, or a JSON file of modules and devices."
    )
    device_memory: tuple[str, ...] = Field(
        (), description="What each device may hold of the weights, DEVICE=SIZE: 0=20GiB, cpu=60GiB."
    )
    offload_folder: Path | None = Field(
        None, description="Folder for weights that lie on the disk until they are used."
    )
    tensor_parallel: int = Field(
        1, ge=1, description="Processes on this machine, a GPU each if there are any, that split every layer's weights."
    )
    tensor_parallel_limit_s: float = Field(
        300.0,
        gt=0,
        description="Seconds one pass over a split model may take; then a process stands still, and all end.",
    )
    trust_remote_code: bool = Field(False, description="Whether a model folder may bring Python code of its own.")
    deterministic: bool = Field(
        False, description="One student per batch and fixed shapes: the same bits alone or among many."
    )
    compile: bool = Field(False, description="Make kernels of the teacher's layers with torch.compile, before serving.")
    compile_backend: str = Field("inductor", description="What torch.compile makes them with.")
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Compute threads of the engine, shared by calls that run at the same time; 0 leaves torch's choice.",
    )

    host: str = Field("127.0.0.1", description="Address the gRPC port binds.")
    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 takes a free one and prints it.")
    insecure: bool = Field(
        False, description="Allow binding other than loopback without TLS, or without asking who calls."
    )
    tls_cert: Path | None = Field(None, description="PEM file of the server's certificate and its chain; turns TLS on.")
    tls_key: Path | None = Field(None, description="PEM file of that certificate's key.")
    client_ca: Path | None = Field(None, description="PEM file of the CA that clients' certificates must come from.")
    revoked_certs: Path | None = Field(
        None, description="File of clients' certificates that are let in no more: a SHA-256 fingerprint a line."
    )
    tokens: Path | None = Field(
        None, description="File of tokens, see `teacher-server token`; every call needs one then."
    )
    reflection: bool = Field(False, description="Serve gRPC reflection, which lists the RPCs.")
    channelz: bool = Field(False, description="Serve channelz, which lists connections; needs grpcio-channelz.")
    log_json: bool = Field(False, description="Write the log as one JSON object a line.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that the server's log says; debug has a line for every call."
    )
    metrics_host: str = Field("127.0.0.1", description="Address the port of metrics and status page binds.")
    metrics_port: int = Field(
        9464, ge=-1, le=65535, description="Port of metrics and status page; 0 takes a free one, -1 opens none."
    )
    status_interval_s: float = Field(
        2.0, ge=0.1, description="Seconds from sample to sample of the status page, whose curves are 150 samples long."
    )
    status_identities: tuple[str, ...] = Field(
        ("*",), description="Identities, by pattern, whose tokens open metrics and status page on a public address."
    )
    metrics_students: int = Field(
        100, ge=0, description="Students with metrics of their own; the others count together as `other`. 0: all do."
    )
    tracing: str = Field(
        "", description="OTLP endpoint for spans, http://host:4317; empty takes OTEL_EXPORTER_OTLP_ENDPOINT, or none."
    )

    permits: int = Field(256, ge=1, le=_INT32, description="Calls that may wait or run at once; one more is refused.")
    max_sessions: int = Field(512, ge=1, le=_INT32, description="Sessions that may live at once.")
    lease_s: float = Field(60.0, gt=0, description="Seconds a session lives without a call.")
    rank_wait_s: float = Field(
        60.0,
        gt=0,
        description="Seconds in which all ranks of one student must have sent a Step, from the first that did.",
    )
    call_limit_s: float = Field(600.0, gt=0, description="Deadline of a call that brings none.")
    drain_s: float = Field(30.0, ge=0, description="Seconds a drain waits for what was admitted.")
    handoff_s: float = Field(2.0, ge=0, description="Seconds a drain then leaves for students to export and leave.")
    ends_with_input: bool = Field(
        False, description="Drain when standard input is closed too: a server that does not outlive who started it."
    )
    batch_tokens: int = Field(16384, ge=1, description="Padded tokens one batch may have; a larger call runs alone.")

    session_permits: int = Field(16, ge=1, le=_INT32, description="Calls one session may have open at once.")
    linger: bool = Field(True, description="Wait briefly for students that are known to be about to call.")
    linger_s: float = Field(0.05, ge=0, description="Longest such wait in seconds.")
    linger_share: float = Field(
        0.25, ge=0, le=1, description="Longest such wait as a share of the batch's expected seconds, a student."
    )
    turn_share: float = Field(
        0.5, ge=0, le=1, description="The same where the student has been served less than those in the batch."
    )
    step_aside: bool = Field(
        True, description="Let a short batch go first between two layers of a long one; on a processor."
    )
    quotas: tuple[Quota, ...] = Field((), description="What students may take, by name pattern.")
    identity_quotas: tuple[IdentityQuota, ...] = Field((), description="What each identity may take, by its name.")
    alone_strikes: int = Field(3, ge=1, description="Failed jobs after which a student's jobs run alone.")
    refused_strikes: int = Field(12, ge=1, description="Failed jobs after which a student is refused for a time.")
    refused_s: float = Field(10.0, gt=0, description="Seconds it is refused the first time; doubles each time.")

    int8_error: float = Field(
        0.02,
        ge=0,
        description="Largest relative error of a tensor sent as int8, where a student asked for int8; else bf16.",
    )
    shared_memory: bool = Field(
        True, description="Whether students on the same host may send large messages through shared memory."
    )
    shared_memory_bytes: int = Field(1024 * _MIB, ge=0, description="Shared bytes one student's connection may have.")

    message_bytes: int = Field(256 * _MIB, ge=1024, le=_INT32, description="Largest request or reply in bytes.")
    max_rows: int = Field(1024, ge=1, le=_INT32, description="Rows one call may have.")
    max_tokens: int = Field(512, ge=1, le=_INT32, description="Tokens one row may have; longer text is cut.")
    max_message_width: int = Field(4096, ge=1, le=_INT32, description="Widest message a session may ask for.")
    max_codec_depth: int = Field(8, ge=1, le=_INT32, description="Deepest codec a session may ask for.")
    max_codec_parameters: int = Field(50_000_000, ge=1, description="Parameters of the largest codec of a session.")

    graph_cache_bytes: int = Field(2048 * _MIB, ge=0, description="Bytes of graphs kept from Forward to Backward.")
    session_graph_bytes: int = Field(1024 * _MIB, ge=0, description="The same, of one session.")
    session_input_bytes: int = Field(128 * _MIB, ge=0, description="Bytes of inputs a session keeps for a recompute.")
    session_replay_bytes: int = Field(64 * _MIB, ge=0, description="Bytes of replies a session keeps for a repeat.")
    state_bytes: int = Field(8192 * _MIB, ge=0, description="Bytes of all sessions' codecs and optimizers.")
    knowledge_cache_bytes: int = Field(1024 * _MIB, ge=0, description="Bytes of student-independent outputs kept.")

    @model_validator(mode="after")
    def _bits_or_kernels(self) -> Self:
        if self.compile and self.deterministic:
            raise ValueError(
                "compile with deterministic: which kernels run depends on the sizes seen before; leave one of them away"
            )
        return self

    @model_validator(mode="after")
    def _one_place_or_several(self) -> Self:
        if self.device_map is None and (self.device_memory or self.offload_folder):
            raise ValueError(
                "device_memory or offload_folder without device_map: give it, auto or another, or leave them away"
            )
        if self.device_map is not None and self.device != "auto":
            raise ValueError("device with device_map: the map says which devices; leave one of them away")
        if self.device_map is not None and self.compile:
            raise ValueError("compile with device_map: weights that move are not compiled; leave one of them away")
        return self

    @model_validator(mode="after")
    def _layers_or_shares(self) -> Self:
        if self.tensor_parallel > 1 and self.device_map is not None:
            raise ValueError(
                "tensor_parallel with device_map: one splits every layer, the other lays whole layers out; leave one of them away"
            )
        if self.tensor_parallel > 1 and self.compile:
            raise ValueError(
                "compile with tensor_parallel: layers whose parts talk to each other are not compiled; leave one of them away"
            )
        return self


def effective_config(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> Effective[ServerConfig]:
    """Lays a YAML or TOML file, the environment (`TEACHER_SERVER_FIELD`) and flags over the defaults, in this order.

    Args:
        path: the file; None is none.
        environ: the environment.
        overrides: values by field; None where a flag was not given.

    Raises:
        ConfigError: a file that cannot be read, an unknown field or variable, or a value out of range; says who gave it.
    """
    layers = Layers().file(path).environment(ServerConfig, ENVIRONMENT, environ)
    layers.dotted({name: value for name, value in overrides.items() if value is not None}, "flag")
    if not layers.has("model"):
        raise ConfigError(
            f"no model was given; say --model NAME_OR_FOLDER, put 'model:' into the config file, or set {ENVIRONMENT}MODEL"
        )
    return layers.validate(ServerConfig)


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> ServerConfig:
    """A file with overrides over it, whatever the environment says; errors as of `effective_config`."""
    return effective_config(path, {}, overrides).config
