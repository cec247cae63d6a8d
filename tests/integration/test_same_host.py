"""Shared memory between a real server and real students: same bits, chosen by itself, nothing left by kill -9."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from student_client import RemoteTeacher
from student_client.connection.transport import GrpcTransport
from teaching_protocol import verbs
from teaching_protocol.channel import error_from
from teaching_protocol.errors import CallerError, InvalidTensor, MessageTooLarge, SharedMemoryLost, TeacherUnavailable
from teaching_protocol.shared_memory import SHARED_KEY, Block, can_share
from teaching_protocol.wire import read, write
from tests.calls import Caller, in_s
from tests.integration.gate import Gate, poll
from tests.integration.processes import ROOT, Address, ServerProcess

pytestmark = pytest.mark.skipif(not can_share(), reason="there is no memfd here")

WIDTH, ROWS, TOKENS = 1024, 256, 4
MIB = 2**20
SIZE = 4 * MIB  # of a message in float32


def mapped_bytes(pid: int | str) -> int:
    """How much shared memory of ours a process has mapped."""
    found = 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "memfd:teaching" in line:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            found += end - start
    return found


def descriptors(pid: int | str) -> list[str]:
    """The open memfds of a process, of ours."""
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(path.readlink()))
        except FileNotFoundError:
            continue
    return [link for link in links if "memfd:teaching" in link]


def system_shared_bytes() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:"))
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def process(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    common = {"model": str(model_folder("bert")), "deterministic": True}
    configs: dict[str, dict[str, Any]] = {
        "shared": {"gate": str(tmp_path_factory.mktemp("gate"))},
        "off": {"shared_memory": False},
        "narrow": {"shared_memory_bytes": MIB // 2},
        "strict": {"message_bytes": 100_000},
    }
    found = ServerProcess({name: config | common for name, config in configs.items()})
    yield found
    assert found.close() == 0


def message(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def train(address: Address, student: str, **options: Any) -> tuple[list[torch.Tensor], int]:
    """Two steps and an observation with everything that came back, and the bytes that were shared."""
    found = []
    with RemoteTeacher(address.name, student=student, message_width=WIDTH, compression="none", **options) as teacher:
        for step in range(2):
            sent = message(step)
            answer = teacher(sent)
            answer.square().sum().backward()
            assert sent.grad is not None
            found += [answer.detach(), sent.grad, torch.tensor(teacher.step(lr=0.01))]
        ids = torch.arange(5, 37).repeat(ROWS, 1)
        for _ in range(2):  # the second goes by what is known of the first's size
            found += teacher.observe({"input_ids": ids}, outputs=["hidden.2", "hidden.4"]).values()
        state = teacher.export_state()
        transport: Any = teacher._session.transport
    found.append(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return found, transport.bytes_shared


def test_the_same_bits_as_through_the_connection(process: ServerProcess) -> None:
    server, others = process.addresses["shared"], [process.addresses[name] for name in ("off", "narrow")]
    fast, shared = train(server, "fast")
    slow, nothing = train(server, "slow", shared_memory=False)
    assert shared > 2 * 4 * SIZE  # both steps, forward and backward, there and back
    assert nothing == 0
    assert server.metric("teacher_shared_bytes_total", direction="received") > 2 * 2 * SIZE
    sent = server.metric("teacher_transfer_bytes_total")
    assert sent > 2 * shared  # both students' bytes count, whichever way they took
    for other in others:
        found, none = train(other, "same")
        assert none == 0
        assert other.metric("teacher_shared_bytes_total") == 0
        assert all(torch.equal(one, each) for one, each in zip(found, slow, strict=True))
    assert all(torch.equal(one, each) for one, each in zip(fast, slow, strict=True))


def test_after_leave_nothing_is_shared(process: ServerProcess) -> None:
    server = process.addresses["shared"]
    _, shared = train(server, "gone")
    assert shared
    poll(lambda: mapped_bytes(process.process.pid) == 0, "the server lets go")
    poll(lambda: server.metric("teacher_shared_connections") == 0, "nobody is connected")
    assert mapped_bytes("self") == 0
    assert descriptors("self") == descriptors(process.process.pid) == []


def shared_files() -> list[Path]:
    """What lies in /dev/shm, but for the semaphores of multiprocessing, which other tests make meanwhile."""
    return sorted(path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.mp-"))


STUDENT = """
import sys, torch
from student_client import RemoteTeacher
torch.set_num_threads(1)
with RemoteTeacher(sys.argv[1], student="killed", message_width=1024, compression="none") as teacher:
    print("calling", flush=True)
    teacher(torch.randn(256, 4, 1024, requires_grad=True))
"""


def test_a_student_killed_in_mid_call_leaves_nothing(process: ServerProcess) -> None:
    server = process.addresses["shared"]
    gate, pid, before = open_gate(server), process.process.pid, system_shared_bytes()
    segments = shared_files()
    with gate.closed():
        student = subprocess.Popen([sys.executable, "-c", STUDENT, server.name], cwd=ROOT, stdout=subprocess.PIPE)
        gate.wait_until_entered()
        assert mapped_bytes(pid) >= SIZE
        assert system_shared_bytes() >= before + SIZE - MIB
        student.kill()
        student.communicate()
        poll(lambda: server.metric("teacher_shared_connections") == 0, "the server hears of it")
    poll(lambda: server.metric("teacher_in_flight") == 0, "the call ends")
    poll(lambda: mapped_bytes(pid) == 0, "the server lets go")
    poll(lambda: system_shared_bytes() < before + SIZE - MIB, "the memory is free")
    assert descriptors(pid) == []
    assert shared_files() == segments
    assert train(server, "next")[1] > 0


def test_a_server_killed_in_mid_call_leaves_nothing(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    process = ServerProcess({"a": {"model": str(model_folder("bert")), "gate": str(tmp_path)}})
    server, before = process.addresses["a"], system_shared_bytes()
    gate, segments = open_gate(server), shared_files()
    transport = GrpcTransport(server.name, "none", patience_s=0.2)
    transport.describe(verbs.DescribeRequest(), in_s(5))
    with Caller(transport, "survivor", message_width=WIDTH) as caller, gate.closed():
        request = verbs.ForwardRequest(caller.session, "call", ("answer",), True, inputs={"message": message()})
        call = transport._stubs["forward"][1].future  # the call itself, to be begun here and lost later
        with transport._blocks.leased(len(write(request))) as lease:
            assert lease is not None
            running = call(b"", timeout=20, metadata=((SHARED_KEY, str(lease.put([write(request)]))),))
            gate.wait_until_entered()
            assert mapped_bytes("self") >= SIZE
            process.kill()
            process.close()
            with pytest.raises(grpc.RpcError):
                running.result()
        del lease
        with pytest.raises(TeacherUnavailable):
            transport.forward(request, in_s(5))
        assert mapped_bytes("self") == 0
        assert descriptors("self") == []
        caller.session = verbs.SessionRef()  # nothing to leave
        caller.teacher = Absent()
    transport.close()
    poll(lambda: system_shared_bytes() < before + SIZE - MIB, "the memory is free")
    assert shared_files() == segments


def test_a_student_goes_on_with_the_next_server(model_folder: Callable[[str], Path]) -> None:
    config = {"model": str(model_folder("bert")), "deterministic": True}
    first = ServerProcess({"a": config})
    address = first.addresses["a"]
    teacher = RemoteTeacher(address.name, student="loyal", message_width=WIDTH, compression="none", patience_s=0.1)
    transport: Any = teacher.enroll()._session.transport
    before = teacher(message())
    shared = transport.bytes_shared
    first.kill()
    first.close()
    with pytest.raises(TeacherUnavailable):
        teacher(message())
    assert mapped_bytes("self") == 0
    second = ServerProcess({"a": config | {"port": address.port}})
    assert second.addresses["a"].port == address.port
    teacher.patience_s = 10.0
    transport.patience_s = 10.0
    teacher.describe()
    teacher.enroll()
    assert torch.equal(teacher(message()), before)
    assert transport.bytes_shared >= 2 * shared
    teacher.leave()
    assert second.close() == 0


@pytest.fixture
def raw(process: ServerProcess) -> Iterator[Callable[[str, str], Any]]:
    """Sends a Describe with a place by hand; gives its reply or its typed error."""
    channels = []

    def send(name: str, place: str) -> Any:
        channel = grpc.insecure_channel(process.addresses[name].name)
        channels.append(channel)
        try:
            ask: Any = channel.unary_unary("/teaching_protocol.v1.Teacher/Describe")
            return read(verbs.DescribeReply, ask(b"", timeout=20, metadata=((SHARED_KEY, place),)))
        except grpc.RpcError as failure:
            error: Any = failure
            return error_from(error.trailing_metadata() or (), error.details())

    yield send
    for channel in channels:
        channel.close()


def test_memory_the_server_does_not_share(raw: Callable[[str, str], Any], process: ServerProcess) -> None:
    for place in ("", "a:b:c", "1:2", f"{'0' * 32}:0:5", "x" * 5000, f"{'0' * 32}:0:{10**30}", ":::"):
        assert type(raw("shared", place)) is SharedMemoryLost
    transport = GrpcTransport(process.addresses["shared"].name, "none")
    transport.describe(verbs.DescribeRequest(), in_s(5))
    with Caller(transport, "lost", message_width=WIDTH) as caller:
        transport._blocks._secret = "0" * 32  # as of a server that is gone
        request = verbs.ForwardRequest(caller.session, "call", ("answer",), False, inputs={"message": message()})
        assert transport.forward(request, in_s(20)).outputs["answer"].shape == message().shape
        assert transport.bytes_shared == 0


def test_hostile_places_and_bytes_in_a_block(raw: Callable[[str, str], Any], process: ServerProcess) -> None:
    for name in ("shared", "strict"):
        transport = GrpcTransport(process.addresses[name].name, "none")
        transport.describe(verbs.DescribeRequest(), in_s(5))
        with transport._blocks.leased(MIB) as lease:
            assert lease is not None
            head = f"{lease.secret}:{lease.number}:"
            for size in (lease.block.size_bytes + 1, -1, 2**62):
                assert isinstance(raw(name, f"{head}{size}"), CallerError)
            lease.block.put([b"\xff" * 1000])
            assert isinstance(raw(name, f"{head}1000"), InvalidTensor)
            assert isinstance(raw("off", f"{head}0"), SharedMemoryLost)
            assert isinstance(raw(name, f"{head}0"), verbs.DescribeReply)
        if name == "strict":
            assert isinstance(raw(name, f"{head}100001"), MessageTooLarge)
        transport.close()


def test_a_block_rewritten_while_the_server_reads_hurts_its_own_call_alone(process: ServerProcess) -> None:
    """Two threads' worth of races: whatever the server copies out, it answers, and the next student is served."""
    server = process.addresses["shared"]
    transport = GrpcTransport(server.name, "none")
    transport.describe(verbs.DescribeRequest(), in_s(5))
    with Caller(transport, "hostile", message_width=WIDTH) as caller:
        stub = transport._stubs["forward"][1]
        for place in range(8):
            request = verbs.ForwardRequest(
                caller.session, f"c{place}", ("answer",), False, inputs={"message": message()}
            )
            data = write(request)
            with transport._blocks.leased(len(data)) as lease:
                assert lease is not None
                running = stub.future(b"", timeout=20, metadata=((SHARED_KEY, str(lease.put([data]))),))
                scribble(lease.block, running)
                assert isinstance(running.exception(), grpc.RpcError | None)
    assert train(server, "good")[1] > 0


def scribble(block: Block, running: Any) -> None:
    junk = torch.randint(0, 255, (block.size_bytes,), dtype=torch.uint8).numpy().data
    while not running.done():
        block.put([junk])


def open_gate(server: Address) -> Gate:
    assert server.gate is not None
    return server.gate


class Absent:
    """A teacher that is gone: nothing to leave."""

    def leave(self, *_: object) -> None:
        """It is gone."""
