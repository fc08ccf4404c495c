"""Calibration samples for the demo models, from the corpus that their trainer generates.

`python -m examples.demo_model.calibration MASTER FILE.jsonl` writes a file for
`nybble quantize --calibration`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from tokenizers import Tokenizer

from examples.demo_model.corpus.mixture import training_items
from examples.demo_model.packing import encode_item

NUM_SAMPLES = 256
_SEED = 7_000


def write_calibration(master: Path, file: Path, num_samples: int = NUM_SAMPLES) -> None:
    """`num_samples` training conversations and documents, as JSONL of input_ids."""
    tokenizer = Tokenizer.from_file(str(master / "tokenizer.json"))
    samples = (encode_item(tokenizer, item) for item in itertools.islice(training_items(_SEED), num_samples))
    lines = (json.dumps({"input_ids": sample.token_ids}) + "\n" for sample in samples)
    file.write_text("".join(lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_model.calibration", description=__doc__)
    parser.add_argument("master", type=Path, help="whose tokenizer to use")
    parser.add_argument("file", type=Path)
    parser.add_argument("--samples", type=int, default=NUM_SAMPLES)
    options = parser.parse_args(arguments)
    write_calibration(options.master, options.file, options.samples)


if __name__ == "__main__":
    main()
