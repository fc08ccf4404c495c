"""The windows a long text is scored in: each overlaps the one before, so that tokens have context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engines.errors import InvalidRequest

_DEFAULT_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class Windowing:
    """`window` tokens are seen at once, and each next window begins `stride` tokens later.

    With `stride` below `window` every token but the first has at least `window - stride` tokens of context
    (as far as the text has them); the smaller the stride, the lower and slower the perplexity.
    """

    window: int
    stride: int


@dataclass(frozen=True, slots=True)
class Window:
    """Positions `begin` to `end` of a text are run; those from `first_scored` on are scored.

    A token is scored once at most, and never as the first of its window: nothing predicts that.
    """

    begin: int
    first_scored: int
    end: int


def choose_windowing(max_tokens: int, window: int | None, stride: int | None) -> Windowing:
    """What was asked for, or 2048 tokens (less where `max_tokens`, the model's context, is) and half of it.

    Raises InvalidRequest.
    """
    chosen = min(max_tokens, _DEFAULT_WINDOW) if window is None else window
    if not 2 <= chosen <= max_tokens:
        raise InvalidRequest(
            f"window is {chosen}; expected 2 to {max_tokens} (max_position_embeddings in config.json)",
            param="window",
        )
    step = max(1, chosen // 2) if stride is None else stride
    if not 1 <= step <= chosen:
        raise InvalidRequest(f"stride is {step}; expected 1 to the window, {chosen}", param="stride")
    return Windowing(chosen, step)


def windows(num_tokens: int, windowing: Windowing) -> Iterator[Window]:
    """The windows of a text of `num_tokens` tokens; none for a text of fewer than two."""
    scored = 1  # position 0 has no context
    for begin in range(0, num_tokens, windowing.stride):
        end = min(begin + windowing.window, num_tokens)
        first_scored = max(scored, begin + 1)
        if first_scored < end:
            yield Window(begin, first_scored, end)
        scored = max(scored, end)
        if end == num_tokens:
            return
