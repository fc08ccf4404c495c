"""The processor's name and features, as the operating system tells them."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

# Those our kernels choose by, and a few that explain the choice.
_KNOWN_FEATURES = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
    "sve2",
)


def processor() -> tuple[str, tuple[str, ...]]:
    """Its name (the architecture's where it has none) and those of its features that matter to kernels."""
    try:
        text = _CPUINFO.read_text(errors="replace")
    except OSError:
        text = ""
    name, flags = parse_cpuinfo(text)
    return name or platform.machine(), tuple(feature for feature in _KNOWN_FEATURES if feature in flags)


def parse_cpuinfo(text: str) -> tuple[str | None, frozenset[str]]:
    """The model's name, if it is told, and all feature flags of the first core (x86 and Arm)."""
    name: str | None = None
    flags: frozenset[str] = frozenset()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name" and name is None:
            name = value
        elif key in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
    return name, flags
