"""The HTTP port of one teacher, put together: what reads it, what keeps the figures, who may see them, what serves them."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import metadata

import torch

from teacher_server.actor import TeacherActor
from teacher_server.config import ServerConfig
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.security.authority import Authority
from teacher_server.web.access import Access
from teacher_server.web.gauges import device_memory_limit
from teacher_server.web.history import Facts, History
from teacher_server.web.pages import Pages, build_app
from teacher_server.web.readings import Limits, Reader
from teacher_server.web.server import WebServer
from teacher_server.web.snapshot import State, TeacherCard
from teaching_protocol.verbs import DescribeReply

__all__ = ["limits_of", "status_server"]


def status_server(
    live: LiveSettings,
    actor: TeacherActor,
    device: torch.device,
    metrics: Metrics,
    authority: Authority,
    state: Callable[[], State],
) -> WebServer:
    """The server of a teacher's metrics, status page and probes, not started yet."""
    config = live.now
    history = History(Facts(time.time(), _card(actor.card, device)), config.status_interval_s)
    reader = Reader(actor, metrics, state, lambda: limits_of(live.now, device))
    app = build_app(Pages(history, metrics.registry, state), Access(config, authority))
    return WebServer(config, app, lambda: history.add(reader.read()))


def limits_of(config: ServerConfig, device: torch.device) -> Limits:
    """What a server of this configuration may hold on this device."""
    return Limits(
        permits=config.permits,
        sessions=config.max_sessions,
        batch_tokens=config.batch_tokens,
        graph_bytes=config.graph_cache_bytes,
        knowledge_bytes=config.knowledge_cache_bytes,
        state_bytes=config.state_bytes,
        memory_bytes=int(device_memory_limit(device)) or None,
        memory_kind="device" if device.type == "cuda" else "process",
    )


def _card(card: DescribeReply, device: torch.device) -> TeacherCard:
    return TeacherCard(
        model_name=card.model_name,
        model_hash=card.model_hash,
        family=card.family,
        device=str(device),
        dtype=card.dtype,
        layers=card.layers,
        width=card.widths[card.entry],
        entry=card.entry,
        exit=card.exit,
        vocabulary_size=card.vocabulary_size,
        heads=list(card.heads),
        labels=len(card.labels),
        deterministic=card.deterministic,
        compressions=list(card.compressions),
        input_ports=list(card.input_ports),
        output_ports=list(card.output_ports),
        max_rows=card.limits.rows,
        max_tokens=card.limits.tokens,
        message_bytes=card.limits.message_bytes,
        lease_s=card.limits.lease_s,
        release=metadata.version("talking-models"),
    )
