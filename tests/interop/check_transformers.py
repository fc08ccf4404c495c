"""Do transformers and compressed-tensors load our checkpoints, and compute what our engine computes?

`make interop` runs this. Optional: it needs torch, in an environment of its own (requirements.txt beside
this file). Checked are the golden exports (which shows that the comparison itself is right), the golden MXFP4
export converted to NVFP4, the demo checkpoints of a layout that transformers loads, and directories given on
the command line. transformers loads compressed-tensors Mistral and Llama only (Mixtral's experts it fills
with random numbers or decodes without their global scale), and nothing in modelopt's layout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from engines.checkpoint.checkpoint import Checkpoint
from engines.convert.conversion import convert
from engines.convert.options import ConvertOptions, Target
from engines.evaluate.logits import open_model
from engines.quantize.options import CalibrationOptions

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
DEMOS = ROOT / "examples" / "demo_model" / "checkpoints"

# A last-bit difference can push an activation over an FP4 boundary, which moves the rows after it in the same
# sequence; all others agree to float32 noise. Hence several sequences.
TOLERANCE = 1e-3
SHARE_OF_ROWS = 0.8


def main() -> int:
    """Exit status 0 when all agree."""
    parser = argparse.ArgumentParser(description="Compare our engine's logits with transformers'.")
    parser.add_argument("--python", required=True, help="the interpreter that has torch and transformers")
    parser.add_argument(
        "directories", nargs="*", type=lambda p: Path(p).resolve(), help="further checkpoints to check"
    )
    arguments = parser.parse_args()
    prompts = json.loads((GOLDEN / "prompts.json").read_text())
    sequences = [prompts["prompt_ids"], *prompts["calib_ids"]]
    with tempfile.TemporaryDirectory() as folder:
        directories = [*candidates(Path(folder)), *arguments.directories]
        jobs = [
            {"directory": str(directory), "sequences": sequences, "output": f"{folder}/{index}.npy"}
            for index, directory in enumerate(directories)
        ]
        (Path(folder) / "jobs.json").write_text(json.dumps(jobs))
        script = Path(__file__).with_name("transformers_logits.py")
        subprocess.run([arguments.python, str(script), f"{folder}/jobs.json"], check=True, cwd=folder)
        passed = [
            agree(directory, sequences, np.load(job["output"]))
            for directory, job in zip(directories, jobs, strict=True)
        ]
    return 0 if all(passed) else 1


def candidates(folder: Path) -> list[Path]:
    """The checkpoints every run checks; conversions are made in `folder`."""
    samples = folder / "samples.jsonl"
    calibration_ids = json.loads((GOLDEN / "prompts.json").read_text())["calib_ids"]
    samples.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in calibration_ids))
    converted = folder / "mistral-mxfp4-ct converted to NVFP4"
    target = Target.NVFP4_COMPRESSED_TENSORS
    convert(ConvertOptions(GOLDEN / "mistral-mxfp4-ct", converted, target, CalibrationOptions(samples)))
    demos = [path for path in sorted(DEMOS.glob("*")) if (path / "config.json").is_file() and loads(path)]
    return [GOLDEN / "mistral-mxfp4-ct", GOLDEN / "mistral-nvfp4-ct", converted, *demos]


def loads(directory: Path) -> bool:
    """Whether transformers can load this checkpoint rightly at all."""
    checkpoint = Checkpoint.open(directory)
    return checkpoint.layout.value.startswith("compressed-tensors") and not checkpoint.config.num_experts


def agree(directory: Path, sequences: list[list[int]], theirs: np.ndarray) -> bool:
    """Print how far our logits are from `theirs`, float32 [all tokens, vocab_size]; whether they agree."""
    model = open_model(directory, max(map(len, sequences)), numerics="reference")
    ours = np.concatenate([chunk.rows for token_ids in sequences for chunk in model.logits(token_ids)])
    difference = np.abs(ours - theirs).max(axis=-1)
    share = float((difference < TOLERANCE).mean())
    same_choice = float((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean())
    passed = share >= SHARE_OF_ROWS
    print(
        f"{'agrees' if passed else 'DIFFERS'}  {directory.name}: {share:.1%} of {len(ours)} rows within "
        f"{TOLERANCE:g}, largest difference {difference.max():.3g}, same likeliest token {same_choice:.1%}"
    )
    return passed


if __name__ == "__main__":
    sys.exit(main())
