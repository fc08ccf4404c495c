"""The checkpoints that are compared: every format and method, students of distillation, peers' own output."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.quantize.options import CalibrationOptions, QuantizeOptions
from engines.quantize.quantizer import quantize
from examples.demo_model.checkpoint_files import SIDE_FILES

LAYOUTS = {"mxfp4": "compressed-tensors", "nvfp4": "modelopt"}
_METHODS = {"mxfp4": ("rtn", "mse", "gptq"), "nvfp4": ("rtn", "four-over-six", "mse", "gptq")}
_STUDENT_METHODS = ("rtn", "gptq")
_PEERS = {
    "mxfp4": ("llm-compressor", "llm-compressor-gptq"),
    "nvfp4": ("llm-compressor", "llm-compressor-gptq", "modelopt"),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint to judge; `seconds` its making took, the training of a student not counted."""

    format: str
    method: str
    directory: Path
    seconds: float


@dataclass(frozen=True, slots=True)
class Sources:
    """What candidates are made from: `students` come from distill.py, `peer_python` has the peers."""

    master: Path
    students: tuple[Path, ...]
    samples: Path
    num_samples: int
    peer_python: Path | None


def candidates(sources: Sources, format: str, folder: Path) -> Iterator[Candidate]:
    """Make them one after another in `folder`. A peer that fails is told and left out."""
    for method in _METHODS[format]:
        yield _quantized(sources, sources.master, format, method, method, folder)
    for student in sources.students:
        if student_format(student) == format:
            for method in _STUDENT_METHODS:
                yield _quantized(sources, student, format, method, f"distilled, {method}", folder)
    if sources.peer_python is not None:
        for peer in _PEERS[format]:
            made = _peers_own(sources, sources.peer_python, peer, format, folder)
            if made is not None:
                yield made


def student_format(student: Path) -> str:
    """The format that distill.py trained `student` for."""
    record = json.loads((student / "training.json").read_text(encoding="utf-8"))
    format: str = record["distillation"]["format"]
    return format


def _quantized(
    sources: Sources, source: Path, format: str, method: str, name: str, folder: Path
) -> Candidate:
    destination = folder / f"{format} {name}"
    calibration = CalibrationOptions(sources.samples, sources.num_samples)
    started = time.monotonic()
    quantize(QuantizeOptions(source, destination, format, LAYOUTS[format], method, calibration))
    return Candidate(format, name, destination, time.monotonic() - started)


def _peers_own(sources: Sources, python: Path, peer: str, format: str, folder: Path) -> Candidate | None:
    destination = folder / f"{format} {peer}"
    script = Path(__file__).with_name("peer_checkpoint.py")
    command = [python, script, peer, sources.master.resolve(), destination, format, sources.samples]
    started = time.monotonic()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        print(f"{format} {peer}: failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    for name in SIDE_FILES:
        shutil.copyfile(sources.master / name, destination / name)
    return Candidate(format, peer, destination, time.monotonic() - started)
