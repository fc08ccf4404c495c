"""Engines by name. An engine's module is imported only when it is chosen."""

from __future__ import annotations

from importlib import import_module

from engines.base import Engine, EngineOptions
from engines.errors import MissingExtra, UnknownEngine

_ENGINES = {
    "cpu": "engines.cpu.engine:CpuEngine",
    "echo": "engines.echo:EchoEngine",
}


def engine_names() -> tuple[str, ...]:
    """The names `create_engine` accepts, besides "auto"."""
    return tuple(_ENGINES)


def create_engine(name: str, options: EngineOptions) -> Engine:
    """Construct (not start) the engine called `name`; "auto" picks the best one for this machine.

    Raises UnknownEngine for an unknown name and MissingExtra when the engine's package is absent.
    """
    resolved = "cpu" if name == "auto" else name
    try:
        module_name, class_name = _ENGINES[resolved].split(":")
    except KeyError:
        known = ", ".join(("auto", *_ENGINES))
        raise UnknownEngine(f"unknown engine {name!r}; expected one of: {known}") from None
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the engine {resolved!r} needs the module {error.name!r}, which is not installed; "
            "reinstall the package with `pip install .`"
        ) from error
    engine: Engine = getattr(module, class_name)(options)
    return engine
