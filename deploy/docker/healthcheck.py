"""Docker's HEALTHCHECK: status 0 when the server in this container is well. Imports nothing of the package.

    python healthcheck.py [live|ready|startup]

The port is NYBBLE_HEALTH_PORT; its default is the main port plus one.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

_TIMEOUT_SECONDS = 4.0


def health_url(probe: str) -> str:
    """Where the probe is asked, by the environment that the server reads too."""
    port = os.environ.get("NYBBLE_HEALTH_PORT") or str(int(os.environ.get("NYBBLE_PORT", "8000")) + 1)
    return f"http://127.0.0.1:{port}/health/{probe}"


def main() -> int:
    """0 for an answer of 200, 1 for anything else."""
    url = health_url(sys.argv[1] if len(sys.argv) > 1 else "ready")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
