"""Finding stop strings in a text that arrives in pieces, giving out all text that cannot belong to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopResult:
    """Text that is final, and the stop string that ended it, if one did."""

    text: str
    matched: str | None = None


class StopStringMatcher:
    """Cuts one text at the first stop string in it.

    The stop string that is completed first wins, as if the text came one character at a time; of several
    completed by the same character, the longest (the one that began first). So the outcome does not depend
    on how the text is divided into `push` calls, and generation can end with the token that completed it.

    Only text that may still become a stop string is held back: the longest end of the text that is the
    beginning of one. Each character costs a constant number of steps for each stop string (Knuth, Morris,
    Pratt), counted over the whole text.
    """

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        """Raises ValueError for an empty stop string."""
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        # Longest first, so that the first complete one found at a character is the longest.
        self._stops = sorted(dict.fromkeys(stops), key=len, reverse=True)
        self._fallbacks = [_fallback_table(stop) for stop in self._stops]
        self._matched_lengths = [0] * len(self._stops)
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._include_in_output = include_in_output
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> StopResult:
        """Add text; returns what became final. After a match there is no more to add (RuntimeError)."""
        if self._matched is not None:
            raise RuntimeError("text pushed after a stop string matched")
        if not self._held and self._first_characters.isdisjoint(text):
            return StopResult(text)
        num_held = len(self._held)
        joined = self._held + text
        for position, character in enumerate(text, start=num_held + 1):
            stop = self._advance(character)
            if stop is not None:
                self._matched, self._held = stop, ""
                end = position if self._include_in_output else position - len(stop)
                return StopResult(joined[:end], stop)
        end = len(joined) - max(self._matched_lengths)
        self._held = joined[end:]
        return StopResult(joined[:end])

    def flush(self) -> str:
        """The text held back, at the end of a text in which no stop string was completed."""
        held, self._held = self._held, ""
        self._matched_lengths = [0] * len(self._stops)
        return held

    def _advance(self, character: str) -> str | None:
        """Take one character into every stop string's automaton; returns the stop string it completes."""
        completed: str | None = None
        for index, stop in enumerate(self._stops):
            length, fallback = self._matched_lengths[index], self._fallbacks[index]
            while length and stop[length] != character:
                length = fallback[length - 1]
            if stop[length] == character:
                length += 1
            if length == len(stop):
                completed = completed or stop
                length = 0
            self._matched_lengths[index] = length
        return completed


def _fallback_table(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = table[length - 1]
        if stop[index] == stop[length]:
            length += 1
        table[index] = length
    return table
