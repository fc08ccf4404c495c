"""The keys in force, and the books of each."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from service.admission.demand import Flow
from service.errors import InvalidApiKey, MissingScope
from service.keys.entry import ApiKey, Scope, digest_of
from service.keys.usage import KeyUsage


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request: the key and its books."""

    key: ApiKey
    usage: KeyUsage
    flow: Flow

    @property
    def priority(self) -> int:
        """The key's class; lower is served first."""
        return self.key.priority


def wall_clock() -> datetime:
    """The time of day; keys expire by it and by nothing else."""
    return datetime.now(timezone.utc)


class KeyRing:
    """The keys in force. An empty ring lets everybody in; one that has had keys never becomes empty.

    `on_change` is called with the weights by name after each change.
    """

    def __init__(
        self,
        keys: Iterable[ApiKey] = (),
        *,
        now: Callable[[], datetime] = wall_clock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._clock = clock
        self._callers: dict[str, Caller] = {}
        self._digests: tuple[tuple[bytes, str], ...] = ()
        self.on_change: Callable[[dict[str, float]], None] = lambda weights: None
        self.replace(keys)

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._callers)

    @property
    def callers(self) -> Mapping[str, Caller]:
        """The keys with their books, by name."""
        return self._callers

    @property
    def weights(self) -> dict[str, float]:
        """The keys' weights by name."""
        return {name: caller.key.weight for name, caller in self._callers.items()}

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Put these keys in force, all at once. Books go on by name; requests that run are left alone."""
        callers: dict[str, Caller] = {}
        for key in keys:
            known = self._callers.get(key.name)
            usage = KeyUsage(key.name, self._clock) if known is None else known.usage
            usage.set_limits(key.limits)
            callers[key.name] = Caller(key, usage, Flow(key.name, key.weight, usage))
        self._digests = tuple(
            (digest, name) for name, caller in callers.items() for digest in caller.key.digests
        )
        self._callers = callers
        self.on_change(self.weights)

    def identify(self, presented: bytes, scope: Scope) -> Caller:
        """Who has this key. Raises InvalidApiKey (also for an expired one) and MissingScope."""
        caller = self._find(presented)
        if caller is None:
            raise InvalidApiKey("The API key is not valid here.")
        key = caller.key
        if key.expires is not None and key.expired(self._now()):
            raise InvalidApiKey(
                f"The API key '{key.name}' expired on {key.expires.isoformat(timespec='seconds')}; "
                "ask the server's operator for a new one."
            )
        if scope not in key.scopes:
            has = ", ".join(sorted(item.value for item in key.scopes))
            raise MissingScope(
                f"The API key '{key.name}' has insufficient permissions for this path. "
                f"Missing scope: {scope.value}; it has: {has}."
            )
        return caller

    def _find(self, presented: bytes) -> Caller | None:
        """Takes the same time whichever key it is, or none."""
        digest = digest_of(presented)
        found: str | None = None
        for known, name in self._digests:
            if hmac.compare_digest(digest, known):
                found = name
        return None if found is None else self._callers[found]
