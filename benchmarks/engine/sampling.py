"""What choosing a token costs: `python -m benchmarks.engine.sampling --output FILE`.

A step waits until a token is chosen for each of its sequences, which is spread over the engine's threads;
log-probabilities follow one after the other. Each case takes its turn, and its best call counts: on a shared
machine others only make a call longer.
Rows are as a language model's, most of the mass on a few hundred tokens, and more than the caches hold.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from engines.cpu.logprobs import token_logprob
from engines.cpu.model_runner import SequenceLogits
from engines.cpu.sampler import SequenceSampler
from engines.cpu.step_sampling import SamplingTask, sample_step
from engines.cpu.token_draw import likeliest_tokens
from engines.request import GenerationRequest, SamplingParams
from engines.scheduler import ScheduledSequence, Sequence

VOCAB_SIZES = (32_000, 131_072)
PROMPT_TOKENS = 1000
CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=0.8, seed=1),
    "top_p 0.9": SamplingParams(top_p=0.9, seed=1),
    "top_k 50": SamplingParams(top_k=50, seed=1),
    "top_k 50, top_p 0.9": SamplingParams(top_k=50, top_p=0.9, seed=1),
    "min_p 0.05": SamplingParams(min_p=0.05, seed=1),
    "penalties": SamplingParams(temperature=0.8, repetition_penalty=1.1, frequency_penalty=0.2, seed=1),
}
LOGPROBS = 5


def rows_of_logits(num_rows: int, vocab_size: int) -> NDArray[np.float32]:
    """Float32 [num_rows, vocab_size] logits: a power law of the rank, with noise."""
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(vocab_size) for _ in range(num_rows)])
    logits = -1.5 * np.log1p(ranks) + 0.5 * rng.standard_normal((num_rows, vocab_size))
    return logits.astype(np.float32)


def sample(samplers: list[SequenceSampler], rows: NDArray[np.float32]) -> None:
    """Choose a step's tokens, one of each row."""
    sequence = Sequence(GenerationRequest("any", (1,), SamplingParams()), arrival=0)
    scheduled = ScheduledSequence(sequence, start=0, num_tokens=1, needs_logits=True)
    likeliest = likeliest_tokens(rows).tolist()
    sample_step(
        [
            SamplingTask(
                SequenceLogits(scheduled, None, rows[i : i + 1], likeliest[i : i + 1]), sampler, frozenset()
            )
            for i, sampler in enumerate(samplers)
        ]
    )


def measure(vocab_size: int, num_sequences: int, num_repeats: int) -> list[dict[str, Any]]:
    """Microseconds of each case for one token, and milliseconds for a step of `num_sequences`."""
    rows = rows_of_logits(num_sequences, vocab_size)
    prompt = tuple(range(PROMPT_TOKENS))
    samplers = {
        name: [SequenceSampler(params, prompt, frozenset(), vocab_size) for _ in range(num_sequences)]
        for name, params in CASES.items()
    }
    best = dict.fromkeys([*CASES, f"log-probabilities, {LOGPROBS} likeliest"], float("inf"))
    for _ in range(num_repeats):
        for name in best:
            started = time.perf_counter()
            if name in samplers:
                sample(samplers[name], rows)
            else:
                for row in rows:
                    token_logprob(row, 7, LOGPROBS)
            best[name] = min(best[name], time.perf_counter() - started)
    return [
        {
            "vocab_size": vocab_size,
            "case": name,
            "microseconds_per_token": round(seconds / num_sequences * 1e6, 1),
            "milliseconds_per_step": round(seconds * 1e3, 3),
        }
        for name, seconds in best.items()
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine.sampling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=50)
    record.add_output_option(parser)
    options = parser.parse_args()
    begun = record.begin("benchmarks.engine.sampling")
    rows = [row for size in VOCAB_SIZES for row in measure(size, options.sequences, options.repeats)]
    record.publish(begun.document({"num_sequences": options.sequences, "rows": rows}), options.output)


if __name__ == "__main__":
    main()
