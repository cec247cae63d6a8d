"""Resolve on gRPC: who serves beside this server, for students; keeps no list of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc

from teacher_server.security.authority import Authority
from teaching_protocol.directory import DIRECTORY, RESOLVE, Replica, is_question, write_replicas
from teaching_protocol.errors import InvalidTensor

__all__ = ["Listing", "add_directory", "nobody"]

Listing = Callable[[], Sequence[Replica]]
"""Gives the replicas that are known now; raises an error of the tree where there is a fleet, and none of it serves."""


def nobody() -> Sequence[Replica]:
    """The listing of a teacher that stands alone."""
    return ()


def add_directory(server: grpc.Server, listing: Listing, authority: Authority) -> None:
    """Registers the service Directory on a server; it answers whom the authority knows."""

    def resolve(data: bytes, context: grpc.ServicerContext) -> bytes:
        authority.identify(context.invocation_metadata(), context.auth_context)
        if not is_question(data):
            raise InvalidTensor(f"the {len(data)} bytes received are no ResolveRequest; send an empty one")
        return write_replicas(listing())

    handlers: dict[str, Any] = {RESOLVE.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(resolve)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(DIRECTORY, handlers),))
