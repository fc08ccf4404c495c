"""What a quantisation did: sizes, and the error it left in every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

REPORT_FILE = "quantization_report.json"


@dataclass(frozen=True, slots=True)
class ModuleError:
    """One quantised weight.

    `weight_error`: squared error over squared norm. `output_error`: the same for the layer's output over the
    calibration tokens; exact for gptq, for other methods as if input columns were uncorrelated; None without
    calibration or when no token reached the module. `input_amax`: largest calibrated input, or None.
    """

    name: str
    num_parameters: int
    weight_error: float
    output_error: float | None
    input_amax: float | None

    @property
    def error(self) -> float:
        """What modules are ranked by."""
        return self.weight_error if self.output_error is None else self.output_error


@dataclass(frozen=True, slots=True)
class StageErrors:
    """Means over the weights of one layer, each weight counting by its number of parameters."""

    name: str
    weight_error: float
    output_error: float | None


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """The closing report. `seconds` and `num_resumed_stages` tell of this run only."""

    source: str
    destination: str
    format: str
    layout: str
    method: str
    num_parameters: int
    num_quantized_parameters: int
    source_bytes: int
    output_bytes: int
    num_files: int
    num_calibration_samples: int
    num_calibration_tokens: int
    modules: tuple[ModuleError, ...]
    stages: tuple[StageErrors, ...]
    seconds: float
    num_resumed_stages: int

    @property
    def compression_ratio(self) -> float:
        return self.source_bytes / self.output_bytes

    def worst(self, count: int) -> list[ModuleError]:
        """The modules of largest error, worst first."""
        return sorted(self.modules, key=lambda module: -module.error)[:count]

    def as_json(self) -> dict[str, Any]:
        """All fields and the compression ratio, as JSON values."""
        return {**asdict(self), "compression_ratio": self.compression_ratio}

    def as_stored(self) -> dict[str, Any]:
        """What goes into the checkpoint: nothing of the run or the machine, so that equal runs write equal
        bytes."""
        fields = self.as_json()
        for key in ("source", "destination", "seconds", "num_resumed_stages"):
            del fields[key]
        return fields


def stage_errors(name: str, modules: Sequence[ModuleError]) -> StageErrors:
    """Summarise one stage's modules, of which there is at least one."""
    return StageErrors(
        name,
        weight_error=_mean([(module.weight_error, module.num_parameters) for module in modules]) or 0.0,
        output_error=_mean(
            [(m.output_error, m.num_parameters) for m in modules if m.output_error is not None]
        ),
    )


def module_error_from_json(fields: Mapping[str, Any]) -> ModuleError:
    """The inverse of `dataclasses.asdict`, for the journal."""
    return ModuleError(**fields)


def _mean(values: Sequence[tuple[float, int]]) -> float | None:
    total = sum(count for _, count in values)
    return sum(value * count for value, count in values) / total if total else None
