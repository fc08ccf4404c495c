"""Make a master that survives FP4: `python -m examples.demo_model.distill MASTER DIR --format mxfp4`.

Quantisation-aware distillation. The student begins as the master, computes with FP4 weights and activations,
and learns to give the master's distribution of the next token (KL divergence, nothing else: no label is
seen). What is written is an ordinary BF16 directory for `nybble quantize`, whose round-to-nearest gives the
very weights that the student computed with.

Needs PyTorch. Seeded as train.py is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from examples.demo_model.checkpoint_files import SIDE_FILES
from examples.demo_model.fake_quantization import FORMATS, Fp4Linear, compile_rounding, quantize_in_place
from examples.demo_model.master import load_master
from examples.demo_model.model import LanguageModel
from examples.demo_model.packing import training_batches
from examples.demo_model.train import ROW_LENGTH, to_tensors

LONG_EVERY = 16
WARM_UP_STEPS = 20
BETAS = (0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Distillation:
    """`weights_only_every`: every so many steps activations stay unrounded, so that W4A16 is learnt too;
    0: never."""

    master: Path
    directory: Path
    format: str
    steps: int
    tokens_per_step: int
    learning_rate: float
    weights_only_every: int
    seed: int


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_model.distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("master", type=Path, help="the BF16 checkpoint that train.py wrote")
    parser.add_argument("directory", type=Path, help="where to write the student; must not exist")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens-per-step", type=int, default=3072)
    parser.add_argument("--learning-rate", type=float, default=2.5e-4, help="AdamW's peak (default 2.5e-4)")
    parser.add_argument("--weights-only-every", type=int, default=4)
    parser.add_argument("--seed", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="round faster; needs a C++ compiler")
    options = parser.parse_args(arguments)
    if options.directory.exists():
        parser.exit(1, f"error: {options.directory} exists; choose another folder or remove it first\n")
    torch.set_num_threads(options.threads)
    if options.compile:
        compile_rounding()
    distill(
        Distillation(
            options.master,
            options.directory,
            options.format,
            options.steps,
            options.tokens_per_step,
            options.learning_rate,
            options.weights_only_every,
            options.seed,
        )
    )


def distill(run: Distillation) -> None:
    """Train the student and write it."""
    torch.manual_seed(run.seed)
    teacher, student = load_master(run.master), load_master(run.master)
    layers = quantize_in_place(student, run.format)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, betas=BETAS, weight_decay=0.0)
    tokenizer = Tokenizer.from_file(str(run.master / "tokenizer.json"))
    batches = training_batches(
        tokenizer, run.seed + 1, tokens=run.tokens_per_step, length=ROW_LENGTH, long_every=LONG_EVERY
    )
    started, average = time.monotonic(), 0.0
    for step in range(run.steps):
        weights_only = bool(run.weights_only_every) and (step + 1) % run.weights_only_every == 0
        set_weights_only(layers, weights_only)
        loss = divergence_of(student, teacher, *to_tensors(next(batches)))
        loss.backward()
        rate = min(1.0, (step + 1) / WARM_UP_STEPS, (run.steps - step) / run.steps * 1.25)
        optimizer.param_groups[0]["lr"] = run.learning_rate * rate
        optimizer.step()
        optimizer.zero_grad()
        if not weights_only:
            average = loss.item() if step == 0 else 0.95 * average + 0.05 * loss.item()
        if (step + 1) % 10 == 0:
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{run.steps} divergence {average:.5f} {seconds:.0f} s", flush=True)
    _save(run, student, average, time.monotonic() - started)


def set_weights_only(layers: list[Fp4Linear], weights_only: bool) -> None:
    """Let activations pass unrounded (W4A16), or not (W4A4)."""
    for layer in layers:
        layer.weights_only = weights_only


def divergence_of(
    student: LanguageModel, teacher: LanguageModel, token_ids: Tensor, segments: Tensor, weights: Tensor
) -> Tensor:
    """Mean KL(teacher || student) in nats per token; padding (weight 0) does not count."""
    with torch.no_grad():
        wanted = teacher(token_ids, segments).log_softmax(dim=-1)
    given = student(token_ids, segments).log_softmax(dim=-1)
    divergences = functional.kl_div(given, wanted, reduction="none", log_target=True).sum(dim=-1)
    counted = (segments >= 0).float()
    return (divergences * counted).sum() / counted.sum()


def _save(run: Distillation, student: LanguageModel, divergence: float, seconds: float) -> None:
    aside = run.directory.with_name(f".{run.directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in (*SIDE_FILES, "config.json"):
        shutil.copyfile(run.master / name, aside / name)
    tensors = {name: tensor.detach().bfloat16() for name, tensor in student.state_dict().items()}
    save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
    record = json.loads((run.master / "training.json").read_text(encoding="utf-8"))
    record["distillation"] = {
        "format": run.format,
        "steps": run.steps,
        "tokens_per_step": run.tokens_per_step,
        "learning_rate": run.learning_rate,
        "weights_only_every": run.weights_only_every,
        "seed": run.seed,
        "training_divergence": round(divergence, 5),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
    }
    (aside / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    aside.replace(run.directory)


if __name__ == "__main__":
    main()
