"""Key files: what they may hold, and mistakes explained without giving a key away."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from service.keys.entry import KeyLimits, Scope, digest_of
from service.keys.file import KeyFileError, read_keys

HASH = digest_of(b"the-secret-of-alice").hex()
FULL = f"""
[priority_classes]
background = 500

[[keys]]
name = "alice"
sha256 = "{HASH}"
scopes = ["inference", "metrics"]
expires = 2031-01-31T00:00:00+01:00
requests_per_minute = 60
tokens_per_minute = 10000
max_concurrent_requests = 4
priority = "background"
weight = 2.5

[[keys]]
name = "bob"
key = "the-secret-of-bob"
"""


def write(folder: Path, text: str, name: str = "keys") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_field(tmp_path: Path) -> None:
    alice, bob = read_keys(write(tmp_path, FULL))
    assert (alice.name, alice.digests) == ("alice", (bytes.fromhex(HASH),))
    assert alice.scopes == {Scope.INFERENCE, Scope.METRICS}
    assert alice.limits == KeyLimits(60, 10000, 4)
    assert (alice.priority, alice.weight) == (500, 2.5)
    assert alice.expires == datetime(2031, 1, 30, 23, tzinfo=timezone.utc)
    assert bob.digests == (digest_of(b"the-secret-of-bob"),)
    assert (bob.scopes, bob.expires, bob.limits) == ({Scope.INFERENCE}, None, KeyLimits())
    assert (bob.priority, bob.weight) == (0, 1.0)


def test_a_plain_key_a_line(tmp_path: Path) -> None:
    keys = read_keys(write(tmp_path, "\ufeff# staff\nfirst=\n\n  second  \r\n"))
    assert [(key.name, key.digests) for key in keys] == [
        ("key-1", (digest_of(b"first="),)),
        ("key-2", (digest_of(b"second"),)),
    ]
    assert keys[0].scopes == {Scope.INFERENCE, Scope.METRICS}


def test_the_old_and_the_new_secret_of_one_key(tmp_path: Path) -> None:
    other = digest_of(b"new").hex().upper()
    (key,) = read_keys(write(tmp_path, f'[[keys]]\nname = "a"\nsha256 = ["{HASH}", "{other}"]\n'))
    assert key.digests == (bytes.fromhex(HASH), bytes.fromhex(other))


def test_a_folder_of_files(tmp_path: Path) -> None:
    write(tmp_path, "the-secret-of-carol\n", "carol")
    write(tmp_path, "one\ntwo\n", "team")
    write(tmp_path, FULL, "entries.toml")
    (tmp_path / "..data").mkdir()
    write(tmp_path, "not a key", ".hidden")
    assert [key.name for key in read_keys(tmp_path)] == ["carol", "alice", "bob", "team-1", "team-2"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no key"),
        ("# only a comment\n", "holds no key"),
        ("two words\n", "line 1: expected one key"),
        ("[[keys]\nname = 1", "not valid TOML"),
        ("[keys]\n", "keys: Input should be a valid list"),
        ("[[keys]]\n", "keys.0.name: Field required"),
        ('[[keys]]\nname = "a"', "'a' has neither `sha256` nor `key`"),
        ('[[keys]]\nname = "a"\nkey = "short"', "keys.0.key"),
        ('[[keys]]\nname = "a b"\nkey = "secret-secret"', "keys.0.name"),
        ('[[keys]]\nname = "a"\nkey = "secret-secret"\nlimit = 3', "keys.0.limit: Extra inputs"),
        (
            '[[keys]]\nname = "a"\nkey = "secret-secret"\nscopes = ["root"]',
            "'inference', 'metrics' or 'admin'",
        ),
        ('[[keys]]\nname = "a"\nkey = "secret-secret"\nscopes = []', "keys.0.scopes"),
        ('[[keys]]\nname = "a"\nkey = "secret-secret"\nexpires = 2031-01-31T00:00:00', "timezone"),
        ('[[keys]]\nname = "a"\nkey = "secret-secret"\npriority = "top"', "high, normal, low"),
        ('[[keys]]\nname = "a"\nkey = "secret-secret"\nrequests_per_minute = 0', "requests_per_minute"),
        ('[[keys]]\nname = "a"\nkey = "secret-secret"\nweight = nan', "keys.0.weight"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH[:-1]}"', "keys.0.sha256"),
        (
            '[[keys]]\nname = "a"\nkey = "secret-1"\n[[keys]]\nname = "a"\nkey = "secret-2"',
            "two keys have the name",
        ),
        (
            '[[keys]]\nname = "a"\nkey = "secret-1"\n[[keys]]\nname = "b"\nkey = "secret-1"',
            "are the same key",
        ),
    ],
)
def test_mistakes_are_explained_without_the_key(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(KeyFileError, match=re.escape(reason)) as caught:
        read_keys(write(tmp_path, text))
    assert "secret" not in str(caught.value)
    assert HASH[:-1] not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot read"):
        read_keys(tmp_path / "absent")
    with pytest.raises(KeyFileError, match="holds no key"):
        read_keys(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KeyFileError, match="UTF-8"):
        read_keys(tmp_path / "binary")
    (tmp_path / "huge").write_bytes(b"x" * (4 * 2**20 + 1))
    with pytest.raises(KeyFileError, match="larger than"):
        read_keys(tmp_path / "huge")


def test_a_key_shows_no_digest_when_printed(tmp_path: Path) -> None:
    (alice, _) = read_keys(write(tmp_path, FULL))
    assert "digest" not in repr(alice)
    assert str(bytes.fromhex(HASH)) not in repr(alice)
