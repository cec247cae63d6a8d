"""The card of a served teacher, asked from outside as any client would; knows no server of this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc

from teaching_protocol import verbs
from teaching_protocol.channel import TOKEN_KEY, TOKEN_SCHEME, channel_options, error_from
from teaching_protocol.errors import ConfigError, TeacherUnavailable
from teaching_protocol.wire import LARGEST, METHODS, read, write

__all__ = ["ask_for_card"]


def ask_for_card(
    address: str, timeout_s: float, ca: Path | None, cert: Path | None, key: Path | None
) -> verbs.DescribeReply:
    """Asks the teacher at `address`, with the token in TEACHER_TOKEN if there is one.

    Raises:
        TeachingError: nobody answers, or the server refuses.
        ConfigError: files that cannot be read.
    """
    method = METHODS[0]
    token = os.environ.get("TEACHER_TOKEN", "").strip()
    metadata = ((TOKEN_KEY, f"{TOKEN_SCHEME} {token}"),) if token and (ca or address.startswith("127.")) else ()
    with _channel(address, ca, cert, key) as channel:
        try:
            ask: Any = channel.unary_unary(method.path)
            reply: bytes = ask(write(method.request()), timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as failure:
            error: Any = failure
            known = error_from(tuple(error.trailing_metadata() or ()), error.details() or "")
            raise known or TeacherUnavailable(
                f"no teacher answers at {address} ({error.code().name}); start one there, or check the address, --ca and --cert"
            ) from error
    return read(verbs.DescribeReply, reply)


def _channel(address: str, ca: Path | None, cert: Path | None, key: Path | None) -> grpc.Channel:
    options = channel_options(LARGEST)
    if ca is None:
        return grpc.insecure_channel(address, options=options)
    try:
        parts = [None if path is None else path.read_bytes() for path in (ca, key, cert)]
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*parts), options=options)
