"""Whether what the server was told can be: configuration, ports, token file, certificate, memory; loads no model."""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from teacher_server.config import ServerConfig, load_config
from teacher_server.security.tls import check_bind, server_credentials
from teacher_server.security.tokens import read_tokens
from teaching_protocol.diagnosis import machine
from teaching_protocol.diagnosis.certificates import first_certificate
from teaching_protocol.diagnosis.connection import Door, knock
from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.diagnosis.trust import DAYS_LEFT

__all__ = [
    "check_certificate",
    "check_config",
    "check_ports",
    "check_room",
    "check_tokens",
    "configured",
    "descriptors",
]

_OWN_DESCRIPTORS, _SESSION_DESCRIPTORS = 256, 4
_KNOCK_S = 1.0


def configured(path: Path | None, flags: Mapping[str, Any]) -> ServerConfig:
    """The configuration as `serve` would take it; without a file no model need be named.

    Raises:
        ConfigError: it cannot be used.
    """
    named = dict(flags)
    if path is None and named.get("model") is None:
        named["model"] = "none"
    return load_config(path, named)


def check_config(path: Path | None, config: ServerConfig) -> Finding:
    """Whether `serve` would take it: addresses, TLS and who may call."""
    check_bind(config)
    source = str(path) if path is not None else "defaults and flags"
    way = "TLS" if config.tls_cert else "no TLS"
    who = "tokens" if config.tokens else "client certificates" if config.client_ca else "nobody is asked who they are"
    values: dict[str, Value] = {"host": config.host, "port": config.port, "tls": config.tls_cert is not None}
    measured = f"{source}: binds {config.host}:{config.port}, {way}, {who}"
    if config.insecure:
        advice = "leave insecure away and give tls_cert, tls_key and tokens (docs/security.md)"
        return Finding("config", "warn", f"{measured}; insecure is set", advice, values)
    return Finding("config", "ok", measured, "", values)


def check_ports(config: ServerConfig) -> Finding:
    """Whether the gRPC port and the metrics port are free, or who has them."""
    wanted = {"port": (config.host, config.port), "metrics_port": (config.metrics_host, config.metrics_port)}
    values: dict[str, Value] = {}
    taken = []
    for name, (host, port) in wanted.items():
        if port <= 0:  # a free one is taken, or none
            values[name] = "any" if port == 0 else "none"
            continue
        reason = _why_taken(host, port)
        values[name] = reason or "free"
        taken += [f"{host}:{port} ({reason})"] if reason else []
    if taken:
        advice = "end what has the port, or choose another with --port and --metrics-port (0 takes a free one)"
        return Finding("ports", "fail", f"cannot be bound: {', '.join(taken)}", advice, values)
    return Finding("ports", "ok", ", ".join(f"{name} {value}" for name, value in values.items()), "", values)


def check_tokens(config: ServerConfig) -> Finding:
    """The token file: its form, how many tokens of how many names, who may read it. No secret is in it or shown."""
    if config.tokens is None:
        return Finding("tokens", "ok", "none are used", "", {"tokens": 0})
    known = read_tokens(config.tokens)
    mode = stat.S_IMODE(config.tokens.stat().st_mode)
    names = {each.name for each in known.tokens}
    values: dict[str, Value] = {"tokens": len(known.tokens), "names": len(names), "mode": f"{mode:o}"}
    measured = f"{config.tokens}: {len(known.tokens)} tokens of {len(names)} names, mode {mode:o}"
    if mode & 0o077:
        advice = f"chmod 600 {config.tokens}: others may read names and hashes"
        return Finding("tokens", "fail" if mode & 0o022 else "warn", measured, advice, values)
    if not known.tokens:
        return Finding("tokens", "warn", measured, f"teacher-server token add NAME --tokens {config.tokens}", values)
    return Finding("tokens", "ok", measured, "", values)


def check_certificate(config: ServerConfig) -> Finding:
    """The server's certificate: it and its key belong together, its names, how many days are left."""
    if config.tls_cert is None:
        return Finding("certificate", "ok", "none is used", "", {"used": False})
    server_credentials(config)
    shown = first_certificate(config.tls_cert.read_text())
    days = shown.days_left()
    values: dict[str, Value] = {
        "used": True,
        "common_name": shown.common_name,
        "names": ", ".join(shown.names),
        "ends": shown.ends.isoformat(),
        "days_left": round(days, 2),
    }
    if days < 0:
        return Finding("certificate", "fail", f"{shown} has ended", "make a new one, and restart the teacher", values)
    if not shown.names:
        advice = "sign one with subjectAltName: clients look at no other name (docs/security.md)"
        return Finding("certificate", "fail", f"{shown} names no host", advice, values)
    measured = f"{shown}, {days:.0f} days are left"
    if days < DAYS_LEFT:
        return Finding(
            "certificate", "warn", measured, "make a new one before it ends, and restart the teacher", values
        )
    key_mode = 0 if config.tls_key is None else stat.S_IMODE(config.tls_key.stat().st_mode)
    if key_mode & 0o077:
        return Finding(
            "certificate", "warn", f"{measured}; others may read its key", f"chmod 600 {config.tls_key}", values
        )
    return Finding("certificate", "ok", measured, "", values)


def check_room(config: ServerConfig) -> Finding:
    """The device's memory against the byte budgets of the configuration, all of which are of tensors on it."""
    budgets = config.graph_cache_bytes + config.knowledge_cache_bytes + config.state_bytes
    what = "graphs, knowledge and sessions at their budgets, weights not counted"
    found = "cuda" if torch.cuda.is_available() else "cpu"
    return machine.check_memory(budgets, what, found if config.device == "auto" else config.device)


def descriptors(config: ServerConfig) -> int:
    """Descriptors a full server may have open."""
    return _OWN_DESCRIPTORS + _SESSION_DESCRIPTORS * config.max_sessions


def _why_taken(host: str, port: int) -> str:
    """Empty for an address that can be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
            return ""
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return (error.strerror or type(error).__name__).lower()
    found = knock(Door(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), _KNOCK_S).kind
    named = {"grpc": "a gRPC server has it", "tls": "a TLS server has it", "http1": "an HTTP server has it"}
    return named.get(found, "another program has it")
