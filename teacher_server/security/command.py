"""The command `teacher-server token`: add, list, revoke; the one place where a secret is shown, once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from command_config import hint
from command_config.line import Json, add_commands
from teacher_server.examples import TOKEN_EXAMPLES
from teacher_server.security.tokens import add_token, read_tokens, revoke
from teaching_protocol.errors import ConfigError, TeachingError

__all__ = ["tokens"]

tokens = typer.Typer(no_args_is_help=True, help="Tokens that let students in: add, list, revoke.")

Name = Annotated[str, typer.Argument(help="The identity: letters, digits and ._@-")]
File = Annotated[Path, typer.Option("--tokens", help="The token file, as given to serve.")]
_FILE = Path("teacher-tokens.json")


def add(
    name: Name,
    file: File = _FILE,
    output: Annotated[
        Path | None, typer.Option(help="New file for the token, mode 600, instead of the screen.")
    ] = None,
) -> None:
    """Makes a token for NAME and shows it, once; the file keeps a salted hash of it. A running server sees it at once."""
    if output is not None and output.exists():
        raise ConfigError(f"--output {output} is there already; give a new file, so that no token is lost")
    if output is None:
        typer.echo(add_token(file, name))
    else:  # opened first: a token that cannot be written down is not made
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
            try:
                new.write(add_token(file, name) + "\n")
            except TeachingError:
                output.unlink()
                raise
    where = "above" if output is None else f"in {output}"
    typer.echo(f"the token of {name} is {where}; it is shown this once. {file} has its hash", err=True)


def show(file: File = _FILE, as_json: Json = False) -> None:
    """Shows names, ids and dates; no secret is known here."""
    known = read_tokens(file)
    if as_json:
        shown = [{"name": each.name, "id": each.id, "created": each.created} for each in known.tokens]
        typer.echo(json.dumps({"tokens": shown, "revoked": sorted(known.revoked)}, indent=1))
        return
    for each in known.tokens:
        typer.echo(f"{each.name}\t{each.id}\t{each.created}")
    for name in known.revoked:
        typer.echo(f"{name}\trevoked")


def take_away(
    name: Name,
    file: File = _FILE,
    token_id: Annotated[
        str | None, typer.Option("--id", help="One token of the name, to change it for a new one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Takes all tokens of NAME away; a running server ends its sessions, and refuses certificates of that name, too."""
    count = revoke(file, name, token_id)
    if as_json:
        typer.echo(json.dumps({"name": name, "revoked": count}))
        return
    typer.echo(f"{count} {'token' if count == 1 else 'tokens'} of {name} revoked")
    if not count:
        others = {each.name for each in read_tokens(file).tokens}
        typer.echo(f"{name} had no token; its certificates are refused from now on{hint(name, others)}", err=True)


add_commands(tokens, {"add": add, "list": show, "revoke": take_away}, TOKEN_EXAMPLES)
