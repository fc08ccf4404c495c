"""What the echo engine can be told to do wrong, and how slow to be: for tests and for operators' drills.

Written as "name=number" pairs with commas between them, e.g. "step_seconds=0.02,die_after_tokens=500".
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields

from engines.errors import StartFailed


@dataclass(frozen=True, slots=True)
class EchoFaults:
    """Zero switches a field off. Tokens and requests are counted over all requests since the start.

    `step_seconds`: pause before each token; all sequences pause together, so that `max_num_seqs` of them give
    `max_num_seqs / step_seconds` tokens per second. `prefill_step_seconds`: pause for each
    `max_num_batched_tokens` tokens of a prompt before its first token; each is a step, that is progress.
    `start_seconds`: how long loading takes, with progress; `start_fails`: it fails when it has taken that.
    `die_after_tokens`, `die_after_requests`: the engine dies before the token, or at the request, that comes
    after so many. `hang_after_*` the same: no token comes any more, or for `hang_seconds` if that is set.
    `block_after_*` the same: the whole event loop stands still for `block_seconds`, as through a bug.
    `close_seconds`: how long `close` takes before anything is told that the engine is gone.
    """

    step_seconds: float = 0.0
    prefill_step_seconds: float = 0.0
    start_seconds: float = 0.0
    start_fails: int = 0
    die_after_tokens: int = 0
    die_after_requests: int = 0
    hang_after_tokens: int = 0
    hang_after_requests: int = 0
    hang_seconds: float = 0.0
    block_after_tokens: int = 0
    block_after_requests: int = 0
    block_seconds: float = 0.0
    close_seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> EchoFaults:
        """Raises StartFailed for what is no such list."""
        kinds = {field.name: float if field.name.endswith("_seconds") else int for field in fields(cls)}
        values: dict[str, float] = {}
        for pair in filter(None, (part.strip() for part in text.split(","))):
            name, _, number = (part.strip() for part in pair.partition("="))
            if name not in kinds:
                close = difflib.get_close_matches(name, kinds, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(kinds)}"
                raise StartFailed(f"echo_faults: {name!r} is unknown; {hint}")
            try:
                values[name] = kinds[name](number)
            except ValueError:
                values[name] = math.nan
            if not 0 <= values[name] < math.inf:
                raise StartFailed(
                    f"echo_faults: {name} is {number!r}; expected a "
                    f"{'number of seconds' if kinds[name] is float else 'whole number'}, 0 or more"
                )
        return cls(**values)  # type: ignore[arg-type]  # each was made by the field's own kind
