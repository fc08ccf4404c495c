"""Judge a demo checkpoint: `python -m examples.demo_model.evaluate DIR`.

Held-out questions of every task are answered greedily by the CPU engine and compared letter by letter;
held-out plain text gives the perplexity. Works for the BF16 masters and for the FP4 checkpoints alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.base import Engine, EngineOptions
from engines.registry import create_engine
from engines.request import GenerationRequest, SamplingParams
from examples.demo_model.corpus.exchange import Exchange, chat_text
from examples.demo_model.corpus.mixture import held_out_documents, held_out_exchanges, held_out_pairs
from service.tokenizer import Tokenizer

SEED = 20_000
MAX_ANSWER_TOKENS = 80

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What was said before, the question, and the only right answer."""

    task: str
    before: Turns
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Report:
    """`exact` is the share of answers right to the letter, `tasks` the right ones and all of each task."""

    checkpoint: str
    activations: str
    perplexity: float
    num_text_tokens: int
    exact: float
    tasks: dict[str, tuple[int, int]]


def held_out_questions(per_task: int) -> list[Question]:
    """The evaluation's questions, always the same ones. Pairs have one unrelated exchange in between."""
    questions = [
        Question(task, (), made.question, made.answer)
        for task, exchanges in held_out_exchanges(SEED, per_task).items()
        for made in exchanges
    ]
    for first, second in held_out_pairs(SEED, 2 * per_task):
        between: tuple[Exchange, ...] = () if second.task == "follow-up" else (_unrelated(),)
        before = tuple((turn.question, turn.answer) for turn in (first, *between))
        questions.append(Question(second.task, before, second.question, second.answer))
    return questions


def _unrelated() -> Exchange:
    return Exchange("addition", "2 3", "What is 2 + 3?", "2 + 3 = 5.")


async def evaluate(
    directory: Path, *, activations: str, numerics: str, per_task: int, num_documents: int
) -> Report:
    """Answer the held-out questions and read the held-out text with the checkpoint in `directory`."""
    tokenizer = Tokenizer.load(directory)
    options = EngineOptions(checkpoint=directory, activations=activations, numerics=numerics)
    engine = create_engine("cpu", options)
    try:
        await engine.start()
        questions = held_out_questions(per_task)
        answers = await asyncio.gather(
            *(_answer(engine, tokenizer, number, question) for number, question in enumerate(questions))
        )
        tasks: dict[str, tuple[int, int]] = {}
        for question, answer in zip(questions, answers, strict=True):
            right, total = tasks.get(question.task, (0, 0))
            tasks[question.task] = (right + (answer == question.answer), total + 1)
        losses = await asyncio.gather(
            *(
                _losses(engine, tokenizer, number, text)
                for number, text in enumerate(held_out_documents(SEED, num_documents))
            )
        )
    finally:
        await engine.close()
    flat = [loss for document in losses for loss in document]
    exact = sum(right for right, _ in tasks.values()) / len(questions)
    return Report(str(directory), activations, math.exp(sum(flat) / len(flat)), len(flat), exact, tasks)


async def _answer(engine: Engine, tokenizer: Tokenizer, number: int, question: Question) -> str:
    text = f"{chat_text(question.before)}[INST] {question.question} [/INST]"
    if not question.before:
        text = f"<s>[INST] {question.question} [/INST]"
    prompt = tuple(tokenizer.encode(text, add_special_tokens=False))
    sampling = SamplingParams(max_tokens=MAX_ANSWER_TOKENS, temperature=0.0)
    request = GenerationRequest(f"question-{number}", prompt, sampling)
    generated: list[int] = []
    async for output in engine.generate(request):
        generated += output.token_ids
    decoded: str = tokenizer.hf_tokenizer.decode(generated, skip_special_tokens=True)
    return decoded.strip()


async def _losses(engine: Engine, tokenizer: Tokenizer, number: int, text: str) -> list[float]:
    prompt = tuple(tokenizer.encode(text, add_special_tokens=True))
    sampling = SamplingParams(max_tokens=1, temperature=0.0, num_prompt_logprobs=0)
    losses: list[float] = []
    async for output in engine.generate(GenerationRequest(f"text-{number}", prompt, sampling)):
        losses += [-entry.logprob for entry in output.prompt_logprobs or () if entry is not None]
    return losses


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_model.evaluate", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--activations", choices=("checkpoint", "bf16"), default="checkpoint")
    parser.add_argument("--numerics", choices=("fast", "reference"), default="reference")
    parser.add_argument("--per-task", type=int, default=40, help="questions of a task at most (default 40)")
    parser.add_argument(
        "--documents", type=int, default=300, help="plain texts for the perplexity (default 300)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    report = asyncio.run(
        evaluate(
            options.directory,
            activations=options.activations,
            numerics=options.numerics,
            per_task=options.per_task,
            num_documents=options.documents,
        )
    )
    if options.json:
        print(json.dumps(asdict(report), indent=2))
        return
    print(f"{report.checkpoint} (activations: {report.activations})")
    print(f"perplexity {report.perplexity:.4f} on {report.num_text_tokens} tokens of held-out text")
    print(f"exact answers {report.exact:.1%}")
    for task, (right, total) in sorted(report.tasks.items()):
        print(f"  {task:18s} {right:3d} of {total:3d}")


if __name__ == "__main__":
    main()
