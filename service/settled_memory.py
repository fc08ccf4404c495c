"""Taking what was made at start-up out of the garbage collector's rounds."""

from __future__ import annotations

import gc


def settle_memory() -> None:
    """Collect once, and never look at what is left again.

    A full round over the modules and the tokenizer holds the interpreter for 0.07 s and more, and with it
    every stream and every health check. They live as long as the process, so nothing is gained by it.
    """
    gc.collect()
    gc.freeze()
