"""Wrong tokens by address: rationed, forgotten, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from teacher_server.web.failures import Failures


def test_after_so_many_an_address_waits_until_the_oldest_is_forgotten() -> None:
    now = [0.0]
    failures = Failures(limit=3, within_s=60.0, clock=lambda: now[0])
    for at in (0.0, 10.0, 20.0):
        now[0] = at
        assert failures.delay_s("a") == 0.0
        failures.note("a")
    assert failures.delay_s("a") == 40.0
    assert failures.delay_s("b") == 0.0
    now[0] = 61.0
    assert failures.delay_s("a") == 0.0
    failures.note("a")
    assert failures.delay_s("a") == 9.0


@given(st.lists(st.text(max_size=2), max_size=60))
def test_no_more_are_remembered_than_may_be(addresses: list[str]) -> None:
    failures = Failures(limit=2, kept=4, clock=lambda: 0.0)
    for address in addresses:
        failures.note(address)
    assert len(failures) == min(4, len(set(addresses)))
    if addresses and addresses.count(addresses[-1]) == 1:
        assert failures.delay_s(addresses[-1]) == 0.0
