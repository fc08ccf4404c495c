"""Whether a guess is worth its time: an account of what speculation has won and lost on this machine.

Extra rows cost next to nothing where decoding waits for memory and nearly a whole token where it waits for
arithmetic, so nothing is assumed: steps are timed. All decoding pays a small share of its time into the
account, and speculation may go on while the account can bear the loss of the next step; so it never costs
more than that share. What is saved up is bounded, so that past luck cannot be lost on a later text.
"""

from __future__ import annotations

from dataclasses import dataclass

CREDIT_SHARE = 0.01  # of decoding time, paid into the account
SAVED_STEPS = 4  # the most that the account holds, in plain steps
MAX_DRAFTS = 8
_MEMORY = 0.9  # of the running means: the share of the past in each update
_PLAIN_EVERY = 64  # speculative steps after which a plain one is timed anew


@dataclass(slots=True)
class _PlainSteps:
    """Steps of a number of sequences without any draft."""

    seconds: float
    num_speculative_since: int = 0


class SpeculationLedger:
    """Times of decode steps, and the account of speculation in seconds."""

    def __init__(self) -> None:
        self._plain: dict[int, _PlainSteps] = {}
        self._row_seconds: float | None = None
        self.balance_seconds = 0.0

    def num_drafts_allowed(self, num_sequences: int) -> int:
        """Drafts that the next step of `num_sequences` sequences may hold, all sequences together."""
        plain = self._plain.get(num_sequences)
        if plain is None or plain.num_speculative_since >= _PLAIN_EVERY:
            return 0
        if self.balance_seconds <= 0.0:
            return 0
        num_bearable = self.balance_seconds / max(self._draft_seconds(num_sequences), 1e-9)
        return min(MAX_DRAFTS * num_sequences, int(num_bearable))

    def is_worth_it(self, num_sequences: int, chance: float) -> bool:
        """Whether a draft that comes true with `chance` saves more than it costs, as far as known."""
        plain = self._plain[num_sequences]
        return chance * plain.seconds / num_sequences > self._draft_seconds(num_sequences)

    def record(self, num_sequences: int, num_drafts: int, num_confirmed: int, seconds: float) -> None:
        """A step that decoded `num_sequences` sequences; `num_confirmed` of its drafts came true."""
        plain = self._plain.get(num_sequences)
        self.balance_seconds += CREDIT_SHARE * seconds
        if num_drafts == 0:
            plain = self._record_plain(num_sequences, plain, seconds)
        else:
            assert plain is not None, "a number of sequences is timed without drafts first"
            plain.num_speculative_since += 1
            cost = max(0.0, seconds - plain.seconds)
            self._row_seconds = _blended(self._row_seconds, cost / num_drafts)
            self.balance_seconds += num_confirmed * plain.seconds / num_sequences - cost
        self.balance_seconds = min(self.balance_seconds, SAVED_STEPS * plain.seconds)

    def _record_plain(self, num_sequences: int, plain: _PlainSteps | None, seconds: float) -> _PlainSteps:
        if plain is None:
            plain = self._plain[num_sequences] = _PlainSteps(seconds)
        plain.seconds = _blended(plain.seconds, seconds)
        plain.num_speculative_since = 0
        return plain

    def _draft_seconds(self, num_sequences: int) -> float:
        """Until one has been timed, a draft is taken to cost as much as a token of its own."""
        if self._row_seconds is None:
            return self._plain[num_sequences].seconds / num_sequences
        return self._row_seconds


def _blended(mean: float | None, figure: float) -> float:
    return figure if mean is None else _MEMORY * mean + (1.0 - _MEMORY) * figure
