"""MovieLens 100K ratings of one genre from the package that ships them; draws no splits."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from task_data.assembly import assemble, targets
from task_data.config import DataConfig
from task_data.division import Division, Part, divide
from task_data.packages import wheel_folder
from task_data.prompts import rating_prompts
from task_data.splits import Task, TaskData
from teaching_protocol.errors import DataError

__all__ = ["load_movielens"]

_RATING_FIELDS = {"user_id": "user", "item_id": "item", "rating": "rating", "timestamp": "time"}
_FILM_FIELDS = {"item_id": "item", "movie_title": "title", "release_year": "year", "class": "genres"}


def load_movielens(config: DataConfig) -> TaskData:
    """Loads the ratings of the films of `config.genre`: the task of arXiv 2310.03188, measured in RMSE.

    The student sees `user` and `item`, numbers from 0 over all users and films of the whole data set, so that
    they mean the same to students of every genre. The teacher sees a text prompt (`rating_prompts`) whose history
    has the ratings of films outside the genre and the labelled training ratings, and never a validation, test or
    unlabelled one, nor the rated film itself. Splits are drawn at random by the seed, not by time (ours).
    With `config.other_genres` the ratings of all films outside the genre are training rows too: the data of a
    complementary teacher, which knows the users from more than the student sees. Validation and test stay the same.
    `config.path` may name a folder with `*.inter` and `*.item` files of the same columns.

    Raises:
        DataError: the package cannot be had, a file is not as expected, or no film has the genre.
    """
    folder = config.path or wheel_folder("recbole==1.2.1", "recbole/dataset_example/ml-100k")
    table = _read_ratings(folder, _read_films(folder))
    numbers = {name: np.unique(table[name], return_inverse=True)[1] for name in ("user", "item")}
    in_genre = table["genres"].map(lambda genres: config.genre in genres).to_numpy(dtype=bool)
    own, others = table[in_genre].reset_index(drop=True), table[~in_genre]
    if own.empty:
        genres = sorted({genre for genres in table["genres"] for genre in genres})
        raise DataError(f"{folder}: no rated film has the genre {config.genre!r}; there are {', '.join(genres)}")
    parts: list[Part] = ["train"] * len(own)
    division = divide(list(zip(own["user"], own["item"], strict=True)), parts, config)
    history = pd.concat([others, own.iloc[division.train[division.labelled]]])
    order = np.flatnonzero(in_genre)
    if config.other_genres:
        own, division = pd.concat([own, others]), _with_all(division, len(own), len(others))
        order = np.concatenate([order, np.flatnonzero(~in_genre)])
    columns = {name: torch.from_numpy(column[order]) for name, column in numbers.items()}
    ratings = torch.tensor(own["rating"].tolist(), dtype=torch.float32)
    return assemble(Task(config.name), "ratings", columns, rating_prompts(own, history), ratings, division)


def _with_all(division: Division, start: int, count: int) -> Division:
    """The division with rows `start` to `start + count` - 1 as labelled training rows, too."""
    train = np.concatenate([division.train, np.arange(start, start + count)])
    return replace(division, train=train, labelled=np.concatenate([division.labelled, np.ones(count, dtype=bool)]))


def _read_ratings(folder: Path, films: pd.DataFrame) -> pd.DataFrame:
    """Gives every rating with its film's columns, in the order of the file."""
    ratings = _read(folder, "*.inter", _RATING_FIELDS)
    for column in ("rating", "time"):
        targets(ratings[column].tolist(), ["train"] * len(ratings), f"{folder}: {column}")  # refuses what is no number
        ratings[column] = ratings[column].astype(float)
    if strangers := set(ratings["item"]) - set(films["item"]):
        raise DataError(f"{folder}: {len(strangers)} rated items have no film, such as {min(strangers)}; add them")
    return ratings.merge(films, on="item", how="left")


def _read_films(folder: Path) -> pd.DataFrame:
    films = _read(folder, "*.item", _FILM_FIELDS).drop_duplicates("item")
    films["genres"] = films["genres"].str.split()
    return films


def _read(folder: Path, pattern: str, fields: dict[str, str]) -> pd.DataFrame:
    """Reads a file whose header has typed names (`rating:float`) and gives the fields under their short names."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"{folder}: one {pattern} file was expected and {len(found)} are there; give the data's folder")
    try:
        frame = pd.read_csv(found[0], sep="\t", quoting=csv.QUOTE_NONE, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{found[0]}: cannot be read as a tab-separated table: {error}") from error
    frame.columns = pd.Index([str(name).split(":")[0] for name in frame.columns])
    if missing := fields.keys() - set(frame.columns):
        raise DataError(f"{found[0]}: column {min(missing)} is missing; there are {', '.join(frame.columns)}")
    return frame[list(fields)].rename(columns=fields)
