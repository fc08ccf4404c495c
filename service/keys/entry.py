"""One API key: who, what for, until when, how much. The key itself is never held, only its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum


class Scope(str, Enum):
    """What a key may be used for."""

    INFERENCE = "inference"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Limits of one key; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An entry of the key file; with several digests while one secret is replaced by another.

    `priority`: lower is served first. `weight`: its share of the engine beside other keys'.
    """

    name: str
    digests: tuple[bytes, ...] = field(repr=False)
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE, Scope.METRICS})
    expires: datetime | None = None
    limits: KeyLimits = KeyLimits()
    priority: int = 0
    weight: float = 1.0

    def expired(self, now: datetime) -> bool:
        """Whether the key is no longer good; `now` is the wall clock's time with its zone."""
        return self.expires is not None and now >= self.expires


def digest_of(key: bytes) -> bytes:
    """SHA-256. Keys are long and random, so neither salt nor a slow hash would add anything."""
    return hashlib.sha256(key).digest()
