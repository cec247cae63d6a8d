"""gRPC relays: one repeats calls at random, at once and late; one keeps every call, so that a test delivers it when it likes."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import grpc

from teaching_protocol.wire import METHODS, SERVICE, Method

__all__ = ["Post", "keeping", "repeating"]


@contextmanager
def repeating(target: str, seed: int) -> Iterator[tuple[str, dict[str, int]]]:
    """Passes calls on. A third is sent twice, the first reply thrown away; after another third an old call is sent again.

    Gives the relay's address, and how many repeats of each method there were.
    """
    rng, old, repeats = random.Random(seed), deque[tuple[Any, bytes]](maxlen=30), dict[str, int]()
    with grpc.insecure_channel(target) as channel, ThreadPoolExecutor(4) as pool:

        def passing(method: Method) -> Any:
            ask: Any = channel.unary_unary(method.path)

            def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
                chance = rng.random()
                try:
                    reply: bytes = ask(data, timeout=20)
                    if chance < 0.33:
                        reply = ask(data, timeout=20)
                        repeats[method.name] = repeats.get(method.name, 0) + 1
                except grpc.RpcError as error:
                    _pass_on(error, context)
                if chance > 0.66 and old:
                    late, body = rng.choice(old)
                    with suppress(grpc.RpcError):  # refused, or answered as before
                        late(body, timeout=20)
                if method.name != "Leave":
                    old.append((ask, data))
                return reply

            return grpc.unary_unary_rpc_method_handler(answer)

        with _served({method.name: passing(method) for method in METHODS}, pool) as address:
            yield address, repeats


@dataclass
class Post:
    """The calls that passed a relay. One whose method is in `held` stays on its way: its caller hears nothing.

    Attributes:
        kept: by method, how to deliver each call (again); gives its reply's bytes, or the error as gRPC tells it.
    """

    address: str = ""
    held: set[str] = field(default_factory=set)
    kept: dict[str, list[Callable[[], Any]]] = field(default_factory=dict)

    def deliver(self, method: str, place: int = -1) -> bytes | grpc.RpcError:
        """Delivers a call of this method to the teacher, late or once more."""
        try:
            reply: bytes = self.kept[method][place]()
        except grpc.RpcError as error:
            return error
        return reply


@contextmanager
def keeping(target: str) -> Iterator[Post]:
    """Passes calls on, and keeps each."""
    post = Post()
    with grpc.insecure_channel(target) as channel, ThreadPoolExecutor(4) as pool:

        def passing(method: Method) -> Any:
            ask: Any = channel.unary_unary(method.path)

            def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
                post.kept.setdefault(method.name, []).append(partial(ask, data, timeout=20))
                if method.name in post.held:
                    context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "it is still on its way")
                try:
                    reply: bytes = ask(data, timeout=20)
                except grpc.RpcError as error:
                    _pass_on(error, context)
                return reply

            return grpc.unary_unary_rpc_method_handler(answer)

        with _served({method.name: passing(method) for method in METHODS}, pool) as address:
            post.address = address
            yield post


def _pass_on(error: Any, context: grpc.ServicerContext) -> NoReturn:
    context.set_trailing_metadata(error.trailing_metadata())
    context.abort(error.code(), error.details())
    raise AssertionError("abort raises")


@contextmanager
def _served(handlers: dict[str, Any], pool: ThreadPoolExecutor) -> Iterator[str]:
    server = grpc.server(pool)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
