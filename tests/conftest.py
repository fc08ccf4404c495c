"""Marks every test by the folder it lies in, and knows where the golden data are."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
KINDS = {"unit", "contract", "integration", "e2e", "faults", "hostile"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in KINDS:
            item.add_marker(getattr(pytest.mark, folder))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of vectors and tiny checkpoints made by the libraries that own the formats."""
    return TESTS / "golden"
