"""The flags of `nybble serve` beside the settings that they change."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from service.setting_flags import SettingFlags, with_setting_flags
from service.settings import ServiceSettings


def test_every_flag_has_its_setting() -> None:
    assert SettingFlags.__annotations__.keys() <= ServiceSettings.model_fields.keys()


def test_flags_come_after_a_commands_own_parameters() -> None:
    @with_setting_flags
    def command(config: Path | None = None, **settings: Any) -> None: ...

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["config", *SettingFlags.__annotations__]
    assert all(parameter.default is None for parameter in parameters.values())
