"""Where students go among replicas: balance, least movement, and nothing else that counts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from student_client.connection.pinning import ranked

names = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=12, unique=True)
keys = st.text(max_size=20)


@given(keys, names)
def test_every_name_once_in_an_order_of_the_keys_own(key: str, places: list[str]) -> None:
    found = ranked(key, places)
    assert sorted(found) == sorted(places)
    assert ranked(key, places[::-1] + places) == found, "order and repetition make no difference"


@given(keys, names, st.data())
def test_who_leaves_moves_only_its_own(key: str, places: list[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(places))
    before = ranked(key, places)
    assert ranked(key, [each for each in places if each != gone]) == [each for each in before if each != gone]


@given(keys, names, st.text(min_size=1, max_size=12))
def test_who_joins_takes_keys_for_itself_alone(key: str, places: list[str], new: str) -> None:
    after = ranked(key, [*places, new])[0]
    assert after in (new, ranked(key, places)[0])


def test_students_spread_evenly() -> None:
    """20,000 students over 8 replicas: each has an eighth, within four standard deviations (4 x 47)."""
    places = [f"replica-{number}" for number in range(8)]
    counts = Counter(ranked(f"student-{number}", places)[0] for number in range(20_000))
    assert set(counts) == set(places)
    assert all(abs(count - 2500) < 4 * 47 for count in counts.values()), counts
    seconds = Counter(tuple(ranked(f"student-{number}", places)[:2]) for number in range(20_000))
    assert len(seconds) == 8 * 7, "those of a lost replica spread over all others"
