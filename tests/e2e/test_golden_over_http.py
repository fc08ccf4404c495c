"""Golden log-probabilities through the whole service: a real process, the official client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.golden import CHECKPOINTS, read_reference
from tests.support.process import serve


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize(("activations", "key"), [("checkpoint", "w4a4"), ("bf16", "w4a16")])
def test_prompt_log_probabilities_are_the_library_s(
    golden: Path, name: str, activations: str, key: str
) -> None:
    reference = read_reference(golden / name)
    token_ids = reference["input_ids"][0].tolist()
    expected = _log_softmax(reference[f"logits_{key}_f32"][0])
    stable = reference["jitter_maxdiff_f32"] < 1e-3
    arguments = ("--activations", activations, "--numerics", "reference", "--served-model-name", "m")
    # Not strict: the first entry of `token_logprobs` is null, as in OpenAI's own answers, which the client's
    # types leave out.
    with serve(golden / name, *arguments) as server, server.client(strict=False) as client:
        answer = client.completions.create(
            model="m", prompt=token_ids, max_tokens=1, echo=True, logprobs=5, temperature=0
        )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    got, top = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
    assert got is not None
    assert top is not None
    assert got[0] is None
    assert len(got) == len(token_ids) + 1
    following = [*token_ids[1:], int(expected[-1].argmax())]
    for position in np.flatnonzero(stable):
        row = expected[position]
        assert got[position + 1] == pytest.approx(row[following[position]], abs=2e-3)
        assert sorted(top[position + 1].values(), reverse=True)[:5] == pytest.approx(
            np.sort(row)[::-1][:5].tolist(), abs=2e-3
        )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(token_ids), 1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
