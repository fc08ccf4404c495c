"""The flags of `nybble serve` beside the settings that they change."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import TypeAdapter

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


@pytest.mark.parametrize("name", SettingFlags.__annotations__)
def test_the_help_ends_with_the_default(name: str) -> None:
    annotation = get_type_hints(SettingFlags, include_extras=True)[name]
    shown = re.fullmatch(r".*\[(.+)\]", annotation.__metadata__[0].help)
    assert shown is not None
    field = ServiceSettings.model_fields[name]
    assert field.annotation is not None
    if field.default not in (None, "", ()):  # otherwise the help says what happens without a value
        assert TypeAdapter(field.annotation).validate_python(shown[1]) == field.default
