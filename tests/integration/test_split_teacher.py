"""A teacher split over two processes by tensor parallelism: the plain one's numbers, and all of its processes end together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
import transformers as hf

from student_client import InProcessTeacher
from teacher_server.local import local_teacher
from teacher_server.models.loading import empty_teacher, load_teacher
from teacher_server.models.sharding import Shards, local_part
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ServiceError
from tests.calls import Caller, attempt
from tests.chaos.rank_world import ended_with
from tests.chaos.world import TeacherProcess, assert_same, chaos_config, ended, student_process, wait_for_step
from tests.integration.gate import poll
from tests.integration.split_teachers import SplitServer, gone, split_here
from tests.integration.test_remote_equals_local import PORTS, WIDTH, Facts, conversation, message_inputs
from tests.unit.teacher_server.rooms import Room, Wish
from tests.unit.teacher_server.test_batches import message
from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="here it is split over GPUs: tests/gpu")

Models = Callable[[str], Path]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama that has a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def everything(teacher: FrozenTeacher, **settings: object) -> Facts:
    """All that a student may get of a teacher: from a graph that is kept, and from one that is run again."""
    torch.manual_seed(5)
    inputs, facts = message_inputs("llama", 6), {}
    for name, budget in (("kept", 2**30), ("again", 0)):
        actor = local_teacher(teacher, graph_cache_bytes=budget, **settings)
        outputs = [*PORTS, "hidden.2", "pooled", "attention_mask", "logits", "logits.top2"]
        outputs += ["last_hidden_state", "logprobs.top3.t150", "tokens.top3"]
        found = conversation(InProcessTeacher(actor, student=name, message_width=WIDTH), inputs, outputs)
        facts |= {f"{name}: {port}": value for port, value in found.items()}
    return facts


def assert_near(found: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    """Sums are in another order: to 1e-5 of what a tensor's sums come to."""
    largest = max(1.0, float(wanted.float().abs().max()))
    torch.testing.assert_close(found, wanted, atol=1e-5 * largest, rtol=0, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("model_type", ["llama", pytest.param("mistral", marks=pytest.mark.slow), "qwen2", "tied"])
def test_it_gives_what_the_plain_one_gives(model_type: str, model_folder: Models, tmp_path: Path) -> None:
    if model_type == "tied":  # as SmolLM2: the head is the table of tokens
        folder = tmp_path
        tiny = tiny_model("llama")
        tiny.config.tie_word_embeddings = True
        hf.LlamaForCausalLM(tiny.config).save_pretrained(folder)
    else:
        folder = model_folder(model_type)
    plain = load_teacher(folder, device="cpu")
    wanted = everything(plain)
    with split_here(folder) as (teacher, _):
        found = everything(teacher)
        for name, value in wanted.items():
            assert_near(found[name], value, name)
        assert found.keys() == wanted.keys()
        same = (plain.model_hash, plain.head_hash, plain.sizes)
        assert (teacher.model_hash, teacher.head_hash, teacher.sizes) == same, "it says that it is the same"
        held = sum(local_part(each).nbytes for each in chain(teacher.model.parameters(), teacher.model.buffers()))
        assert held == Shards(2).share_bytes(empty_teacher(folder).model), "and has what was planned"
        assert held < 0.6 * plain.sizes[1]


def test_the_other_process_keeps_no_graph_that_this_one_dropped(llama: Path) -> None:
    with (
        split_here(llama, session_graph_bytes=2**30) as (teacher, other),
        Caller(local_teacher(teacher), "s") as caller,
    ):
        words = torch.randn(16, 128, 8)
        sizes = []
        for step in range(1, 23):
            forward, _ = caller.forward(inputs={"message": words})
            if step % 2:
                caller.backward(forward)
            caller.step(step)  # after which a Forward has no Backward any more
            sizes.append(other.memory_info().rss)
        graph = teacher_graph_bytes(teacher, words)
        assert graph > 2**22
        assert sizes[-1] - sizes[4] < 3 * graph, "of nine that were dropped"
        poll(lambda: not teacher._followers._dropped, "the last one is told without another pass")


def teacher_graph_bytes(teacher: FrozenTeacher, words: torch.Tensor) -> int:
    actor = local_teacher(teacher)
    with Caller(actor, "weighed") as caller:
        caller.forward(inputs={"message": words})
        return actor._engine.graphs.size_bytes


def test_students_of_several_spans_in_one_batch_get_what_each_gets_alone_of_the_plain_one(llama: Path) -> None:
    """Their batch has a span's graph for each pass, and one backward goes through all of them."""
    spans, lengths = ((1, 4), (0, 2), (1, 4), (2, 3)), (6, 3, 12, 1)
    wishes = [
        Wish(message(2, tokens, 8, seed=tokens), {"message_width": 8, "entry": entry, "exit": end})
        for (entry, end), tokens in zip(spans, lengths, strict=True)
    ]
    with Room(load_teacher(llama, device="cpu"), wishes) as room:
        wanted = [room.alone(place) for place in range(len(wishes))]
    with split_here(llama) as (teacher, _), Room(teacher, wishes) as together:
        found = together.exchange()
        assert together.metric("teacher_graph_recomputes_total") == 0
        assert together.metric("teacher_batch_retries_total") == 0
    for one, other in zip(found, wanted, strict=True):
        for name, value in other.items():
            assert_near(one[name], value, name)


def test_twice_is_the_same_to_the_bit_if_deterministic(llama: Path) -> None:
    with split_here(llama, deterministic=True) as (teacher, _):
        first, second = (everything(teacher, deterministic=True) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_a_killed_process_ends_the_server_and_students_go_on_with_a_plain_teacher(llama: Path, tmp_path: Path) -> None:
    with SplitServer(llama, tmp_path) as server:
        with TeacherProcess(llama) as plain:
            whole = chaos_config(tmp_path, "whole", plain.address, 12)
            with student_process(whole) as student:
                ended(whole, student)
        server.wait_until_it_serves()
        config = chaos_config(tmp_path, "moved", server.address, 12)
        with student_process(config) as student:
            wait_for_step(config, student, 5)
            server.follower.kill()
            code, seconds = server.end()
            assert code == 1
            assert seconds < 10
            assert "process 1 of 2 has ended by signal 9: the split teacher is not whole any more" in server.log
            with TeacherProcess(llama, port=server.port):
                found = ended(config, student)
    assert found.result["recoveries"] == 1
    ours, theirs = ended_with(config), ended_with(whole)
    for group in theirs:
        for name, value in theirs[group].items():
            if not name.startswith("optimizer."):
                torch.testing.assert_close(ours[group][name], value, atol=1e-4, rtol=1e-3, msg=f"{group} {name}")


def test_a_drain_ends_all_and_a_killed_server_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    settings = {"handoff_s": 0.1}
    with SplitServer(llama, tmp_path, **settings) as drained, SplitServer(llama, tmp_path, **settings) as killed:
        drained.wait_until_it_serves()
        with Caller(drained.address, "s") as caller:
            forward, _ = caller.forward()
            caller.backward(forward)
        os.kill(drained.follower.pid, signal.SIGTERM)  # a service manager tells all
        drained.process.terminate()
        assert drained.end()[0] == 0
        assert gone(drained.follower)
        assert "whole any more" not in drained.log
        killed.wait_until_it_serves()
        killed.process.kill()
        assert gone(killed.follower)


@pytest.mark.slow
def test_a_process_that_stands_still_ends_the_server_in_time(llama: Path, tmp_path: Path) -> None:
    with SplitServer(llama, tmp_path, tensor_parallel_limit_s=1.0) as server:
        server.wait_until_it_serves()
        caller = Caller(server.address, "s")
        caller.__enter__()
        server.follower.suspend()
        assert isinstance(attempt(caller.forward), ServiceError)
        code, seconds = server.end()
        assert code == 1
        assert seconds < 10
        assert "a pass took more than 1 s, tensor_parallel_limit_s: a process stands still" in server.log
        caller.teacher.close()


@pytest.mark.slow
def test_a_start_that_fails_in_one_ends_all(llama: Path, tmp_path: Path) -> None:
    with SplitServer(llama, tmp_path) as server:
        server.follower.kill()  # while it loads
        assert server.end()[0] == 1
        assert "process 1 of 2 has ended by signal 9" in server.log


@pytest.mark.slow
def test_a_killed_process_costs_no_bit_when_the_server_is_started_again(llama: Path, tmp_path: Path) -> None:
    with SplitServer(llama, tmp_path) as server:
        server.wait_until_it_serves()
        config = chaos_config(tmp_path, "unbroken", server.address, 24)
        with student_process(config) as student:
            whole = ended(config, student)
    with SplitServer(llama, tmp_path) as server:
        server.wait_until_it_serves()
        config = chaos_config(tmp_path, "broken", server.address, 24)
        with student_process(config) as student:
            wait_for_step(config, student, 7)
            server.follower.kill()
            assert server.end()[0] == 1
            with SplitServer(llama, tmp_path, server.port):
                broken = ended(config, student)
    assert_same(broken, whole, 24)
