"""A gRPC relay that repeats: some calls at once, as a client does whose reply was lost, and old ones late, as a network may."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc

from teaching_protocol.wire import METHODS, SERVICE, Method

__all__ = ["repeating"]


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
                    refused: Any = error
                    context.set_trailing_metadata(refused.trailing_metadata())
                    context.abort(refused.code(), refused.details())
                if chance > 0.66 and old:
                    late, body = rng.choice(old)
                    with suppress(grpc.RpcError):  # refused, or answered as before
                        late(body, timeout=20)
                if method.name != "Leave":
                    old.append((ask, data))
                return reply

            return grpc.unary_unary_rpc_method_handler(answer)

        server = grpc.server(pool)
        handlers = {method.name: passing(method) for method in METHODS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", repeats
        finally:
            server.stop(0).wait()
