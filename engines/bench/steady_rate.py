"""The rate of several streams together. Standard library only: other systems' processes use it too."""

from __future__ import annotations

from collections.abc import Sequence


def steady_rate(streams: Sequence[Sequence[float]], sent: float) -> float:
    """Tokens a second of all streams while all of them were decoding; a stream is when each token came.

    Streams so short that one ended before another began, or came in one piece, have no such time: then all
    tokens count, over the time since they were `sent`, which includes their prompts.
    """
    started = max(moments[0] for moments in streams)
    ended = min(moments[-1] for moments in streams)
    if ended <= started:
        return sum(map(len, streams)) / (max(moments[-1] for moments in streams) - sent)
    num_tokens = sum(started < moment <= ended for moments in streams for moment in moments)
    return num_tokens / (ended - started)
