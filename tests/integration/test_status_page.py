"""The status page in a real Chromium, served by a real teacher to real students."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from selenium.webdriver.common.keys import Keys

from student_client.connection.transport import GrpcTransport
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teaching_protocol import verbs
from teaching_protocol.errors import NonFiniteError
from tests.browser import Browser, browsing
from tests.calls import WIDTH, Caller, in_s
from tests.integration.gate import poll

# what a student may call itself, and what the page may make of it: the name as text
EVIL = "<script>document.title='evil'</script><img src=x onerror=alert(1)>"
HEBREW = "\u05e9\u05dc\u05d5\u05dd <b>x</b>"
LONG = "\u2764" * 128


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browsing() as found:
        yield found


@pytest.fixture
def browser(window: Browser) -> Iterator[Browser]:
    window.look(1280, 900)
    yield window
    assert window.complaints() == [], "the console"


@pytest.fixture(scope="module")
def app(bert: FrozenTeacher) -> Iterator[TeacherApp]:
    with served(bert) as found:
        yield found


def served(bert: FrozenTeacher, **config: Any) -> TeacherApp:
    fields = {"model": "tiny", "port": 0, "metrics_port": 0, "threads": 1, "status_interval_s": 0.2, "handoff_s": 0}
    return TeacherApp(ServerConfig(**fields | config), bert)


def page(app: TeacherApp) -> str:
    return f"http://127.0.0.1:{app.metrics_port}/"


def train(caller: Caller, first: int, last: int) -> None:
    for step in range(first, last + 1):
        caller.backward(caller.forward()[0])
        caller.step(step)


@contextlib.contextmanager
def class_of(app: TeacherApp, names: list[str], **settings: Any) -> Iterator[list[Caller]]:
    """Students over one connection."""
    transport = GrpcTransport(f"127.0.0.1:{app.port}", "none")
    callers = [Caller(transport, name, **settings).__enter__() for name in names]
    try:
        yield callers
    finally:
        for caller in callers:
            transport.leave(verbs.LeaveRequest(caller.session), in_s(20))
        transport.close()


def cell(browser: Browser, student: str, column: str) -> str:
    script = """
        const row = [...document.querySelectorAll("#rows tr")].find((each) => each.querySelector(".name").textContent === arguments[0]);
        return row?.querySelector(`.c-${arguments[1]}`).textContent ?? "";
    """
    found: str = browser.run(script, student, column)
    return found


def names(browser: Browser) -> list[str]:
    return browser.texts("#rows .name")


def test_a_session_comes_steps_fails_and_leaves_under_the_viewers_eyes(app: TeacherApp, browser: Browser) -> None:
    browser.open(page(app))
    poll(lambda: browser.text("#state") == "Serving", "the first answer")
    assert browser.text("#nobody") == "No student is connected."
    browser.run("window.here = true")
    with Caller(f"127.0.0.1:{app.port}", "ann", task="news") as ann:
        browser.wait_for_rows(1)
        assert cell(browser, "ann", "task") == "news"
        train(ann, 1, 3)
        poll(lambda: cell(browser, "ann", "step") == "3", "three steps")
        train(ann, 4, 9)
        poll(lambda: cell(browser, "ann", "step") == "9", "six more")
        poll(lambda: float(cell(browser, "ann", "steps_per_s")) > 0, "their rate")
        assert browser.run("return document.querySelector('#rows .spark .line').getAttribute('d').length") > 20
        with pytest.raises(NonFiniteError):
            ann.forward(inputs={"message": torch.full((1, 1, WIDTH), torch.nan)})
        poll(lambda: "NonFiniteError" in cell(browser, "ann", "error_age_s"), "its error")
        poll(lambda: "NonFiniteError" in browser.texts("#reasons th"), "the reason")
        assert browser.text("#count") == "1 live"
    browser.wait_for_rows(0)
    assert browser.run("return window.here") is True, "without a reload"


def test_what_the_page_says_is_what_the_server_knows(app: TeacherApp, browser: Browser) -> None:
    with Caller(f"127.0.0.1:{app.port}", "ann") as ann:
        train(ann, 1, 5)
        browser.open(page(app))
        browser.wait_for_rows(1)
        assert browser.text("#model") == app.actor.card.model_name == "tiny-bert"
        assert browser.run("return document.title") == "1 · tiny-bert"
        card = dict(zip(browser.texts("#card dt"), browser.texts("#card dd"), strict=True))
        assert card["Weights"] == app.actor.card.model_hash
        assert card["Layers"] == "4, of width 32"
        assert card["Outputs"] == ", ".join(app.actor.card.output_ports)
        tiles = browser.texts(".tile h3")
        assert tiles == [
            "Engine",
            "Steps",
            "Tokens",
            "Queue",
            "Sessions",
            "Batch",
            "Kept graphs",
            "Knowledge cache",
            "Memory",
            "Refused",
        ]
        values = dict(zip(tiles, browser.texts(".tile .value"), strict=True))
        assert values["Sessions"] == "1"
        assert values["Batch"] == "2.0 rows"
        assert all(re.search(r"\d|–", value) for value in values.values()), values
        assert all(
            browser.run("return [...document.querySelectorAll('.tile .line')].map((each) => each.getAttribute('d'))")
        )


def test_who_opens_the_page_late_sees_how_it_began(app: TeacherApp, browser: Browser) -> None:
    poll(lambda: app._web is not None and _sample(app) > 20, "some history")
    browser.open(page(app))
    poll(lambda: browser.texts(".tile .line"), "curves")
    points = poll(
        lambda: (
            browser.run("return document.querySelector('[data-tile=sessions] .line').getAttribute('d')") or ""
        ).count("L"),
        "a curve",
    )
    assert points >= 20


def _sample(app: TeacherApp) -> int:
    with urllib.request.urlopen(f"{page(app)}status.json", timeout=10) as answer:
        return int(json.load(answer)["sample"])


def test_evil_names_are_text(app: TeacherApp, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    browser.open(page(app))
    with class_of(app, [EVIL, HEBREW, LONG], task="<i>task</i>"), monkeypatch.context() as monkeypatch:
        # no call brings this in: it stands for whatever a later release might let through
        monkeypatch.setattr(app.actor.sessions.live()[0], "owner", "\u202etxt.exe" + "x" * 10_000)
        browser.wait_for_rows(3)
        assert set(names(browser)) == {EVIL, HEBREW, LONG}
        assert set(browser.texts("#rows .c-task")) == {"<i>task</i>"}
        assert browser.run("return document.querySelectorAll('#rows script, #rows img, #rows b, #rows i').length") == 0
        assert browser.run("return document.title").endswith("tiny-bert")
        (identity,) = poll(lambda: [text for text in browser.texts("#rows .identity") if text], "the identity")
        assert identity.startswith("\N{REPLACEMENT CHARACTER}txt.exe")
        assert len(identity) == 128
        assert no_sideways(browser)
        monkeypatch.undo()


def test_two_hundred_sessions(app: TeacherApp, browser: Browser) -> None:
    students = [f"student-{index}" for index in range(200)]
    with class_of(app, students) as callers:
        train(callers[150], 1, 4)
        train(callers[7], 1, 2)
        browser.open(page(app))
        browser.wait_for_rows(200)
        assert names(browser) == students, "as people count: 2 before 10"
        assert no_sideways(browser)
        # the head stays in sight
        browser.run("document.querySelector('#rows').children[120].scrollIntoView()")
        assert browser.run("return document.querySelector('#head th').getBoundingClientRect().top") == 0
        # sorted by the keyboard alone
        browser.run("window.scrollTo(0, 0)")
        step = next(each for each in browser.all("#head button") if each.text.startswith("Step"))
        browser.run("arguments[0].focus()", browser.all("#filter")[0])
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        for _ in range(3):
            browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        assert browser.driver.switch_to.active_element == step
        step.send_keys(Keys.ENTER)
        assert names(browser)[:2] == ["student-150", "student-7"]
        assert sorts(browser) == {"Step": "descending"}
        step.send_keys(Keys.SPACE)
        assert names(browser)[-2:] == ["student-7", "student-150"]
        assert sorts(browser) == {"Step": "ascending"}
        # and stays so when new figures come
        train(callers[0], 1, 6)
        poll(lambda: names(browser)[-1] == "student-0", "the order follows the figures")
        assert browser.driver.switch_to.active_element == step
        browser.all("#filter")[0].send_keys("student-15")
        assert browser.text("#count") == "11 of 200"
        browser.all("#filter")[0].send_keys("x")
        assert browser.text("#nobody") == "No student passes this filter."
    browser.wait_for_rows(0)


def sorts(browser: Browser) -> dict[str, str]:
    script = "return [...document.querySelectorAll('#head th')].map((each) => [each.textContent, each.getAttribute('aria-sort')])"
    return {name: sort for name, sort in browser.run(script) if sort != "none"}


def no_sideways(browser: Browser) -> bool:
    return bool(browser.run("return document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1241, 1920])
def test_no_width_scrolls_sideways(width: int, app: TeacherApp, browser: Browser) -> None:
    with class_of(app, ["ann", EVIL, LONG], task="a-task-with-a-name-that-has-no-end-and-no-space" * 2) as callers:
        with pytest.raises(NonFiniteError):
            callers[0].forward(inputs={"message": torch.full((1, 1, WIDTH), torch.nan)})
        browser.look(width, 800)
        browser.open(page(app))
        browser.wait_for_rows(3)
        assert no_sideways(browser)
        browser.run("document.querySelector('#rows summary').click()")
        assert no_sideways(browser)
        seen = [each.text for each in browser.all("#rows .name") if each.is_displayed()]
        assert len(seen) == 3


def test_light_and_dark(app: TeacherApp, browser: Browser) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        browser.look(1280, 900, scheme)
        browser.open(page(app))
        poll(lambda: browser.text("#state") == "Serving", "the first answer")
        red = browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0]")
        grounds.append(int(red))
    assert grounds[0] > 200
    assert grounds[1] < 50


def test_it_asks_nobody_else(app: TeacherApp, browser: Browser) -> None:
    browser.open(page(app))
    poll(lambda: browser.text("#state") == "Serving", "the first answer")
    assert browser.hosts() == {f"127.0.0.1:{app.metrics_port}"}


def test_the_drain_and_the_end_are_seen(bert: FrozenTeacher, window: Browser) -> None:
    app = served(bert, handoff_s=20.0).start()
    window.open(page(app))
    poll(lambda: window.text("#state") == "Serving", "the first answer")
    with Caller(f"127.0.0.1:{app.port}", "last"):
        app.ask_to_drain()
        poll(lambda: window.text("#state") == "Draining", "the drain")
        assert "begins nothing new" in window.text("#notice")
    app.close()
    poll(lambda: window.text("#state") == "Not reached", "the end")
    assert window.text("#notice").startswith("The server does not answer. The figures are those of ")
    window.complaints()  # that nobody answers is what the console says, too


def test_a_semantic_table(app: TeacherApp, browser: Browser) -> None:
    """What a screen reader goes by."""
    with Caller(f"127.0.0.1:{app.port}", "ann"):
        browser.open(page(app))
        browser.wait_for_rows(1)
        assert browser.run(
            "return [...document.querySelectorAll('#sessions thead th')].every((each) => each.scope === 'col')"
        )
        assert browser.run("return document.querySelector('#rows tr').firstChild.scope") == "row"
        assert browser.text("#sessions caption").startswith("Live sessions")
        assert browser.run("return document.querySelector('#state').getAttribute('role')") == "status"
        assert browser.run("return document.documentElement.lang") == "en"
        assert browser.run(
            "return [...document.querySelectorAll('svg')].every((each) => each.getAttribute('aria-hidden') === 'true')"
        )
        labels = "return [...document.querySelectorAll('input, select')].every((each) => each.labels.length || each.ariaLabel)"
        assert browser.run(labels)
