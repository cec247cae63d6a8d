"""Services that show a server's inside to whoever debugs it: reflection and channelz, each only where it was asked for."""

from __future__ import annotations

import grpc

from teaching_protocol.directory import DIRECTORY
from teaching_protocol.errors import ConfigError
from teaching_protocol.wire import SERVICE

__all__ = ["add_debugging"]


def add_debugging(server: grpc.Server, *, reflection: bool, channelz: bool) -> None:
    """Registers what was asked for.

    Raises:
        ConfigError: channelz without its package.
    """
    if reflection:
        from grpc_reflection.v1alpha import reflection as service

        service.enable_server_reflection((SERVICE, DIRECTORY, "grpc.health.v1.Health", service.SERVICE_NAME), server)
    if channelz:
        try:
            from grpc_channelz.v1 import channelz as channels
        except ModuleNotFoundError as error:
            raise ConfigError("channelz needs a package of its own: pip install grpcio-channelz") from error
        channels.add_channelz_servicer(server)
