"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """As in the package's metadata; "0+source" when run from a tree that is not installed."""
    try:
        return version("nybble")
    except PackageNotFoundError:
        return "0+source"
