"""Where settings come from: the flag, else the environment, else the file, else the default."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from service.settings import ServiceSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT_PREFIX = "NYBBLE_"
CONFIG_VARIABLE = "NYBBLE_CONFIG"

# Read by others than the settings.
_OTHER_VARIABLES = frozenset({CONFIG_VARIABLE})
_MAX_FILE_BYTES = 2**20
# https://user:password@host: the part before the @.
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class ConfigurationError(Exception):
    """The configuration file or a value in it, in the environment or in a flag cannot be used."""

    exit_status = 1


class MissingSetting(ConfigurationError):
    """Something that has no default was not given at all: a mistake in the command, so to say."""

    exit_status = 2


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings in force. `sources` says for each field that was set where that was done."""

    settings: ServiceSettings
    sources: Mapping[str, str]
    unknown_variables: tuple[str, ...] = ()

    def shown(self) -> Iterator[tuple[str, object, str]]:
        """(name, value, source) of every field, as may be shown; the source of a default is empty."""
        for name, value in self.settings.model_dump(mode="json").items():
            source = self.sources.get(name, "")
            yield name, _CREDENTIALS.sub("***", value) if isinstance(value, str) else value, source

    def as_toml(self) -> str:
        """A file that would set the same, the defaults as comments."""
        lines = []
        for name, value, source in self.shown():
            if value is None:
                lines.append(f"# {name} is not set")
                continue
            line = f"{name} = {orjson.dumps(value).decode()}"
            lines.append(f"{line}  # {source}" if source else f"# {line}")
        return "\n".join(lines) + "\n"


def load_configuration(given: Mapping[str, Any], config_file: Path | None) -> Configuration:
    """Put the layers together; `given` are the flags, None if left out. Raises ConfigurationError."""
    fields = tuple(ServiceSettings.model_fields)
    if stray := given.keys() - set(fields):
        raise TypeError(f"no such settings: {', '.join(sorted(stray))}")
    from_file = {} if config_file is None else read_config_file(config_file)
    variables = {name.upper(): name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX)}
    sources: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name in fields:
        variable = variables.get(f"{ENVIRONMENT_PREFIX}{name}".upper())
        if given.get(name) is not None:
            values[name], sources[name] = given[name], "flag"
        elif variable is not None:
            sources[name] = variable  # the settings read it themselves
        elif name in from_file:
            values[name], sources[name] = from_file[name], str(config_file)
    try:
        settings = ServiceSettings(**values)
    except ValidationError as error:
        explanation = "; ".join(_explain(item, sources) for item in error.errors())
        missing = all(item["type"] == "missing" for item in error.errors())
        raise (MissingSetting if missing else ConfigurationError)(explanation) from None
    known = {f"{ENVIRONMENT_PREFIX}{name}".upper() for name in fields} | _OTHER_VARIABLES
    unknown = tuple(sorted(name for upper, name in variables.items() if upper not in known))
    return Configuration(settings, sources, unknown)


def read_config_file(path: Path) -> dict[str, Any]:
    """The file's values by the settings' names. Raises ConfigurationError, also for a key nobody knows."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"the configuration file {path} is larger than {_MAX_FILE_BYTES} bytes")
    try:
        values = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"the configuration file {path} is not TOML: {error}") from None
    for name, value in values.items():
        if name not in ServiceSettings.model_fields:
            raise ConfigurationError(f"{path}: unknown key {name!r}; {_closest(name)}")
        if isinstance(value, dict):
            raise ConfigurationError(f"{path}: {name} is a table; expected a value")
    return values


def closest_setting(name: str) -> str | None:
    """The setting that was probably meant."""
    plain = name.lower().replace("-", "_")
    # Flags leave the unit out, so a flag's name is the beginning of its setting's.
    for field in ServiceSettings.model_fields:
        if field.startswith(f"{plain}_") or field == plain:
            return field
    found = difflib.get_close_matches(plain, ServiceSettings.model_fields, n=1)
    return found[0] if found else None


def _closest(name: str) -> str:
    found = closest_setting(name)
    return f"did you mean {found!r}?" if found else "`nybble serve DIR --print-config` lists the known ones"


def _explain(item: ErrorDetails, sources: Mapping[str, str]) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    where = ".".join(map(str, item["loc"]))
    if item["type"] == "missing":
        return f"{where} is not set: give it as DIR, as {ENVIRONMENT_PREFIX}{name.upper()} or in the file"
    source = sources.get(name, "")
    return f"{where}: {item['msg']}" + (f" (from {source})" if source and source != "flag" else "")
