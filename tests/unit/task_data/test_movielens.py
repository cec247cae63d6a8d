from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from task_data import Split, TaskData, load_data
from task_data.config import DataConfig
from task_data.packages import wheel_folder
from teaching_protocol.errors import DataError

USERS, FILMS = 12, 20
CONFIG = {"name": "movielens", "labelled": 40, "unlabelled": 20, "validation": 15, "test": 15}


def ratings() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    pairs = [(f"u{user}", f"i{film}") for user in range(USERS) for film in range(FILMS)]
    values, times = rng.integers(1, 6, len(pairs)), rng.permutation(len(pairs))
    return pd.DataFrame(pairs, columns=["user_id:token", "item_id:token"]).assign(
        **{"rating:float": values, "timestamp:float": times}
    )


def write(folder: Path, table: pd.DataFrame) -> Path:
    folder.mkdir()
    table.to_csv(folder / "small.inter", sep="\t", index=False)
    lines = [f"i{film}\tFilm {film:02d}\t{1980 + film}\t{('Sci-Fi War', 'Drama')[film % 2]}\n" for film in range(FILMS)]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    (folder / "small.item").write_text(header + "".join(lines))
    return folder


def load(folder: Path, **changes: object) -> TaskData:
    return load_data(DataConfig(**CONFIG | {"path": folder} | changes))


def pairs(split: Split, table: pd.DataFrame) -> list[tuple[str, str]]:
    """The user and film behind a split's numbers."""
    users, films = (np.unique(table[name].to_numpy(dtype=object)) for name in ("user_id:token", "item_id:token"))
    return [(users[u], films[i]) for u, i in zip(split.columns["user"], split.columns["item"], strict=True)]


def prompts(data: TaskData) -> list[str]:
    return [*data.train.teacher, *data.validation.teacher, *data.test.teacher]


def change(table: pd.DataFrame, rows: set[tuple[str, str]]) -> pd.DataFrame:
    """Other ratings and times for some rows."""
    hit = [pair in rows for pair in zip(table["user_id:token"], table["item_id:token"], strict=True)]
    changed = table.copy()
    changed.loc[hit, "rating:float"] = 6 - changed.loc[hit, "rating:float"].replace(3, 1)
    changed.loc[hit, "timestamp:float"] += 1000
    return changed


def test_the_student_predicts_the_ratings_of_one_genre(tmp_path: Path) -> None:
    table = ratings()
    data = load(write(tmp_path / "a", table))
    assert data.task.is_regression
    assert data.modality == "ratings"
    assert [len(split) for split in (data.train, data.validation, data.test)] == [60, 15, 15]
    rating = {(row[0], row[1]): row[2] for row in table.itertuples(index=False)}
    for split in (data.train, data.validation, data.test):
        for pair, label, labelled in zip(
            pairs(split, table), split.labels.tolist(), split.labelled.tolist(), strict=True
        ):
            assert label == rating[pair] if labelled else np.isnan(label)
    assert data.train.columns["user"].dtype == torch.int64


def test_a_number_means_the_same_user_and_film_in_every_genre(tmp_path: Path) -> None:
    table = ratings().query("`user_id:token` != 'u3' or `item_id:token` in ('i1', 'i3')")  # u3 rated Drama only
    folder = write(tmp_path / "a", table)
    rating = {(row[0], row[1]): row[2] for row in table.itertuples(index=False)}
    seen = {}
    for genre, parity in (("Sci-Fi", 0), ("Drama", 1)):
        data = load(folder, genre=genre)
        found = {(pair, float(label)) for pair, label in zip(pairs(data.test, table), data.test.labels, strict=True)}
        assert all(rating[pair] == label and int(pair[1][1:]) % 2 == parity for pair, label in found)
        seen[genre] = {int(number) for number in data.train.columns["item"]}
    assert not seen["Sci-Fi"] & seen["Drama"]
    assert max(seen["Sci-Fi"] | seen["Drama"]) == FILMS - 1


def test_no_prompt_changes_with_what_is_held_out(tmp_path: Path) -> None:
    table = ratings()
    data = load(write(tmp_path / "a", table))
    hidden = [pair for pair, seen in zip(pairs(data.train, table), data.train.labelled, strict=True) if not seen]
    held_out = {*pairs(data.validation, table), *pairs(data.test, table), *hidden}
    again = load(write(tmp_path / "b", change(table, held_out)))
    assert prompts(again) == prompts(data)
    assert not torch.equal(again.test.labels, data.test.labels)


def test_a_labelled_rating_is_told_to_other_rows_and_never_to_its_own(tmp_path: Path) -> None:
    table = ratings()
    data = load(write(tmp_path / "a", table))
    row = int(torch.where(data.train.labelled)[0][0])
    user, film = pairs(data.train, table)[row]
    again = load(write(tmp_path / "b", change(table, {(user, film)})))
    assert again.train.teacher[row] == data.train.teacher[row]
    name = f"Film {int(film[1:]):02d}"
    told = [
        prompt
        for split in (again.train, again.validation, again.test)
        for (other, own), prompt in zip(pairs(split, table), split.teacher, strict=True)
        if other == user and own != film
    ]
    assert told
    assert all(name in prompt for prompt in told)
    assert all(
        prompt.count(f"Film {int(own[1:]):02d}") == 1
        for (_, own), prompt in zip(pairs(data.train, table), data.train.teacher, strict=True)
    )


def test_no_real_prompt_names_a_film_the_viewer_has_in_a_held_out_row() -> None:
    data = load_data(DataConfig(name="movielens", labelled=3000, unlabelled=1000, validation=1000, test=2000))
    folder = wheel_folder("recbole==1.2.1", "recbole/dataset_example/ml-100k")
    read = {end: pd.read_csv(folder / f"ml-100k.{end}", sep="\t", quoting=3, dtype=str) for end in ("inter", "item")}
    films = read["item"].set_index("item_id:token")
    names = films["movie_title:token_seq"] + " (" + films["release_year:token"] + ")"
    genre = {item for item, words in films["class:token_seq"].items() if "Sci-Fi" in words.split()}
    own = read["inter"][read["inter"]["item_id:token"].isin(genre)]
    assert len(own) == 12_730
    users, items = (
        np.unique(read["inter"][name].to_numpy(dtype=object)) for name in ("user_id:token", "item_id:token")
    )
    once = set(names[~names.duplicated(keep=False)])
    held_out: dict[str, set[str]] = {}
    rows = []
    for split in (data.train, data.validation, data.test):
        for user, item, label, prompt in zip(
            split.columns["user"], split.columns["item"], split.labels.tolist(), split.teacher, strict=True
        ):
            rows.append((users[user], names[items[item]], prompt))
            if split is not data.train or np.isnan(label):
                held_out.setdefault(users[user], set()).add(names[items[item]])
    for user, name, prompt in rows:
        told = prompt.removeprefix(name)
        assert told != prompt
        assert not any(f" {film}" in told for film in held_out.get(user, set()) & once), (user, prompt)


def broken(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    return table.astype(str).assign(**{column: [value, *table[column].astype(str)[1:]]})


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("rating:float", "good", "rating: label 'good' in row 1"),
        ("rating:float", "inf", "not finite"),
        ("timestamp:float", "", "time: label ''"),
        ("item_id:token", "i99", "1 rated items have no film, such as i99"),
    ],
)
def test_bad_ratings_are_refused(tmp_path: Path, column: str, value: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(write(tmp_path / "a", broken(ratings(), column, value)))


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one \*\.item file was expected and 0 are there"):
        load(tmp_path)
    folder = write(tmp_path / "a", ratings().drop(columns="timestamp:float"))
    with pytest.raises(DataError, match="column timestamp is missing; there are user_id, item_id, rating"):
        load(folder)


def test_an_unknown_genre_is_refused_with_those_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rated film has the genre 'Opera'; there are Drama, Sci-Fi, War"):
        load(write(tmp_path / "a", ratings()), genre="Opera")


def test_the_ratings_of_other_genres_join_the_training_rows_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "ml", ratings())
    plain, more = load(folder), load(folder, other_genres=True)
    for part in ("validation", "test"):
        own, same = getattr(plain, part), getattr(more, part)
        assert own.teacher == same.teacher
        for name in ("user", "item"):
            assert torch.equal(own.columns[name], same.columns[name])
    count, outside = len(plain.train), USERS * FILMS // 2
    assert len(more.train) == count + outside
    assert torch.equal(more.train.columns["item"][:count], plain.train.columns["item"])
    assert torch.equal(more.train.labelled[:count], plain.train.labelled)
    assert more.train.labelled[count:].all()
    items = {number for part in (plain.validation, plain.test) for number in part.columns["item"].tolist()}
    assert not items & set(more.train.columns["item"][count:].tolist()), "the films of the genre are in no other row"
    table = ratings()
    first = table[table["item_id:token"] == "i1"].iloc[0]
    rows = (more.train.columns["item"] == sorted({f"i{film}" for film in range(FILMS)}).index("i1")).nonzero()[:, 0]
    assert float(first["rating:float"]) in more.train.labels[rows].tolist()
