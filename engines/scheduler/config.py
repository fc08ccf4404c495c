"""The scheduler's limits and its numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of the scheduler; ValueError when they contradict each other."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_caching: bool
    max_model_len: int

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            # Every running sequence must be able to decode in one step, or the last in rank would starve.
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; expected at least max_num_seqs, "
                f"{self.max_num_seqs}"
            )

    @property
    def max_sequence_len(self) -> int:
        """The most tokens, prompt and generated together, that one sequence can reach."""
        return min(self.max_model_len, self.num_blocks * self.block_size)


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot; the names are those of `EngineStats`.

    Prompt tokens are counted when a sequence is first admitted; those reused from the prefix cache are among
    them, so the prompt tokens computed are the difference.
    """

    num_running: int
    num_waiting: int
    num_blocks_used: int
    num_blocks_total: int
    num_preemptions_total: int
    num_prompt_tokens_total: int
    num_cached_prompt_tokens_total: int
