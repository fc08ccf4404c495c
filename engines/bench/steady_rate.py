"""The rate of several streams together. Standard library only: other systems' processes use it too."""

from __future__ import annotations

from collections.abc import Sequence

from engines.errors import InvalidRequest


def steady_rate(streams: Sequence[Sequence[float]]) -> float:
    """Tokens a second of all streams while all of them were decoding; a stream is when each token came.

    Raises InvalidRequest when there was no such time: one ended before another began.
    """
    started = max(moments[0] for moments in streams)
    ended = min(moments[-1] for moments in streams)
    if ended <= started:
        raise InvalidRequest(
            f"{len(streams)} streams were never all decoding at one time, so their rate together cannot be "
            "told; ask for longer ones (--decode-tokens)"
        )
    num_tokens = sum(started < moment <= ended for moments in streams for moment in moments)
    return num_tokens / (ended - started)
