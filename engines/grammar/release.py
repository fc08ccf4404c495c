"""Which release of llguidance is installed, and what that means for structured output."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

_BOUNDS_WHITE_SPACE = Version("1.7")


def shortcoming() -> str | None:
    """What this release does not do, as a sentence with the remedy; None for one that does it all.

    TensorRT-LLM pins an older one than the service would take by itself.
    """
    installed = version("llguidance")
    if Version(installed) >= _BOUNDS_WHITE_SPACE:
        return None
    return (
        f"llguidance {installed} does not bound the white space between JSON's tokens: an answer after a "
        "JSON Schema may go on with it until max_tokens; `pip install --upgrade llguidance` "
        f"({_BOUNDS_WHITE_SPACE} or newer) ends that, TensorRT-LLM's pin notwithstanding"
    )
