"""The engine's small parts, each for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.base import EngineOptions
from engines.errors import GenerationFailed, StartFailed
from engines.request import FinishReason, GenerationRequest, SamplingParams, TokenOutput
from engines.trtllm.canary import check_canaries, mismatch
from engines.trtllm.generation import _runtime_priority
from engines.trtllm.llm_arguments import Limits
from engines.trtllm.manifest import Canary
from engines.trtllm.memory_guard import RUNTIME_RESERVE_BYTES, available_memory_bytes, kv_cache_budget
from engines.trtllm.model_facts import ModelFacts
from engines.trtllm.output_mapping import OutputReader, map_prompt_logprobs
from engines.trtllm.sampling import SamplingPlan, plan_sampling
from engines.trtllm.versions import features_of
from engines.trtllm.watchdog import PREFILL_TOKENS_PER_SECOND, Watchdog
from tests.support.fake_tensorrt_llm.results import CompletionOutput, Logprob
from tests.support.gpu_machines import B200, GB10

FACTS = ModelFacts(
    directory=Path("model"),
    vocab_size=320,
    max_position_embeddings=512,
    eos_token_ids=frozenset({2}),
    num_layers=2,
    num_kv_heads=2,
    head_dim=32,
    is_mixture_of_experts=True,
    weight_bytes=1000,
)
PER_TOKEN = 2 * 2 * 2 * 32 * 2
LIMITS = Limits(max_model_len=256, max_seq_len=257, max_num_tokens=2048, tokens_per_block=32)


class TestWatchdog:
    def setup_method(self) -> None:
        self.now = 0.0
        self.watchdog = Watchdog(10.0, clock=lambda: self.now)

    def verdict(self, num_running: int = 1, num_unread: int = 0) -> str | None:
        return self.watchdog.verdict(num_running=num_running, num_unread_prompt_tokens=num_unread)

    def test_silence_with_work_is_a_stall(self) -> None:
        self.now = 10.0
        assert self.verdict() is None
        self.now = 10.1
        assert "no step and no token for 10.1 s while 1 requests" in (self.verdict() or "")

    def test_rest_is_no_silence(self) -> None:
        self.now = 100.0
        assert self.verdict(num_running=0) is None
        self.now = 109.0
        assert self.verdict() is None

    def test_progress_starts_the_clock_again(self) -> None:
        self.now = 9.0
        self.watchdog.progress()
        self.now = 18.0
        assert self.verdict() is None

    def test_a_long_prompt_is_given_time(self) -> None:
        self.now = 10.0 + 1.0
        num_tokens = int(PREFILL_TOKENS_PER_SECOND)
        assert self.verdict(num_unread=num_tokens) is None
        self.now += 0.1
        assert self.verdict(num_unread=num_tokens) is not None


class TestMemoryGuard:
    def budget(self, available: int, machine: object = GB10, **options: object) -> int | None:
        return kv_cache_budget(
            EngineOptions(max_num_seqs=4, **options),
            FACTS,
            machine.gpus[0],
            max_model_len=256,
            kv_cache_dtype="auto",
            available_bytes=available,
        ).max_tokens

    def test_unified_memory_is_budgeted_from_what_is_available(self) -> None:
        plenty = RUNTIME_RESERVE_BYTES + FACTS.weight_bytes + 4 * 256 * PER_TOKEN
        assert self.budget(plenty) == self.budget(2 * plenty) == 4 * 256

    def test_too_little_shrinks_the_cache(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.budget(RUNTIME_RESERVE_BYTES + FACTS.weight_bytes + 300 * PER_TOKEN) == 300
        assert "long ones will wait" in caplog.text

    def test_not_even_one_context_is_refused(self) -> None:
        with pytest.raises(StartFailed, match=r"shares the machine's memory.*drop_caches"):
            self.budget(RUNTIME_RESERVE_BYTES + FACTS.weight_bytes + 255 * PER_TOKEN)

    def test_more_than_there_is_is_refused(self) -> None:
        available = RUNTIME_RESERVE_BYTES + FACTS.weight_bytes + 300 * PER_TOKEN
        assert self.budget(available, kv_cache_memory_bytes=290 * PER_TOKEN) == 290
        with pytest.raises(StartFailed, match="lower --kv-cache-memory"):
            self.budget(available, kv_cache_memory_bytes=301 * PER_TOKEN)

    def test_a_gpus_own_memory_is_left_to_the_runtime(self) -> None:
        assert self.budget(0, B200) is None
        assert self.budget(0, B200, kv_cache_memory_bytes=1000 * PER_TOKEN) == 1000

    def test_the_kernel_is_asked(self, tmp_path: Path) -> None:
        path = tmp_path / "meminfo"
        path.write_text("MemTotal:       100 kB\nMemAvailable:   42 kB\n")
        assert available_memory_bytes(path) == 42 * 1024
        path.write_text("MemTotal:       100 kB\n")
        with pytest.raises(StartFailed, match="MemAvailable"):
            available_memory_bytes(path)


class TestCanary:
    canary = Canary((1,), (5, 6, 7), (-0.1, -0.2, -0.3), (4.0, 0.1, 4.0))

    def answer(self, tokens: tuple[int, ...], *logprobs: float) -> list[TokenOutput]:
        entries = [SimpleNamespace(logprob=logprob) for logprob in logprobs]
        return [TokenOutput(tokens, tuple(entries), finish_reason=FinishReason.LENGTH)]

    def test_the_expected_answer(self) -> None:
        assert mismatch(self.canary, self.answer((5, 6, 7), -0.1, -0.2, -0.3)) is None

    def test_another_token_where_the_model_was_sure(self) -> None:
        assert "token 0 is 9, expected 5" in (mismatch(self.canary, self.answer((9, 6, 7))) or "")

    def test_another_token_where_it_was_not(self) -> None:
        assert mismatch(self.canary, self.answer((5, 9, 9), -0.1, -9.0, -9.0)) is None

    def test_the_right_tokens_with_wrong_numbers(self) -> None:
        assert "off by" in (mismatch(self.canary, self.answer((5, 6, 7), -1.1, -1.2, -1.3)) or "")

    def test_too_few_tokens(self) -> None:
        assert "2 tokens came" in (mismatch(self.canary, self.answer((5, 6))) or "")

    def test_one_wrong_answer_is_enough(self) -> None:
        check_canaries([None, None])
        with pytest.raises(StartFailed, match="1 of 2 canary prompts"):
            check_canaries([None, "token 3"])


class TestOutputs:
    def plan(self, **sampling: object) -> SamplingPlan:
        request = GenerationRequest("r", (1, 2, 3), SamplingParams(**{"max_tokens": 8, **sampling}))
        return plan_sampling(request, FACTS, LIMITS, features_of("1.4.0rc1"))

    def result(self, **fields: object) -> SimpleNamespace:
        return SimpleNamespace(outputs=[CompletionOutput(0, **fields)], cached_tokens=0)

    def test_what_was_read_does_not_change_with_the_object(self) -> None:
        reader = OutputReader(self.plan(), wants_prompt_logprobs=False)
        result = self.result(token_ids=[4])
        first = reader.read(result)
        result.outputs[0].token_ids.extend([5, 6])
        second = reader.read(result)
        assert (first.token_ids, second.token_ids) == ((4,), (5, 6))
        assert reader.read(result) is None

    def test_a_token_waits_for_its_logprob(self) -> None:
        reader = OutputReader(self.plan(num_logprobs=0), wants_prompt_logprobs=False)
        result = self.result(token_ids=[4, 5], logprobs=[{4: Logprob(-0.5, 1)}])
        assert reader.read(result).token_ids == (4,)
        result.outputs[0].logprobs.append({5: Logprob(-0.7, 2), 9: Logprob(-0.6, 1)})
        assert reader.read(result).logprobs[0].rank == 2

    @pytest.mark.parametrize(("reason", "match"), [("timeout", "too long"), ("odd", "unknown reason")])
    def test_an_end_that_is_none_is_a_failure(self, reason: str, match: str) -> None:
        reader = OutputReader(self.plan(), wants_prompt_logprobs=False)
        with pytest.raises(GenerationFailed, match=match):
            reader.read(self.result(token_ids=[4], finish_reason=reason))

    def test_an_error_on_the_result_is_a_failure(self) -> None:
        result = self.result(token_ids=[4])
        result.error = "out of blocks"
        with pytest.raises(GenerationFailed, match="out of blocks"):
            OutputReader(self.plan(), wants_prompt_logprobs=False).read(result)

    @pytest.mark.parametrize("before", [[], [None]])
    @pytest.mark.parametrize("after", [[], [{77: Logprob(-3.0, 1)}]])
    def test_prompt_entries_are_found_wherever_they_begin(self, before: list, after: list) -> None:
        entries = [*before, {2: Logprob(-1.0, 1)}, {3: Logprob(-2.0, 1)}, *after]
        mapped = map_prompt_logprobs(entries, (1, 2, 3), 0)
        assert mapped[0] is None
        assert [entry.logprob for entry in mapped[1:]] == [-1.0, -2.0]

    @pytest.mark.parametrize("entries", [None, [], [{3: Logprob(-2.0, 1)}], [{8: Logprob(-1.0, 1)}] * 3])
    def test_prompt_entries_that_do_not_fit_are_a_failure(self, entries: list | None) -> None:
        with pytest.raises(GenerationFailed, match="do not belong"):
            map_prompt_logprobs(entries, (1, 2, 3), 0)


def test_priorities_keep_their_order_within_the_runtimes_range() -> None:
    priorities = [-(2**40), -5, -1, 0, 1, 5, 2**40]
    values = [_runtime_priority(priority) for priority in priorities]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert all(0 <= value <= 1 for value in values)
    assert _runtime_priority(0) == 0.5


def test_a_smaller_cache_element_halves_the_bytes() -> None:
    assert FACTS.kv_bytes_per_token("bfloat16", 1) == PER_TOKEN
    assert FACTS.kv_bytes_per_token("fp8", 1) == PER_TOKEN // 2
    assert FACTS.kv_bytes_per_token("auto", 2) == PER_TOKEN // 2
    assert replace(FACTS, num_kv_heads=1).kv_bytes_per_token("auto", 2) == PER_TOKEN // 2
