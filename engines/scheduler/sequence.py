"""One request on its way through the engine: its tokens, its blocks, and how far it has been computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engines.request import GenerationRequest


class SequenceStatus(Enum):
    """WAITING holds no block; RUNNING holds a slot and blocks; FINISHED has given everything back."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable state of one request; owned and changed by the `Scheduler`, read by the engine.

    `token_ids` are prompt and generated tokens. The KV entries of the first `num_computed_tokens` of them are
    in the cache: position `i` lies in block `block_table[i // block_size]` at offset `i % block_size`.
    The newest token has normally not been computed yet: computing it yields the logits of the next one.

    `num_cached_tokens` counts the prompt tokens reused from the prefix cache when the sequence was first
    admitted. `arrival` numbers the sequences in the order in which they were added; preemption keeps it.
    """

    request: GenerationRequest
    arrival: int
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    was_admitted: bool = False
    block_table: list[int] = field(default_factory=list)
    # Content keys of the full blocks of `token_ids`, extended on demand; tokens are only ever appended.
    block_keys: list[bytes] = field(default_factory=list, repr=False)
    num_registered_blocks: int = 0

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return self.request.request_id

    @property
    def rank(self) -> tuple[int, int]:
        """The order of service: priority, then arrival. The smallest rank is served first."""
        return (self.request.priority, self.arrival)

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        """Tokens appended so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def generated_token_ids(self) -> list[int]:
        """A copy of the tokens appended so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known tokens whose KV entries are missing; 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_finished(self) -> bool:
        """Whether the sequence has left the scheduler."""
        return self.status is SequenceStatus.FINISHED

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether the caller still needs the logits of every prompt row, not only of the last."""
        return self.request.sampling.num_prompt_logprobs is not None and self.num_generated_tokens == 0
