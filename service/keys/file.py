"""Reading keys: a plain key a line, TOML with entries, or a folder of such files (a mounted secret)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from service.keys.entry import ApiKey, KeyLimits, Scope, digest_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRIORITY_CLASSES = {"high": -100, "normal": 0, "low": 100}

_MAX_FILE_BYTES = 4 * 1024 * 1024

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
Secret = Annotated[str, StringConstraints(pattern=r"^\S{8,512}$")]
Count = Annotated[int, Field(ge=1)]


class KeyFileError(Exception):
    """The key file cannot be read, is malformed, or holds no key."""


class KeyEntry(BaseModel):
    """A `[[keys]]` table. Several digests: the old and the new key while one is replaced by the other."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Name
    sha256: Digest | Annotated[list[Digest], Field(min_length=1)] | None = None
    key: Secret | None = Field(default=None, repr=False)
    scopes: Annotated[list[Scope], Field(min_length=1)] = [Scope.INFERENCE]
    expires: AwareDatetime | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrent_requests: Count | None = None
    priority: str = "normal"
    weight: float = Field(default=1.0, ge=0.001, le=1000, allow_inf_nan=False)

    def digests(self) -> tuple[bytes, ...]:
        """SHA-256 of every form in which the key is given."""
        written = [self.sha256] if isinstance(self.sha256, str) else self.sha256 or []
        found = [bytes.fromhex(text) for text in written]
        if self.key is not None:
            found.append(digest_of(self.key.encode()))
        return tuple(dict.fromkeys(found))


class KeyFile(BaseModel):
    """The whole file. `priority_classes` adds classes to high, normal and low, or renumbers them."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: Annotated[list[KeyEntry], Field(min_length=1)]
    priority_classes: dict[str, Annotated[int, Field(ge=-1_000_000, le=1_000_000)]] = {}


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file, or of all files in a folder. Raises KeyFileError, whose message holds no key."""
    keys = [key for file in key_files(path) for key in _read_file(file, in_folder=file != path)]
    if not keys:
        raise KeyFileError(f"the API key file {path} holds no key; write one key a line or drop the option")
    _refuse_duplicates(path, keys)
    return keys


def key_files(path: Path) -> list[Path]:
    """The file itself, or what lies in the folder; names that begin with a dot are a mount's own business."""
    try:
        if not path.is_dir():
            return [path]
        return sorted(item for item in path.iterdir() if not item.name.startswith(".") and item.is_file())
    except OSError as error:
        raise KeyFileError(f"cannot read the API key folder {path}: {error.strerror}") from None


def _read_file(path: Path, *, in_folder: bool) -> list[ApiKey]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise KeyFileError(f"the API key file {path} is larger than {_MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise KeyFileError(f"cannot read the API key file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"cannot read the API key file {path}: it is no UTF-8 text") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if any(line.startswith("[") for _, line in lines):
        return list(_toml_keys(path, text))
    return list(_plain_keys(path, lines, prefix=path.name if in_folder else "key"))


def _plain_keys(path: Path, lines: list[tuple[int, str]], prefix: str) -> Iterator[ApiKey]:
    for index, (number, line) in enumerate(lines, 1):
        if len(line.split()) > 1:
            raise KeyFileError(
                f"{path}, line {number}: expected one key, without blanks (or TOML with [[keys]] tables)"
            )
        name = prefix if len(lines) == 1 and prefix != "key" else f"{prefix}-{index}"
        yield ApiKey(name, (digest_of(line.encode()),))


def _toml_keys(path: Path, text: str) -> Iterator[ApiKey]:
    try:
        content: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The parser names a place, never the value there.
        raise KeyFileError(f"the API key file {path} is not valid TOML: {error}") from None
    try:
        parsed = KeyFile.model_validate(content)
    except ValidationError as error:
        raise KeyFileError(f"the API key file {path}: {_first_mistake(error)}") from None
    classes = {**PRIORITY_CLASSES, **parsed.priority_classes}
    for entry in parsed.keys:
        digests = entry.digests()
        if not digests:
            raise KeyFileError(
                f"{path}: key '{entry.name}' has neither `sha256` nor `key`; see `nybble keys create`"
            )
        if entry.priority not in classes:
            raise KeyFileError(
                f"{path}: key '{entry.name}' has the priority {entry.priority[:50]!r}; "
                f"expected one of: {', '.join(classes)}"
            )
        yield ApiKey(
            name=entry.name,
            digests=digests,
            scopes=frozenset(entry.scopes),
            expires=entry.expires,
            limits=KeyLimits(
                entry.requests_per_minute, entry.tokens_per_minute, entry.max_concurrent_requests
            ),
            priority=classes[entry.priority],
            weight=entry.weight,
        )


def _first_mistake(error: ValidationError) -> str:
    """Where and what, but not the value: it may be a key."""
    first = error.errors(include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}"


def _refuse_duplicates(path: Path, keys: list[ApiKey]) -> None:
    names: set[str] = set()
    owners: dict[bytes, str] = {}
    for key in keys:
        if key.name in names:
            raise KeyFileError(f"{path}: two keys have the name '{key.name}'; give each its own")
        names.add(key.name)
        for digest in key.digests:
            if (owner := owners.setdefault(digest, key.name)) != key.name:
                raise KeyFileError(f"{path}: '{owner}' and '{key.name}' are the same key; remove one")
