"""The HTTP port of a real server over real connections: what it serves, to whom, and what bad callers can do to it."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teacher_server.security.tokens import add_token, revoke
from teacher_server.web.connections import CONNECTIONS, BoundedConnection
from teacher_server.web.pages import HEADERS
from teacher_server.web.snapshot import Status
from teaching_protocol.errors import InvalidSetting, NonFiniteError
from tests.calls import WIDTH, Caller
from tests.certificates import CertificateAuthority
from tests.integration.gate import poll
from tests.integration.processes import ROOT
from tests.parts import part

PATHS = ("/", "/page.css", "/page.js", "/icon.svg", "/status.json", "/metrics", "/healthz", "/readyz")
OPEN = ("/healthz", "/readyz")


def served(bert: FrozenTeacher, **config: Any) -> TeacherApp:
    fields = {"model": "tiny", "port": 0, "metrics_port": 0, "threads": 1, "status_interval_s": 0.1, "handoff_s": 0}
    return TeacherApp(ServerConfig(**fields | config), bert)


@pytest.fixture(scope="module")
def app(bert: FrozenTeacher) -> Iterator[TeacherApp]:
    with served(bert) as found:
        yield found


def ask(app: TeacherApp, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    """One request, on a connection of its own; the answer's body is in `content`."""
    connection = http.client.HTTPConnection("127.0.0.1", app.metrics_port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    answer.content = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def status(app: TeacherApp, after: int = 0) -> Status:
    return Status.model_validate_json(ask(app, f"/status.json?after={after}").content)  # type: ignore[attr-defined]


# What it serves


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_the_headers(path: str, app: TeacherApp) -> None:
    found, head = ask(app, path), ask(app, path, "HEAD")
    assert found.status == head.status == 200
    assert found.content  # type: ignore[attr-defined]
    assert not head.content  # type: ignore[attr-defined]
    for name, value in HEADERS.items():
        assert found.headers.get_all(name) == head.headers.get_all(name) == [value]
    assert "server" not in found.headers
    assert found.headers["content-type"] == head.headers["content-type"]


@pytest.mark.parametrize(
    "path", ["/x", "/metrics/", "/status", "/static/page.css", "/../pyproject.toml", "/%2e%2e/page.js", "//"]
)
def test_there_is_nothing_else(path: str, app: TeacherApp) -> None:
    found = ask(app, path)
    assert found.status == 404
    assert found.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_it_is_read_only(method: str, app: TeacherApp) -> None:
    for path in PATHS:
        assert ask(app, path, method).status == 405


def test_metrics_as_text_as_openmetrics_zipped_and_in_part(app: TeacherApp) -> None:
    plain = ask(app, "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(plain.content.decode())}  # type: ignore[attr-defined]
    assert {"teacher_sessions", "teacher_requests", "teacher_model_info"} <= names
    scraped = ask(app, "/metrics", accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert scraped.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    found = {family.name for family in openmetrics_families(scraped.content.decode())}  # type: ignore[attr-defined]
    assert {"teacher_sessions", "teacher_requests", "teacher_model"} <= found
    zipped = ask(app, "/metrics", accept_encoding="gzip")
    assert zipped.headers["content-encoding"] == "gzip"
    assert b"teacher_sessions" in gzip.decompress(zipped.content)  # type: ignore[attr-defined]
    one = ask(app, "/metrics?name[]=teacher_sessions").content.decode()  # type: ignore[attr-defined]
    assert [family.name for family in text_string_to_metric_families(one)] == ["teacher_sessions"]


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=nonsense", "text/plain; version=;;=", ",,;"])
def test_a_strange_accept_gets_metrics_all_the_same(accept: str, app: TeacherApp) -> None:
    assert ask(app, "/metrics", accept=accept).status == 200


def test_a_session_in_the_figures(app: TeacherApp) -> None:
    before = status(app)
    with Caller(f"127.0.0.1:{app.port}", "ann", task="news") as ann:
        for step in (1, 2, 3):
            ann.backward(ann.forward()[0])
            ann.step(step)
        with pytest.raises(NonFiniteError):
            ann.forward(inputs={"message": torch.full((1, 1, WIDTH), torch.nan)})
        found = poll(lambda: (new := status(app)).sessions and new.sessions[0].last_error and new, "the error is seen")
        (session,) = found.sessions
        assert (session.student, session.task, session.epoch, session.step) == ("ann", "news", 1, 3)
        assert session.last_error.kind == "NonFiniteError"
        assert session.steps_per_s > 0
        assert 0 < session.device_share <= 1
        assert session.failed == 1
        assert session.state_bytes == found.memory.state_bytes > 0
        assert found.load.sessions == 1
        assert found.load.engine_share > 0
        assert found.batches.rows == pytest.approx(2.0, abs=0.5)
        assert found.batches.students == 1.0
        assert found.teacher.model_name == "tiny-bert"
        assert next(each.total for each in found.refusals if each.reason == "NonFiniteError") == 1
        assert ann.session.session_id not in found.model_dump_json()
    gone = poll(lambda: not (new := status(app)).sessions and new, "the session is gone")
    assert gone.sample > found.sample > before.sample
    assert gone.started == before.started


def test_only_what_is_new(app: TeacherApp) -> None:
    first = status(app)
    later = poll(lambda: (new := status(app, first.sample)).sample >= first.sample + 2 and new, "two more samples")
    assert later.after == first.sample
    assert all(len(curve) == later.sample - first.sample for curve in later.history.values())
    assert status(app, later.sample + 1000).after == 0


def test_limits_follow_a_reload(bert: FrozenTeacher) -> None:
    with served(bert, max_sessions=7) as app:
        assert status(app).load.max_sessions == 7
        app.reloading(lambda: app.config.model_copy(update={"max_sessions": 9}))
        app.reload()
        assert poll(lambda: (new := status(app)).load.max_sessions != 7 and new, "it is seen").load.max_sessions == 9


@pytest.mark.parametrize("after", ["", "-1", "x", "1e9", "9" * 5000, "%00", "\u0663".encode().hex()])
def test_an_after_that_is_none_gets_all(after: str, app: TeacherApp) -> None:
    found = ask(app, f"/status.json?after={after}")
    assert found.status == 200
    assert json.loads(found.content)["after"] == 0  # type: ignore[attr-defined]


def test_ready_only_while_it_serves(bert: FrozenTeacher) -> None:
    door, entered = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        entered.set()
        assert door.wait(20)

    hook = bert.family.blocks[0].register_forward_pre_hook(hold)
    app = served(bert, handoff_s=20.0)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(app.start)
        assert entered.wait(20)
        assert (ask(app, "/healthz").status, ask(app, "/readyz").status) == (200, 503)
        assert status(app).state == "starting"
        door.set()
        starting.result(20)
        hook.remove()
        assert (ask(app, "/healthz").status, ask(app, "/readyz").status) == (200, 200)
        with Caller(f"127.0.0.1:{app.port}", "late"):
            closing = pool.submit(app.close)
            poll(lambda: status(app).state == "draining", "the drain is seen")
            assert (ask(app, "/healthz").status, ask(app, "/readyz").status) == (200, 503)
            assert len(status(app).sessions) == 1
        closing.result(20)
    with pytest.raises(OSError, match="refused"):
        ask(app, "/healthz")


def test_it_ends_with_its_thread_and_its_port(bert: FrozenTeacher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        free_port = free.getsockname()[1]
    before = set(threading.enumerate())
    for _ in range(2):
        with served(bert, metrics_port=free_port) as app:
            viewer = http.client.HTTPConnection("127.0.0.1", free_port)
            viewer.request("GET", "/status.json")
            viewer.getresponse().read()
            begun = time.monotonic()
            assert app.metrics_port == free_port
        assert time.monotonic() - begun < 2.0, "a viewer that stays connected holds nothing up"
        viewer.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "web" and thread not in before]


# Bad callers


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "10.0.0.1"])
def test_a_page_of_another_name_reads_nothing(host: str, app: TeacherApp) -> None:
    """DNS rebinding: the browser of this machine's user is sent here under a stranger's name."""
    assert ask(app, "/status.json", host=host).status == 421
    assert ask(app, "/metrics", host=host).status == 421
    assert ask(app, "/status.json", host=f"localhost:{app.metrics_port}").status == 200


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: " + b"x" * 70_000, bytes(range(256))])
def test_bytes_that_are_no_http(data: bytes, app: TeacherApp) -> None:
    with socket.create_connection(("127.0.0.1", app.metrics_port), timeout=10) as raw:
        raw.sendall(data)
        with contextlib.suppress(ConnectionError):
            assert raw.recv(100).startswith(b"HTTP/1.1 4")
    assert ask(app, "/healthz").status == 200


def test_who_sends_no_whole_request_is_cut_off(app: TeacherApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "request_s", 0.3)
    with socket.create_connection(("127.0.0.1", app.metrics_port), timeout=10) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in raw.recv(4096)
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < 5.0:  # one byte now and then, of a request that never ends
                raw.sendall(b"G" if time.monotonic() - begun < 0.05 else b"E")
                time.sleep(0.05)
        assert time.monotonic() - begun < 3.0


def test_no_more_connections_than_may_be(app: TeacherApp) -> None:
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", app.metrics_port)
        idle = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(CONNECTIONS)]
        poll(lambda: len(app._web._server.server_state.connections) == CONNECTIONS, "all are there")
        with pytest.raises(OSError, match=r"reset|closed|without response"):
            ask(app, "/healthz")
        idle.pop().close()
        poll(lambda: len(app._web._server.server_state.connections) < CONNECTIONS, "one is gone")
        assert ask(app, "/healthz").status == 200


def test_who_does_not_read_harms_nobody(app: TeacherApp) -> None:
    """One caller asks 3000 times and takes no answer: the server keeps what the system's buffers take, and serves the others."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", app.metrics_port))
        raw.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            raw.sendall(b"GET /page.css HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3000)
        with Caller(f"127.0.0.1:{app.port}", "meanwhile") as caller:
            begun = time.monotonic()
            for _ in range(5):
                assert ask(app, "/status.json").status == 200
                caller.forward()
            assert time.monotonic() - begun < 5.0
        connections = app._web._server.server_state.connections
        unread = poll(
            lambda: [each for each in connections if each.flow.write_paused], "the server waits for the reader"
        )
        assert unread[0].transport.get_write_buffer_size() < 500_000


# A public address


class Town:
    """A server on all addresses, under TLS, with tokens of ann, of prometheus and of a student who may not look."""

    def __init__(self, folder: Path, bert: FrozenTeacher) -> None:
        self.authority = CertificateAuthority(folder / "ca", "ours")
        pair = self.authority.sign("teacher", "DNS:localhost,IP:127.0.0.1")
        self.file = folder / "tokens.json"
        self.tokens = {name: add_token(self.file, name) for name in ("ann", "prometheus", "gone", "student")}
        revoke(self.file, "gone")
        given = {"tls_cert": pair.cert, "tls_key": pair.key, "tokens": self.file}
        self.app = served(bert, metrics_host="0.0.0.0", status_identities=["ann", "gone", "prometheus"], **given)

    def ask(self, path: str, authorization: str = "") -> tuple[int, str]:
        address = f"https://localhost:{self.app.metrics_port}{path}"
        request = urllib.request.Request(address, headers={"Authorization": authorization} if authorization else {})
        context = ssl.create_default_context(cafile=str(self.authority.cert))
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture(scope="module")
def town(bert: FrozenTeacher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    found = Town(tmp_path_factory.mktemp("town"), bert)
    with found.app:
        yield found


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_a_public_port_asks_for_a_token(path: str, town: Town) -> None:
    is_open = path in OPEN
    assert town.ask(path)[0] == (200 if is_open else 401)
    assert town.ask(path, f"Bearer {town.tokens['gone']}")[0] == (200 if is_open else 401)
    assert town.ask(path, f"Bearer {town.tokens['student']}")[0] == (200 if is_open else 403)
    assert town.ask(path, f"Bearer {town.tokens['ann']}")[0] == (404 if path == "/nothing" else 200)
    assert town.tokens["ann"] not in town.ask(path, f"Bearer {town.tokens['ann']}x")[1]


def test_a_public_port_speaks_tls_only(town: Town) -> None:
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(town.app, "/healthz")
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"https://localhost:{town.app.metrics_port}/healthz", timeout=10)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {},
            r"metrics_host 0\.0\.0\.0: anyone who reaches .*missing TLS .* and tokens .*--metrics-port -1.*--insecure",
        ),
        ({"tokens": "some"}, r"missing TLS .*\. Give that"),
    ],
)
def test_a_public_port_without_a_lock_is_refused(given: dict[str, Any], sentence: str, bert: FrozenTeacher) -> None:
    with pytest.raises(InvalidSetting, match=sentence):
        served(bert, metrics_host="0.0.0.0", **given).start()


def test_insecure_is_open_under_any_name(bert: FrozenTeacher) -> None:
    with served(bert, metrics_host="0.0.0.0", insecure=True) as app:
        assert ask(app, "/status.json", host="teacher.example").status == 200


def test_prometheus_scrapes_with_the_documented_configuration(town: Town, tmp_path: Path) -> None:
    """The block in docs/status_page.md, with this server's address and files in it."""
    text = (ROOT / "docs" / "status_page.md").read_text()
    config = text.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "token").write_text(town.tokens["prometheus"])
    for old, new in (
        ("teacher.example:9464", f"localhost:{town.app.metrics_port}"),
        ("/etc/prometheus/teacher.token", str(tmp_path / "token")),
        ("/etc/prometheus/ca.pem", str(town.authority.cert)),
        ("15s", "1s"),
    ):
        assert old in config
        config = config.replace(old, new)
    (tmp_path / "prometheus.yml").write_text(config)
    with prometheus(tmp_path) as port:
        query = f"http://127.0.0.1:{port}/api/v1/query?query=teacher_sessions"

        def found() -> list[Any]:
            with contextlib.suppress(OSError), urllib.request.urlopen(query, timeout=5) as answer:
                return json.load(answer)["data"]["result"]
            return []

        (sample,) = poll(found, "a scrape")
        assert sample["metric"]["job"] == "teacher"


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[int]:
    """A real one on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    words += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen([part("prometheus"), *words])
    try:
        yield port
    finally:
        process.kill()
        process.wait(20)
