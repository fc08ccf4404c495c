"""Asks the health port every 100 ms in a process of its own, so that only the server can make it slow.

`python -m benchmarks.soak.prober PORT`: prints one line per probe, "seconds status", until its input ends.
"""

from __future__ import annotations

import http.client
import select
import sys
import time

EVERY_SECONDS = 0.1
_PATHS = ("/health/ready", "/health/live")


def probe(port: int, path: str) -> tuple[float, int]:
    """Seconds of one GET over a new connection, and its status; 0 when there was no answer."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return time.perf_counter() - started, response.status
    except (OSError, http.client.HTTPException):
        return time.perf_counter() - started, 0
    finally:
        connection.close()


def main() -> None:
    """The command line."""
    port = int(sys.argv[1])
    number = 0
    while not select.select([sys.stdin], [], [], EVERY_SECONDS)[0]:
        seconds, status = probe(port, _PATHS[number % len(_PATHS)])
        print(f"{seconds:.6f} {status}", flush=True)
        number += 1


if __name__ == "__main__":
    main()
