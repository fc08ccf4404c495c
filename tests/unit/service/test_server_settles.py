"""The server settles its memory once, when the model is ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.base import EngineOptions
from engines.echo import EchoEngine
from service import server
from service.app import create_app
from service.server import DrainingServer
from service.settings import ServiceSettings


async def test_once_and_not_before_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[str] = []
    monkeypatch.setattr(server, "settle_memory", lambda: settled.append("settled"))
    settings = ServiceSettings(checkpoint=tmp_path)
    app = create_app(settings, lambda: EchoEngine(EngineOptions()))
    draining = DrainingServer(app, settings)
    assert not await draining.on_tick(1)
    assert settled == []
    app.state.service.lifecycle.mark_ready()
    assert not await draining.on_tick(2)
    assert not await draining.on_tick(3)
    assert settled == ["settled"]
