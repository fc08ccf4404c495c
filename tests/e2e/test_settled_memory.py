"""Full rounds of the garbage collector leave what was made at start-up alone."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc
from service.settled_memory import settle_memory
import service.app

settle_memory()
assert gc.get_freeze_count() > 50_000, gc.get_freeze_count()
assert len(gc.get_objects()) < 2_000, len(gc.get_objects())
"""


def test_nothing_of_the_start_is_looked_at_again() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
