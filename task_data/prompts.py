"""What the teacher reads about a rating to be predicted; knows no split: it is given the history it may tell."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice

import pandas as pd

__all__ = ["rating_prompts"]

_HISTORY_FILMS = 8

_VERDICTS = ((4.5, "loved"), (3.5, "liked"), (2.5, "found fair"), (1.5, "disliked"), (float("-inf"), "hated"))


def rating_prompts(rows: pd.DataFrame, history: pd.DataFrame) -> list[str]:
    """Gives one prompt a row: the film's title, year and genres, and the viewer's verdicts on other films. Ours.

    The verdicts are on the viewer's 8 latest films in the history, best first, without the row's own film. A
    row's own rating is not read.

    Args:
        rows: with `user`, `item`, `title`, `year` and `genres` (a list of words).
        history: with the same columns, `rating` (1 to 5) and `time`.
    """
    seen: dict[str, list[tuple[str, str, float]]] = defaultdict(list)  # of each user, the latest film first
    latest = history.sort_values("time", ascending=False, kind="stable")
    for user, item, title, year, rating in zip(
        latest["user"], latest["item"], latest["title"], latest["year"], latest["rating"], strict=True
    ):
        seen[user].append((item, f"{title} ({year})", rating))
    return [
        f"{title} ({year}): {', '.join(genres)}. "
        + _verdicts(
            list(islice(((name, rating) for other, name, rating in seen[user] if other != item), _HISTORY_FILMS))
        )
        for user, item, title, year, genres in zip(
            rows["user"], rows["item"], rows["title"], rows["year"], rows["genres"], strict=True
        )
    ]


def _verdicts(films: list[tuple[str, float]]) -> str:
    said: dict[str, list[str]] = defaultdict(list)
    for name, rating in sorted(films, key=lambda film: -film[1]):
        said[next(verdict for least, verdict in _VERDICTS if rating >= least)].append(name)
    if not said:
        return "Nothing else is known about this viewer."
    return "This viewer " + "; ".join(f"{verdict} {', '.join(names)}" for verdict, names in said.items()) + "."
