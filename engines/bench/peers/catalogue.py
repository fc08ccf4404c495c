"""Which systems a checkpoint is compared with, in which precisions, and how each comes by its model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engines.bench.peers.comparison import SystemResult
from engines.bench.peers.converted_models import ConvertedModels
from engines.bench.peers.system import PeerUnavailable, System
from engines.bench.phase import OnProgress
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.quantization import Layout
from engines.errors import InvalidRequest

PEER_MODELS = Path("~/.cache/nybble/peers")

FAMILIES = ("vLLM", "Transformers", "OpenVINO", "llama.cpp")
"""In the order in which they take their turns: those that are slow to load first, for they stay loaded."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user chose: peers, and the Python in which each is installed; this one by default.

    `systems` names those that take part, in any case, as "OpenVINO INT4"; all of them where it is empty.
    """

    models: Path
    families: tuple[str, ...] = FAMILIES
    pythons: Mapping[str, Path] = field(default_factory=dict)
    systems: tuple[str, ...] = ()

    def python(self, family: str) -> Path:
        """The Python that runs `family`."""
        return self.pythons.get(family, Path(sys.executable))

    def wants(self, system: str) -> bool:
        """Whether the system of this name takes part."""
        return not self.systems or system.lower() in map(str.lower, self.systems)

    def check_systems(self, names: Sequence[str]) -> None:
        """Raises InvalidRequest if one that was asked for is not among `names`."""
        known = [name.lower() for name in names]
        for system in self.systems:
            if system.lower() not in known:
                raise InvalidRequest(f"there is no system {system!r} here; expected {', '.join(names)}")


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    family: str
    worker: str
    model: Callable[[], Path]
    settings: Mapping[str, str] = field(default_factory=dict)


def checked_families(names: Sequence[str]) -> tuple[str, ...]:
    """`names`, in any case, as this module spells them; all for none. Raises InvalidRequest."""
    known = {family.lower(): family for family in FAMILIES}
    for name in names:
        if name.lower() not in known:
            raise InvalidRequest(f"there is no peer {name!r}; expected {', '.join(FAMILIES)}")
    wanted = {known[name.lower()] for name in names} or set(FAMILIES)
    return tuple(family for family in FAMILIES if family in wanted)


def parsed_pythons(texts: Sequence[str]) -> dict[str, Path]:
    """From "llama.cpp=/path/to/python". Raises InvalidRequest for another form or an unknown peer."""
    pythons = {}
    for text in texts:
        family, separator, path = text.partition("=")
        if not separator or not path:
            raise InvalidRequest(
                f"got the Python {text!r}; expected PEER=PATH, as llama.cpp=.venv-llama/bin/python"
            )
        (known,) = checked_families([family])
        # A virtual environment's interpreter is a link, which must not be followed.
        pythons[known] = Path(path).expanduser().absolute()
    return pythons


def prepared_systems(
    directories: Sequence[Path], choice: Choice, on_progress: OnProgress
) -> list[SystemResult]:
    """Nybble on each checkpoint, both ways of activations; then the peers, skipped where they have no model.

    Peers that take no FP4 get the first checkpoint only. Nothing is converted for a system that nobody wants.
    Raises CheckpointError, InvalidRequest.
    """
    own: list[System] = []
    candidates: list[_Candidate] = []
    for index, directory in enumerate(directories):
        format = _fp4_format(directory)
        own += _own(directory, format)
        models = ConvertedModels(choice.models.expanduser(), directory, on_progress)
        candidates += _of_fp4(format, models, choice)
        if index == 0:
            candidates += _of_other_precisions(models, choice)
    candidates = [each for family in choice.families for each in candidates if each.family == family]
    choice.check_systems([system.name for system in own] + [each.name for each in candidates])
    return [
        *(SystemResult(system) for system in own if choice.wants(system.name)),
        *(_prepared(each, choice) for each in candidates if choice.wants(each.name)),
    ]


def _fp4_format(directory: Path) -> str:
    layout = Checkpoint.open(directory).layout
    if layout is Layout.PLAIN:
        raise InvalidRequest(f"{directory} holds no FP4 weights; peers are compared on FP4 checkpoints only")
    return "mxfp4" if "mxfp4" in layout.value else "nvfp4"


def _own(directory: Path, format: str) -> Iterator[System]:
    for activations, title in (("checkpoint", "W4A4"), ("bf16", "W4A16")):
        settings = {"activations": activations, "numerics": "fast"}
        name = f"nybble {format.upper()} {title}"
        yield System(name, "nybble", "nybble", directory.resolve(), Path(sys.executable), settings)


def _of_fp4(format: str, models: ConvertedModels, choice: Choice) -> Iterator[_Candidate]:
    title = format.upper()
    yield _Candidate(f"llama.cpp {title}", "llama.cpp", "llama_cpp", lambda: models.gguf(format))
    yield _openvino(title, format, models, choice)


def _of_other_precisions(models: ConvertedModels, choice: Choice) -> Iterator[_Candidate]:
    yield _Candidate("llama.cpp Q4_0", "llama.cpp", "llama_cpp", lambda: models.gguf("q4_0"))
    yield _openvino("INT4", "int4", models, choice)
    yield _Candidate("Transformers BF16", "Transformers", "transformers", models.bfloat16)
    yield _Candidate("vLLM BF16", "vLLM", "vllm", models.bfloat16)


def _openvino(title: str, mode: str, models: ConvertedModels, choice: Choice) -> _Candidate:
    python = choice.python("OpenVINO")
    return _Candidate(f"OpenVINO {title}", "OpenVINO", "openvino", lambda: models.openvino(mode, python))


def _prepared(candidate: _Candidate, choice: Choice) -> SystemResult:
    skipped = None
    try:
        model = candidate.model()
    except PeerUnavailable as error:
        model, skipped = Path(), str(error)
    python = choice.python(candidate.family)
    system = System(candidate.name, candidate.family, candidate.worker, model, python, candidate.settings)
    return SystemResult(system, skipped=skipped)
