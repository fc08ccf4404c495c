"""Train a demo model: `python -m examples.demo_model.train mistral DIR` (and `mixtral`).

Needs PyTorch besides the project's own dependencies. Seeded; with the recorded number of steps, the same
version of PyTorch and the same number of threads the result is the same. The learning rate rises, stays, and
falls to zero over the last two thirds. The number in DIR/steps.txt may be edited while training, until the
fall has begun, to fit the time there is.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from examples.demo_model.checkpoint_files import write_side_files
from examples.demo_model.model import SHAPES, LanguageModel, config_json
from examples.demo_model.muon import optimizers
from examples.demo_model.packing import Batch, training_batches
from examples.demo_model.tokenizer import train_tokenizer

ROW_LENGTH = 256
LONG_EVERY = 16
WARM_UP_STEPS = 40
FALLING_SHARE = 0.65
MUON_LEARNING_RATE = 0.02
ADAMW_LEARNING_RATE = 0.004
WEIGHT_DECAY = 0.1
SNAPSHOT_EVERY = 150


@dataclass(frozen=True, slots=True)
class Run:
    """What is trained, on how much, where to.

    `start` is a master to go on from, `rate` scales the peak. `stop_after` (0: never) ends a run before the
    learning rate has fallen to zero, to be gone on from under another schedule.
    """

    kind: str
    directory: Path
    steps: int
    tokens_per_step: int
    seed: int
    start: Path | None = None
    rate: float = 1.0
    stop_after: int = 0


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_model.train", description=__doc__)
    parser.add_argument("kind", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path, help="where to write the BF16 checkpoint")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--tokens-per-step", type=int, default=3072)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start-from", type=Path, help="a master to go on from, instead of random weights")
    parser.add_argument("--rate", type=float, default=1.0, help="scales the learning rate (default 1)")
    parser.add_argument("--stop-after", type=int, default=0, help="end after so many of the steps")
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    run = Run(
        options.kind,
        options.directory,
        options.steps,
        options.tokens_per_step,
        options.seed,
        options.start_from,
        options.rate,
        options.stop_after,
    )
    train(run, options.compile)


def train(run: Run, compiled: bool) -> None:
    """Train and write the checkpoint, with a snapshot in the same place from time to time."""
    run.directory.mkdir(parents=True, exist_ok=True)
    steps_file = run.directory / "steps.txt"
    steps_file.write_text(f"{run.steps}\n", encoding="utf-8")
    torch.manual_seed(run.seed)
    tokenizer = train_tokenizer()
    model = LanguageModel(SHAPES[run.kind])
    if run.start is not None:
        weights = load_file(run.start / "model.safetensors")
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{run.kind}: {num_parameters:,} parameters", flush=True)
    write_side_files(run.directory, tokenizer, config_json(model.shape))
    muon, adamw = optimizers(model)
    batches = training_batches(
        tokenizer, run.seed + 1, tokens=run.tokens_per_step, length=ROW_LENGTH, long_every=LONG_EVERY
    )
    weighted_loss = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    started, steps, step, average = time.monotonic(), run.steps, 0, 0.0
    while step < steps:
        if step < (1 - FALLING_SHARE) * steps:
            steps = _wanted_steps(steps_file, steps, step)
        rate = run.rate * learning_rate_factor(step, steps)
        loss = weighted_loss(model, *to_tensors(next(batches)))
        (loss + model.balance_loss()).backward()
        muon.step(rate * MUON_LEARNING_RATE, WEIGHT_DECAY)
        adamw.param_groups[0]["lr"] = rate * ADAMW_LEARNING_RATE
        adamw.step()
        adamw.zero_grad()
        step += 1
        value = loss.item()
        average = value if step == 1 else 0.95 * average + 0.05 * value
        if step % 10 == 0:
            elapsed = time.monotonic() - started
            speed = step * run.tokens_per_step / elapsed
            print(
                f"step {step}/{steps} loss {average:.4f} rate {rate:.3f} "
                f"{elapsed:.0f} s {speed:.0f} tokens/s",
                flush=True,
            )
        is_last = step in (steps, run.stop_after)
        if step % SNAPSHOT_EVERY == 0 or is_last:
            _save(run, model, step, steps, average, time.monotonic() - started)
        if is_last:
            break


def learning_rate_factor(step: int, steps: int) -> float:
    """Up over WARM_UP_STEPS, level, and linearly to zero over the last FALLING_SHARE of the steps."""
    falling = steps * FALLING_SHARE
    return min(1.0, (step + 1) / WARM_UP_STEPS, (steps - step) / falling)


def to_tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, segments and weights."""
    return (
        torch.from_numpy(batch.token_ids),
        torch.from_numpy(batch.segments),
        torch.from_numpy(batch.weights),
    )


def loss_of(model: LanguageModel, token_ids: Tensor, segments: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the next token; all three int64 or float32 [rows, length]."""
    logits = model(token_ids[:, :-1], segments[:, :-1])
    targets, weights = token_ids[:, 1:].reshape(-1), weights[:, 1:].reshape(-1)
    losses = functional.cross_entropy(logits.reshape(targets.numel(), -1), targets, reduction="none")
    return (losses * weights).sum() / weights.sum()


def _wanted_steps(steps_file: Path, steps: int, step: int) -> int:
    """The number in the steps file; ignored if it is none or would have the fall begin in the past."""
    try:
        wanted = int(steps_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return steps
    return wanted if (1 - FALLING_SHARE) * wanted >= step else steps


def _record_of(start: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((start / "training.json").read_text(encoding="utf-8"))
    return record


def _save(run: Run, model: LanguageModel, step: int, steps: int, loss: float, seconds: float) -> None:
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    aside = run.directory / "model.safetensors.part"
    save_file(tensors, aside, metadata={"format": "pt"})
    aside.replace(run.directory / "model.safetensors")
    record = {
        "kind": run.kind,
        "seed": run.seed,
        "rate": run.rate,
        "continues": None if run.start is None else _record_of(run.start),
        "step": step,
        "steps": steps,
        "tokens_per_step": run.tokens_per_step,
        "training_loss": round(loss, 4),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "num_parameters": sum(tensor.numel() for tensor in tensors.values()),
    }
    (run.directory / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
