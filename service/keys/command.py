"""`nybble keys create` and `nybble keys check`."""

from __future__ import annotations

import re
import secrets
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from service.keys.entry import ApiKey, Scope, digest_of
from service.keys.file import read_keys

_KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")

keys_app = typer.Typer(name="keys", help="Make and check API keys.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(keys_app)


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose key it is; shown in metrics and logs.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="inference, metrics or admin; repeat it. [inference]")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="ISO 8601 with a zone, as 2027-01-31T00:00:00Z. [never]")
    ] = None,
) -> None:
    """Make a random key.

    It is shown this once, on standard error; its entry, with the hash only, goes to standard output.
    """
    if not _NAME.fullmatch(name):
        raise typer.BadParameter(f"--name is {name[:64]!r}; expected letters, digits and . _ @ - (up to 64)")
    scopes = [_scope(text) for text in scope or [Scope.INFERENCE.value]]
    moment = None if expires is None else _moment(expires)
    key = "sk-nybble-" + secrets.token_urlsafe(_KEY_BYTES)
    written = ", ".join(f'"{item.value}"' for item in dict.fromkeys(scopes))
    typer.echo(f"# The key, to be given to '{name}'. It is not shown again:", err=True)
    typer.echo(key, err=True)
    typer.echo("# The entry for the file that --api-key-file names (standard output):", err=True)
    typer.echo("[[keys]]")
    typer.echo(f'name = "{name}"')
    typer.echo(f'sha256 = "{digest_of(key.encode()).hex()}"')
    typer.echo(f"scopes = [{written}]")
    if moment is not None:
        typer.echo(f"expires = {moment.isoformat(timespec='seconds')}")


@keys_app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Key file or folder of key files.")],
) -> None:
    """Read a key file as the server would, and list what it holds. Status 1 if it cannot be used."""
    now = datetime.now(timezone.utc)
    for key in read_keys(path):
        typer.echo(_line(key, now))


def _line(key: ApiKey, now: datetime) -> str:
    limits = key.limits
    expiry = "never expires" if key.expires is None else f"expires {key.expires.isoformat()}"
    parts = [
        key.name,
        ",".join(sorted(scope.value for scope in key.scopes)),
        "EXPIRED " + expiry.removeprefix("expires ") if key.expired(now) else expiry,
        f"priority {key.priority}",
        f"weight {key.weight:g}",
    ]
    for value, unit in (
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.max_concurrent_requests, "at a time"),
    ):
        if value is not None:
            parts.append(f"{value} {unit}")
    return "  ".join(parts)


def _scope(text: str) -> Scope:
    try:
        return Scope(text)
    except ValueError:
        known = ", ".join(scope.value for scope in Scope)
        raise typer.BadParameter(f"--scope is {text!r}; expected one of: {known}") from None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise typer.BadParameter(
            f"--expires is {text!r}; expected ISO 8601 with a zone, as in 2027-01-31T00:00:00Z"
        )
    if moment <= datetime.now(timezone.utc):
        raise typer.BadParameter(f"--expires is {text!r}, which has passed")
    return moment
