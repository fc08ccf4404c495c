"""Quantising small checkpoints in tests: the golden calibration ids, raw tensors, runs in other processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from engines.checkpoint.safetensors_file import SafetensorsFile
from engines.quantize.options import CalibrationOptions, QuantizeOptions
from engines.quantize.quantizer import quantize
from engines.quantize.report import QuantizeReport

REPOSITORY = Path(__file__).parents[2]

# Runs `quantize`; a third argument kills the process, without mercy, when that activity is announced.
_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from engines.checkpoint import module_reader
from engines.quantize.options import CalibrationOptions, QuantizeOptions
from engines.quantize.quantizer import quantize

fields = json.loads(sys.argv[1])
if "checked_bytes" in fields:  # tensors up to this size are read when the source is opened
    module_reader._FINITE_CHECK_LIMIT_BYTES = fields.pop("checked_bytes")
if fields.get("calibration"):
    fields["calibration"] = CalibrationOptions(Path(fields["calibration"]))
fields["source"], fields["destination"] = Path(fields["source"]), Path(fields["destination"])
kill_at = sys.argv[2]

def listener(progress):
    if progress.activity == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

report = quantize(QuantizeOptions(**fields), listener)
status = Path("/proc/self/status").read_text()  # getrusage counts the parent's memory too
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"peak_bytes": peak, "num_resumed_stages": report.num_resumed_stages}))
"""


def write_calibration(golden: Path, file: Path, num_samples: int = 16) -> Path:
    """The ids that the golden exports were calibrated with, as JSONL."""
    ids = json.loads((golden / "prompts.json").read_text())["calib_ids"][:num_samples]
    file.write_text("".join(json.dumps({"input_ids": sample}) + "\n" for sample in ids))
    return file


def quantize_to(
    destination: Path,
    source: Path,
    format: str,
    layout: str,
    method: str = "rtn",
    calibration: Path | None = None,
) -> QuantizeReport:
    """Quantise `source` in this process."""
    options = None if calibration is None else CalibrationOptions(calibration)
    return quantize(QuantizeOptions(source, destination, format, layout, method, options))


def run_quantize(fields: dict[str, object], kill_at: str = "") -> subprocess.CompletedProcess[str]:
    """Quantise in a process of its own with `QuantizeOptions(**fields)`, to be killed at an activity."""
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(fields, default=str), kill_at],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def read_raw(directory: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Every tensor of model*.safetensors as (dtype, raw array)."""
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        file = SafetensorsFile(path)
        tensors |= {name: (info.dtype, file.view(name)) for name, info in file.tensors.items()}
    return tensors


def all_bytes(directory: Path) -> dict[str, bytes]:
    """Every file below `directory`."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
