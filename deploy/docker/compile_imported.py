"""Byte-compile what a start of the server imports, and nothing else.

An image whose root is read-only cannot cache byte code, and compiling all of transformers would double it.
The byte code is valid whatever the files' times say (unchecked hashes), so the layer is reproducible.
"""

from __future__ import annotations

import importlib
import py_compile
import runpy
import sys


def main(arguments: list[str]) -> None:
    """Run the command `nybble ARGUMENTS` in this process, then compile every module it imported."""
    sys.dont_write_bytecode = True
    sys.argv = ["nybble", *arguments]
    for module in ("service.app", "service.server"):
        importlib.import_module(module)
    try:
        runpy.run_module("service.cli", run_name="service.cli")["main"]()
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    for file in sorted(name for name in files if name and name.endswith(".py")):
        py_compile.compile(
            file, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )


if __name__ == "__main__":
    main(sys.argv[1:])
