"""Quantize a master into a shipped checkpoint: `python -m examples.demo_model.export SRC DST`.

Mistral becomes compressed-tensors MXFP4, Mixtral modelopt NVFP4, by what `nybble quantize` runs, calibrated
on the trainer's own text; the record of the training goes with it. Needs no PyTorch. For a master that
distill.py made, round-to-nearest is the right method: it gives the weights that were trained.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from engines.quantize.errors import QuantizeError
from engines.quantize.options import METHODS, CalibrationOptions, QuantizeOptions
from engines.quantize.quantizer import quantize
from examples.demo_model.calibration import NUM_SAMPLES, write_calibration

TARGETS = {"mistral": ("mxfp4", "compressed-tensors"), "mixtral": ("nvfp4", "modelopt")}


def export(source: Path, destination: Path, method: str = "rtn") -> str:
    """Write the quantized checkpoint and say what it is; raises as `quantize` does."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    format, layout = TARGETS[config["model_type"]]
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        write_calibration(source, samples)
        calibration = CalibrationOptions(samples, NUM_SAMPLES)
        quantize(QuantizeOptions(source, destination, format, layout, method, calibration))
    shutil.copyfile(source / "training.json", destination / "training.json")
    return f"{format}, {layout}, {method}"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_model.export", description=__doc__)
    parser.add_argument("source", type=Path, help="the BF16 directory that distill.py or train.py wrote")
    parser.add_argument("destination", type=Path, help="where to write the FP4 checkpoint; must not exist")
    parser.add_argument("--method", choices=METHODS, default="rtn")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {options.destination}: {export(options.source, options.destination, options.method)}")
    except QuantizeError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
