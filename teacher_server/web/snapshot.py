"""What `/status.json` says, as types; knows nobody who asks and nothing of where the figures come from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Batches",
    "Cache",
    "Fault",
    "Load",
    "Memory",
    "Refusal",
    "SessionStatus",
    "State",
    "Status",
    "TeacherCard",
    "shown",
]

State = Literal["starting", "serving", "draining"]

_TEXT = 128  # characters, as long as a student's name may be


def shown(text: str, limit: int = _TEXT) -> str:
    """A text from outside as it may be shown: what does not print (controls, marks of direction) as U+FFFD, and cut."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in cut)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TeacherCard(_Value):
    """What is served; it does not change while the server runs."""

    model_name: str = Field(description="The model's name.")
    model_hash: str = Field(description="Hash of its weights.")
    family: str = Field(description="Its family.")
    device: str = Field(description="Device it runs on.")
    dtype: str = Field(description="Dtype of its weights.")
    layers: int = Field(description="Its layers.")
    width: int = Field(description="Width of its hidden states at the default entry.")
    entry: int = Field(description="Default layer where a message enters.")
    exit: int = Field(description="Default layer where the answer is read.")
    vocabulary_size: int = Field(description="Its vocabulary; 0 for none.")
    heads: list[str] = Field(description="Its heads.")
    labels: int = Field(description="Labels its head knows.")
    deterministic: bool = Field(description="Whether each student is served alone, to the bit.")
    compressions: list[str] = Field(description="How tensors may be sent.")
    input_ports: list[str] = Field(description="Input ports.")
    output_ports: list[str] = Field(description="Output ports.")
    max_rows: int = Field(description="Rows one call may have.")
    max_tokens: int = Field(description="Tokens one row may have.")
    message_bytes: int = Field(description="Bytes of the largest request or reply.")
    lease_s: float = Field(description="Seconds a session lives without a call.")
    release: str = Field(description="Release of the server.")


class Load(_Value):
    """What the server does, over the last `window_s` seconds."""

    engine_share: float = Field(description="Share of the time in which the engine ran: its utilisation, 0 to 1.")
    steps_per_s: float = Field(description="Codec steps a second, of all students.")
    tokens_per_s: float = Field(description="Tokens charged a second.")
    calls_per_s: float = Field(description="Jobs run a second.")
    queue_s: float | None = Field(description="Mean seconds that a job waited for the engine; null without jobs.")
    received_bytes_per_s: float = Field(description="Bytes of requests a second.")
    sent_bytes_per_s: float = Field(description="Bytes of replies a second.")
    in_flight: int = Field(description="Jobs that wait or run now.")
    permits: int = Field(description="How many of them there may be.")
    sessions: int = Field(description="Sessions alive now.")
    max_sessions: int = Field(description="How many of them there may be.")


class Batches(_Value):
    """The batches that ran the model over the last `window_s` seconds: means, null without one."""

    per_s: float = Field(description="Batches a second.")
    rows: float | None = Field(description="Rows of a batch.")
    tokens: float | None = Field(description="Tokens of a batch.")
    max_tokens: int = Field(description="Padded tokens a batch may have.")
    students: float | None = Field(description="Students merged into a batch.")


class Cache(_Value):
    """One cache: its bytes now, its hits since the server's start and over the kept history."""

    bytes: int = Field(description="Bytes it holds.")
    limit_bytes: int = Field(description="Bytes it may hold.")
    hits: int = Field(description="What it was asked for and had, since the start.")
    misses: int = Field(description="What it was asked for and had not, since the start.")
    hit_share: float | None = Field(description="Hits among all over the kept history; null if nobody asked.")


class Memory(_Value):
    """Memory of the device, or of the process where the model runs on the CPU."""

    kind: Literal["device", "process"] = Field(description="Whose memory it is.")
    bytes: int = Field(description="Bytes held.")
    limit_bytes: int | None = Field(description="Bytes there are; null where that is not known.")
    state_bytes: int = Field(description="Bytes of all sessions' codecs and optimizers.")
    state_limit_bytes: int = Field(description="Bytes they may have.")


class Refusal(_Value):
    """Calls that were refused or failed for one reason."""

    reason: str = Field(description="The error's class, or expired or cancelled for calls nobody waited for.")
    recent: int = Field(description="How many over the kept history.")
    total: int = Field(description="How many since the start.")


class Fault(_Value):
    """How a session's call ended badly."""

    kind: str = Field(description="The error's class.")
    sentence: str = Field(description="What it said, cut.")
    age_s: float = Field(description="Seconds since.")


class SessionStatus(_Value):
    """One student's session. Its id is a secret and stays at the server; `number` tells sessions apart."""

    number: int = Field(description="Counts sessions up as the page came to know them.")
    student: str = Field(description="The student's name, cut, unprintable characters replaced.")
    identity: str = Field(description="Who opened it; empty where nobody is asked.")
    task: str = Field(description="What the student said it trains for.")
    epoch: int = Field(description="How often it was taken over, from 1.")
    step: int = Field(description="Steps applied.")
    steps_per_s: float = Field(description="Steps a second.")
    device_share: float = Field(description="Share of the time in which the engine worked for it, 0 to 1.")
    wait_share: float = Field(description="Seconds its calls stood in the queue, a second; over 1 where several did.")
    tokens_per_s: float = Field(description="Tokens charged a second.")
    bytes_per_s: float = Field(description="Bytes sent and received a second.")
    compute_s: float = Field(description="Seconds of the engine since it was opened.")
    queue_s: float = Field(description="Seconds its calls stood in the queue since it was opened.")
    state_bytes: int = Field(description="Bytes of its codec and optimizer.")
    age_s: float = Field(description="Seconds since it was opened.")
    idle_s: float = Field(description="Seconds since the engine last ran a call of it.")
    under_way: int = Field(description="Its calls that wait or run now.")
    refused: int = Field(description="Its calls that were told to come back later.")
    failed: int = Field(description="Its calls that ended with any other error.")
    last_error: Fault | None = Field(description="Its newest error.")
    history: list[float] = Field(description="`steps_per_s` at the samples after `after`, oldest first.")


class Status(_Value):
    """The whole document. All texts from outside are cut, and hold printable characters only."""

    now: float = Field(description="When the newest sample was taken, in seconds since 1970.")
    started: float = Field(description="When the server started, in seconds since 1970; another one counts anew.")
    state: State = Field(description="Whether new sessions are taken: not while it starts, and not while it drains.")
    sample: int = Field(description="Number of the newest sample.")
    after: int = Field(description="The histories begin after this sample; 0 for all that is kept.")
    interval_s: float = Field(description="Seconds from sample to sample.")
    kept: int = Field(description="Samples that are kept.")
    window_s: float = Field(description="Seconds that rates and shares are taken over.")
    teacher: TeacherCard
    load: Load
    batches: Batches
    graphs: Cache
    knowledge: Cache
    memory: Memory
    refusals: list[Refusal] = Field(description="Most frequent first.")
    sessions: list[SessionStatus]
    history: dict[str, list[float | None]] = Field(description="The server's curves, by name, oldest first.")
