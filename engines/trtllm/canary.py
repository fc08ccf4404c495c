"""The prompts whose answers are known: run at start-up, before a wrong model can answer anybody.

Wrong numbers without any error have been seen (issue 14154 of TensorRT-LLM: nvfp4_gemm on SM 120).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engines.errors import StartFailed
from engines.request import GenerationRequest, SamplingParams, TokenOutput
from engines.trtllm.manifest import Canary

# Natural logarithms. The CPU engine and a tensor core sum in different orders, and the KV cache may be FP8:
# where the runner-up was nearer than this, either token is right, and beyond it the answers may differ.
MARGIN_TOLERANCE = 0.5
MEAN_LOGPROB_TOLERANCE = 0.5


def canary_request(index: int, canary: Canary, *, with_logprobs: bool) -> GenerationRequest:
    """The greedy request that has to be answered with `canary.token_ids`."""
    return GenerationRequest(
        request_id=f"nybble-canary-{index}",
        prompt_token_ids=canary.prompt_token_ids,
        sampling=SamplingParams(
            max_tokens=len(canary.token_ids),
            temperature=0.0,
            ignore_eos=True,
            num_logprobs=0 if with_logprobs else None,
        ),
    )


def mismatch(canary: Canary, outputs: Iterable[TokenOutput]) -> str | None:
    """How the answer differs from what was expected by more than rounding explains; None when it does not."""
    collected = list(outputs)
    token_ids = [token_id for output in collected for token_id in output.token_ids]
    logprobs = [entry.logprob for output in collected for entry in output.logprobs or ()]
    if len(token_ids) != len(canary.token_ids):
        return f"{len(token_ids)} tokens came, {len(canary.token_ids)} were expected"
    distances = []
    for position, (got, expected) in enumerate(zip(token_ids, canary.token_ids, strict=True)):
        if got != expected:
            if canary.margins[position] > MARGIN_TOLERANCE:
                return (
                    f"token {position} is {got}, expected {expected}, which was likelier than any other by "
                    f"{canary.margins[position]:.2f} nats"
                )
            break  # the contexts differ from here on
        if logprobs:
            distances.append(abs(logprobs[position] - canary.logprobs[position]))
    if distances and sum(distances) / len(distances) > MEAN_LOGPROB_TOLERANCE:
        return (
            f"the log-probabilities of the expected tokens are off by {sum(distances) / len(distances):.2f} "
            f"nats on average; at most {MEAN_LOGPROB_TOLERANCE} can be rounding"
        )
    return None


def check_canaries(mismatches: Sequence[str | None]) -> None:
    """Raises StartFailed unless every canary was answered as expected (None)."""
    wrong = [(index, text) for index, text in enumerate(mismatches) if text is not None]
    if wrong:
        index, text = wrong[0]
        raise StartFailed(
            f"{len(wrong)} of {len(mismatches)} canary prompts are answered wrongly; the first, number "
            f"{index}: {text}. The kernels compute something else than the checkpoint says: do not serve "
            "this. Try another TensorRT-LLM release, or build again"
        )
