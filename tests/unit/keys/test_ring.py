"""Who is let in for what, and what a change of the file does."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.errors import InvalidApiKey, MissingScope
from service.keys import ring as ring_module
from service.keys.entry import ApiKey, KeyLimits, Scope, digest_of
from service.keys.file import KeyFileError
from service.keys.metrics import KeyMetrics
from service.keys.ring import KeyRing
from service.keys.watch import KeyWatch

NOW = datetime(2030, 6, 1, tzinfo=timezone.utc)


def key(name: str, secret: bytes, **fields: Any) -> ApiKey:
    return ApiKey(name, (digest_of(secret),), **fields)


def test_each_key_is_known_by_its_secret_only() -> None:
    ring = KeyRing([key("alice", b"one"), key("bob", b"two")])
    assert ring.identify(b"two", Scope.INFERENCE).key.name == "bob"
    for wrong in (b"", b"tw", b"two ", b"TWO", digest_of(b"two"), digest_of(b"two").hex().encode()):
        with pytest.raises(InvalidApiKey):
            ring.identify(wrong, Scope.INFERENCE)


def test_all_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    original = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append(right)
        return original(left, right)

    monkeypatch.setattr(ring_module.hmac, "compare_digest", compare)
    ring = KeyRing([key(str(number), str(number).encode()) for number in range(5)])
    for secret in (b"0", b"4", b"none"):
        compared.clear()
        try:
            ring.identify(secret, Scope.INFERENCE)
        except InvalidApiKey:
            assert secret == b"none"
        assert len(compared) == 5


def test_scopes() -> None:
    ring = KeyRing([key("m", b"m", scopes=frozenset({Scope.METRICS}))])
    assert ring.identify(b"m", Scope.METRICS)
    with pytest.raises(MissingScope, match="Missing scope: inference; it has: metrics"):
        ring.identify(b"m", Scope.INFERENCE)


def test_expiry_goes_by_the_wall_clock_and_limits_do_not() -> None:
    now = NOW
    ring = KeyRing(
        [key("a", b"a", expires=NOW + timedelta(hours=1), limits=KeyLimits(requests_per_minute=1))],
        now=lambda: now,
        clock=lambda: 5.0,
    )
    caller = ring.identify(b"a", Scope.INFERENCE)
    caller.usage.begin(1)
    now += timedelta(hours=1)  # the clock is set forward
    with pytest.raises(InvalidApiKey, match="'a' expired on 2030-06-01T01:00:00"):
        ring.identify(b"a", Scope.INFERENCE)
    assert caller.usage.headers()["x-ratelimit-remaining-requests"] == "0"


def test_replacing_keys_keeps_the_books_of_those_that_stay() -> None:
    ring = KeyRing([key("a", b"old"), key("b", b"b", weight=3.0)])
    weights: list[dict[str, float]] = []
    ring.on_change = weights.append
    caller = ring.identify(b"old", Scope.INFERENCE)
    caller.usage.begin(1)
    ring.replace([key("a", b"new")])
    assert weights == [{"a": 1.0}]
    with pytest.raises(InvalidApiKey):
        ring.identify(b"old", Scope.INFERENCE)
    assert ring.identify(b"new", Scope.INFERENCE).usage is caller.usage


def watched(path: Path) -> tuple[KeyRing, KeyWatch, CollectorRegistry]:
    registry = CollectorRegistry()
    ring = KeyRing()
    watch = KeyWatch(path, ring, KeyMetrics(ring, registry))
    watch.load()
    return ring, watch, registry


async def until_known(ring: KeyRing, secret: bytes) -> None:
    for _ in range(500):
        try:
            ring.identify(secret, Scope.INFERENCE)
        except InvalidApiKey:
            await asyncio.sleep(0.01)
        else:
            return
    pytest.fail("the new key is not in force after 5 s")


async def test_a_write_in_place_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n")
    ring, watch, _ = watched(path)
    async with watch.running():
        path.write_text("two\n")
        await until_known(ring, b"two")
    with pytest.raises(InvalidApiKey):
        ring.identify(b"one", Scope.INFERENCE)


async def test_the_exchange_of_a_mounted_secret_is_seen(tmp_path: Path) -> None:
    """Kubernetes mounts keys -> ..data/keys, ..data -> a dated folder, and exchanges the middle link."""
    for version, secret in (("..1", "one"), ("..2", "two")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(secret)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys").symlink_to("..data/keys")
    ring, watch, _ = watched(tmp_path / "keys")
    async with watch.running():
        (tmp_path / "..new").symlink_to("..2")
        os.replace(tmp_path / "..new", tmp_path / "..data")
        await until_known(ring, b"two")


async def test_a_broken_file_keeps_the_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text("one-secret\n")
    ring, watch, registry = watched(path)
    async with watch.running():
        path.write_text("[[keys]\nkey = 'two-secret'")
        for _ in range(500):
            if registry.get_sample_value("nybble_key_file_healthy") == 0:
                break
            await asyncio.sleep(0.01)
        assert ring.identify(b"one-secret", Scope.INFERENCE)
        assert registry.get_sample_value("nybble_key_file_reloads_total", {"result": "error"}) == 1
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "secret" not in caplog.text
        path.write_text("three\n")
        await until_known(ring, b"three")
    assert registry.get_sample_value("nybble_key_file_healthy") == 1


def test_a_file_that_has_gone_keeps_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n")
    ring, watch, _ = watched(path)
    path.unlink()
    with pytest.raises(KeyFileError, match="cannot read"):
        watch.reload()
    assert ring.identify(b"one", Scope.INFERENCE)


async def test_an_unexpected_failure_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n")
    ring, watch, registry = watched(path)
    async with watch.running():
        with monkeypatch.context() as patched:
            patched.setattr("service.keys.watch.read_keys", lambda path: 1 // 0)
            path.write_text("two\n")
            for _ in range(500):
                if registry.get_sample_value("nybble_key_file_healthy") == 0:
                    break
                await asyncio.sleep(0.01)
        assert "ZeroDivisionError" in caplog.text
        path.write_text("three\n")
        await until_known(ring, b"three")
