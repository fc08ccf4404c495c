"""New keys without a restart: the file is looked at every second, and at once on SIGHUP or a request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from service.keys.file import KeyFileError, key_files, read_keys
from service.keys.metrics import KeyMetrics
from service.keys.ring import KeyRing

log = logging.getLogger("nybble.keys")

_POLL_SECONDS = 1.0


class KeyWatch:
    """Keeps a ring equal to its file. A file that cannot be used leaves the ring as it is.

    The content is compared, through whatever symbolic links lead to it, so that the exchange of a mounted
    secret's folder is seen as well as a write in place.
    """

    def __init__(self, path: Path, ring: KeyRing, metrics: KeyMetrics) -> None:
        self._path = path
        self._ring = ring
        self._metrics = metrics
        self._seen = b""
        self._wake = asyncio.Event()

    def load(self) -> None:
        """Read the keys for the first time. Raises KeyFileError."""
        self._seen = self._fingerprint()
        self._ring.replace(read_keys(self._path))
        self._metrics.reloaded(ok=True)

    def reload(self) -> None:
        """Read the keys again. Raises KeyFileError and then keeps those there are."""
        self._seen = self._fingerprint()
        try:
            keys = read_keys(self._path)
        except KeyFileError as error:
            self._metrics.reloaded(ok=False)
            log.error("the API keys are kept as they were: %s", error)
            raise
        before = set(self._ring.callers)
        self._ring.replace(keys)
        self._metrics.reloaded(ok=True)
        after = set(self._ring.callers)
        log.info(
            "API keys read again: %d keys; new: %s; gone: %s",
            len(after),
            ", ".join(sorted(after - before)) or "none",
            ", ".join(sorted(before - after)) or "none",
        )

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _POLL_SECONDS)
            asked, changed = self._wake.is_set(), await asyncio.to_thread(self._fingerprint) != self._seen
            self._wake.clear()
            if asked or changed:
                self._try_reload()

    def _try_reload(self) -> None:
        try:
            self.reload()
        except KeyFileError:
            pass  # said in the log
        except Exception as error:
            # Whatever it is, the next version of the file has to be looked at as well.
            self._metrics.reloaded(ok=False)
            log.error("the API keys are kept as they were", exc_info=error)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look for the length of the block; SIGHUP makes it look at once."""
        loop = asyncio.get_running_loop()
        catches_signals = threading.current_thread() is threading.main_thread()
        if catches_signals:
            loop.add_signal_handler(signal.SIGHUP, self._wake.set)
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            if catches_signals:
                loop.remove_signal_handler(signal.SIGHUP)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _fingerprint(self) -> bytes:
        digest = hashlib.sha256()
        try:
            for file in key_files(self._path):
                content = file.read_bytes()
                digest.update(f"{file.name}\0{len(content)}\0".encode() + content)
        except (KeyFileError, OSError) as error:
            return repr(error).encode()
        return digest.digest()
