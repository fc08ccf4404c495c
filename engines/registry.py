"""Engines by name. An engine's module is imported only when it is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from engines.base import Engine, EngineOptions
from engines.errors import MissingExtra, UnknownEngine

_ENGINES = {
    "cpu": "engines.cpu.engine:CpuEngine",
    "trtllm": "engines.trtllm.engine:TrtLlmEngine",
    "echo": "engines.echo:EchoEngine",
}


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What "auto" stands for on this machine with this checkpoint, and why."""

    name: str
    reason: str


def choose_engine(options: EngineOptions) -> EngineChoice:
    """TensorRT-LLM where it can run `options.checkpoint`, else the CPU.

    Never raises: a checkpoint that cannot be read is left for the CPU engine to refuse.
    """
    # Imported here: it looks for GPUs and reads files, which no other engine needs.
    from engines.trtllm.machine import detect_machine
    from engines.trtllm.suitability import Fit, describe, machine_obstacles

    machine = detect_machine()
    obstacles = machine_obstacles(machine)
    if obstacles:
        return EngineChoice("cpu", "; ".join(obstacles))
    if options.activations != "checkpoint":
        return EngineChoice("cpu", "TensorRT-LLM cannot leave activations unquantised (activations=bf16)")
    if options.checkpoint is None:
        return EngineChoice("trtllm", f"{machine.gpus[0].name} and tensorrt-llm are there")
    judged = describe(options.checkpoint, machine)
    if judged.fit is Fit.RUNS:
        return EngineChoice("trtllm", f"{machine.gpus[0].name} and tensorrt-llm can run {options.checkpoint}")
    advice = f" (to use the GPU: {judged.command})" if judged.command else ""
    return EngineChoice("cpu", f"TensorRT-LLM cannot: {judged.reason}{advice}")


def check_start(name: str) -> None:
    """Refuse what is wrong with the way the process was started, before a port is opened.

    Raises StartFailed.
    """
    if name == "trtllm":
        from engines.trtllm.launch import detect_launch

        detect_launch()


def engine_names() -> tuple[str, ...]:
    """The names `create_engine` accepts, besides "auto"."""
    return tuple(_ENGINES)


def create_engine(name: str, options: EngineOptions) -> Engine:
    """Construct (not start) the engine called `name`; "auto" picks the best one for this machine.

    Raises UnknownEngine for an unknown name and MissingExtra when the engine's package is absent.
    """
    resolved = choose_engine(options).name if name == "auto" else name
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
