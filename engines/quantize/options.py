"""What the user asks of a quantisation, and the checks that need no file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.quantize.errors import InvalidOptions

FORMATS = ("mxfp4", "nvfp4")
LAYOUTS = ("compressed-tensors", "modelopt")
METHODS = ("rtn", "four-over-six", "mse", "gptq")
_CALIBRATED_METHODS = ("mse", "gptq")
DEFAULT_SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """`file`: JSONL of samples; the first `num_samples` are used, each cut to `max_length` tokens."""

    file: Path
    num_samples: int = 512
    max_length: int = 2048


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """One quantisation.

    `method` is one of `METHODS`; `ignore` are patterns of modules that stay as they are, besides lm_head and
    routers: names, shell wildcards, or "re:" and a regular expression. `shard_bytes` bounds an output file,
    which holds at least one layer. `num_threads` 0 means as many as the kernels use.
    """

    source: Path
    destination: Path
    format: str
    layout: str
    method: str = "rtn"
    calibration: CalibrationOptions | None = None
    ignore: tuple[str, ...] = ()
    shard_bytes: int = DEFAULT_SHARD_BYTES
    num_threads: int = 0

    @property
    def group_size(self) -> int:
        return 32 if self.format == "mxfp4" else 16

    def check(self) -> None:
        """Raise InvalidOptions for what cannot work, whatever the source is."""
        for name, value, allowed in (
            ("format", self.format, FORMATS),
            ("layout", self.layout, LAYOUTS),
            ("method", self.method, METHODS),
        ):
            if value not in allowed:
                raise InvalidOptions(f"{name} {value!r:.50} is unknown; expected one of {', '.join(allowed)}")
        if self.format == "mxfp4" and self.layout == "modelopt":
            raise InvalidOptions(
                "modelopt has no checkpoint layout for MXFP4; "
                "use --layout compressed-tensors, or --format nvfp4"
            )
        if self.format == "mxfp4" and self.method == "four-over-six":
            raise InvalidOptions(
                "four-over-six chooses between block scales 1.5 apart, which MXFP4's powers of two are not; "
                "use --method mse or gptq"
            )
        if self.calibration is None:
            self._check_calibration_is_not_needed()
        else:
            self._check_calibration(self.calibration)
        if self.shard_bytes < 1 or self.num_threads < 0:
            raise InvalidOptions("shard_bytes has to be at least 1, num_threads at least 0")

    def _check_calibration_is_not_needed(self) -> None:
        if self.format == "nvfp4":
            raise InvalidOptions(
                "NVFP4 stores a static scale for the input of every layer, which only calibration gives; "
                "pass --calibration FILE.jsonl (lines with text, messages or input_ids)"
            )
        if self.method in _CALIBRATED_METHODS:
            raise InvalidOptions(
                f"the method {self.method} weighs errors by activation statistics; "
                "pass --calibration FILE.jsonl (lines with text, messages or input_ids), or --method rtn"
            )

    @staticmethod
    def _check_calibration(calibration: CalibrationOptions) -> None:
        if calibration.num_samples < 1 or calibration.max_length < 1:
            raise InvalidOptions(
                f"--samples {calibration.num_samples} and --max-length {calibration.max_length}; "
                "expected at least 1 of each"
            )
