"""What the user asks of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from engines.errors import InvalidRequest
from engines.fp4.nvfp4 import Convention
from engines.quantize.options import CalibrationOptions


class Target(str, Enum):
    """The layouts a checkpoint can be converted to."""

    NVFP4_MODELOPT = "nvfp4-modelopt"
    NVFP4_COMPRESSED_TENSORS = "nvfp4-compressed-tensors"

    @property
    def convention(self) -> Convention:
        """How the target stores the scale of a whole tensor."""
        return Convention.MODELOPT if self is Target.NVFP4_MODELOPT else Convention.COMPRESSED_TENSORS

    @classmethod
    def parse(cls, name: str) -> Target:
        """The target called `name`. Raises InvalidRequest."""
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(target.value for target in cls)
            raise InvalidRequest(f"cannot convert to {name!r}; expected one of: {known}") from None


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """One conversion.

    `weight_only` leaves the activations unquantised in the target; else input scales come from
    `calibration`, or from the source. `lossy` accepts weights that change, and reports by how much.
    """

    source: Path
    destination: Path
    target: Target
    calibration: CalibrationOptions | None = None
    weight_only: bool = False
    lossy: bool = False

    def __post_init__(self) -> None:
        calibration = self.calibration
        if calibration is not None and min(calibration.num_samples, calibration.max_length) < 1:
            raise InvalidRequest(
                f"--samples {calibration.num_samples} and --max-length {calibration.max_length}; expected at "
                "least 1 of each"
            )
        if self.weight_only and self.calibration is not None:
            raise InvalidRequest("weight-only activations need no calibration; give one of the two")
        if self.weight_only and self.target is Target.NVFP4_MODELOPT:
            raise InvalidRequest(
                "modelopt's NVFP4 layout cannot say that activations stay unquantised; "
                "convert to nvfp4-compressed-tensors, or pass --calibration"
            )
