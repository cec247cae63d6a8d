"""Asks the standard health service whether a teacher serves, for probes: exit code 0 or 1; imports nothing but gRPC."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

__all__ = ["main", "serves"]

_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"  # HealthCheckResponse with status 1; what is asked, about the server as a whole, is empty


def serves(channel: grpc.Channel, timeout_s: float) -> str:
    """Nothing where the server says SERVING within `timeout_s` seconds; else what it said instead."""
    ask: Any = channel.unary_unary(_CHECK)
    try:
        reply: bytes = ask(b"", timeout=timeout_s)
    except grpc.RpcError as failure:
        error: Any = failure
        return f"{error.code().name}: {error.details()}"
    return "" if reply == _SERVING else "it answers, and does not serve (yet, or any more)"


def main(words: Sequence[str] | None = None) -> int:
    """Health asks nobody for a token; with `--client-ca` TLS itself asks for a certificate, of probes, too."""
    parser = argparse.ArgumentParser(prog="python -m teacher_server.probe", description=__doc__)
    parser.add_argument("address", nargs="?", default="127.0.0.1:50051", help="host:port of the teacher")
    parser.add_argument("--ca", type=Path, help="PEM file of the CA of its certificate; turns TLS on")
    parser.add_argument("--name", help="name in that certificate, if it is not the address's")
    parser.add_argument(
        "--cert", type=Path, help="PEM file of the probe's own certificate, if the teacher asks for one"
    )
    parser.add_argument("--key", type=Path, help="PEM file of its key")
    parser.add_argument("--timeout-s", type=float, default=4.0, help="seconds to wait for the answer")
    given = parser.parse_args(words)
    try:
        with _channel(given) as channel:
            reason = serves(channel, given.timeout_s)
    except OSError as error:
        reason = f"{error.filename} cannot be read: {error.strerror}"
    if reason:
        sys.stderr.write(f"probe: {given.address}: {reason}\n")
    return 1 if reason else 0


def _channel(given: argparse.Namespace) -> grpc.Channel:
    if given.ca is None:
        return grpc.insecure_channel(given.address)
    parts = [None if path is None else path.read_bytes() for path in (given.ca, given.key, given.cert)]
    named = [("grpc.ssl_target_name_override", given.name)] if given.name else []
    return grpc.secure_channel(given.address, grpc.ssl_channel_credentials(*parts), options=named)


if __name__ == "__main__":
    sys.exit(main())
