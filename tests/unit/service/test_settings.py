"""Where settings come from, and what they turn into."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from engines.base import EngineOptions
from service.settings import ServiceSettings


def test_defaults_are_those_of_the_engine() -> None:
    options = ServiceSettings(checkpoint=Path("m")).engine_options()
    assert options == EngineOptions(checkpoint=Path("m"))


def test_the_environment_and_what_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NYBBLE_CHECKPOINT", "/models/a")
    monkeypatch.setenv("NYBBLE_PORT", "9000")
    monkeypatch.setenv("NYBBLE_KV_CACHE_MEMORY_BYTES", "4GiB")
    monkeypatch.setenv("NYBBLE_SERVED_MODEL_NAMES", "big, org/big")
    settings = ServiceSettings.model_validate({"port": 9001})
    assert settings.port == 9001
    assert settings.model_names == ("big", "org/big")
    assert settings.engine_options().kv_cache_memory_bytes == 4 * 2**30
    assert settings.checkpoint == Path("/models/a")
    monkeypatch.setenv("NYBBLE_KV_CACHE_DTYPE", "fp8")
    assert ServiceSettings().engine_options().kv_cache_dtype == "fp8"


@pytest.mark.parametrize(
    "fields",
    [
        {"port": -1},
        {"numerics": "slow"},
        {"kv_cache_dtype": "int4"},
        {"max_num_seqs": 0},
        {"drain_timeout_seconds": float("inf")},
    ],
)
def test_bad_values_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        ServiceSettings.model_validate({"checkpoint": "m", **fields})
