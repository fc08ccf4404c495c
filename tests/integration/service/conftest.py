"""A running server and clients for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.service import RunningServer, run_server


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """A tiny real checkpoint; the echo engine reads its config, the service its tokenizer and template."""
    return Path(__file__).parents[2] / "golden" / "mistral-mxfp4-ct"


@pytest.fixture(scope="session")
def echo(checkpoint: Path) -> Iterator[RunningServer]:
    """A fast server with default settings."""
    with run_server(checkpoint) as server:
        yield server


@pytest.fixture
def client(echo: RunningServer) -> Iterator[openai.OpenAI]:
    """The official client, validating every answer strictly."""
    with echo.client() as client:
        yield client


@pytest.fixture
def http(echo: RunningServer) -> Iterator[httpx.Client]:
    """A plain client, for what the official one would not send."""
    with httpx.Client(base_url=echo.url, timeout=30) as client:
        yield client
