"""When pieces of a stream leave, and together with which others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.outbox import BUSY_GAP_SECONDS, GAP_SECONDS, Outbox, Pace
from service.sse import FrameTemplate, frame
from tests.support.virtual_time import in_virtual_time, until_quiet


class Wire:
    """Takes what is sent; `gate` holds a send up, as a reader who is behind does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.asked: list[bytes] = []
        self.ended = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, message: Any) -> None:
        self.asked.append(message["body"])
        await self.gate.wait()
        self.bodies.append(message["body"])
        self.ended = not message["more_body"]


@in_virtual_time
async def test_the_first_piece_leaves_at_once() -> None:
    wire = Wire()
    box = Outbox(wire.send, Pace())
    assert box.put(b"a")
    await box.flush()
    assert wire.bodies == [b"a"]


@in_virtual_time
async def test_pieces_that_follow_fast_leave_together_with_the_end() -> None:
    wire = Wire()
    box = Outbox(wire.send, Pace())
    assert box.put(b"a")
    await box.flush()
    assert not box.put(b"b")
    assert not box.put(b"c")
    assert not box.put(b"d")
    await box.flush(is_last=True)
    assert wire.bodies == [b"a", b"bcd"]
    assert wire.ended


@in_virtual_time
async def test_what_waits_leaves_by_itself_when_the_gap_is_over() -> None:
    wire = Wire()
    box = Outbox(wire.send, Pace())
    running = asyncio.create_task(box.run())
    box.put(b"a")
    await box.flush()
    box.put(b"b")
    box.put(b"c")
    await until_quiet()
    assert wire.bodies == [b"a"]
    await asyncio.sleep(GAP_SECONDS)
    assert wire.bodies == [b"a", b"bc"]
    running.cancel()


@in_virtual_time
async def test_a_reader_who_is_behind_stops_the_writer() -> None:
    wire = Wire()
    box = Outbox(wire.send, Pace())
    box.put(b"a")
    await box.flush()
    num_kept = 0
    while not box.put(b"x" * 1024):
        num_kept += 1
    assert num_kept == 64
    wire.gate.clear()
    flushing = asyncio.create_task(box.flush())
    await until_quiet()
    assert not flushing.done()
    wire.gate.set()
    await flushing
    assert len(wire.bodies[1]) == 65 * 1024


@in_virtual_time
async def test_order_is_kept_while_a_lot_is_held_up() -> None:
    wire = Wire()
    box = Outbox(wire.send, Pace())
    running = asyncio.create_task(box.run())
    wire.gate.clear()
    box.put(b"0")
    flushing = asyncio.create_task(box.flush())
    await until_quiet()
    expected = b"0"
    for number in range(1, 50):
        piece = b"-%d" % number
        expected += piece
        box.put(piece)
    await asyncio.sleep(GAP_SECONDS)
    assert wire.asked == [b"0"]  # one sending at a time
    wire.gate.set()
    await flushing
    await box.flush(is_last=True)
    assert b"".join(wire.bodies) == expected
    running.cancel()


def test_nothing_is_sent_for_nothing() -> None:
    async def flush() -> list[bytes]:
        wire = Wire()
        await Outbox(wire.send, Pace()).flush()
        return wire.bodies

    assert asyncio.run(flush()) == []


@pytest.mark.parametrize("text", ["", "x", 'say "hi"\n\\ \u2028', "🦊", '"}],"usage":null}'])
def test_a_filled_template_is_the_frame_itself(text: str) -> None:
    def payload(content: str) -> dict[str, Any]:
        return {"model": 'a"b', "choices": [{"index": 0, "delta": {"content": content}}], "usage": None}

    assert FrameTemplate(payload).fill(text) == frame(payload(text))


def test_the_gap_grows_while_very_many_pieces_leave_and_shrinks_again() -> None:
    pace = Pace()
    pace.count(1, now=100.0)
    assert pace.gap_seconds == GAP_SECONDS
    for step in range(1, 9):
        pace.count(400, now=100.0 + step / 64)
    assert pace.gap_seconds == BUSY_GAP_SECONDS  # 25,600 a second
    for step in range(9, 17):
        pace.count(200, now=100.0 + step / 64)
    assert pace.gap_seconds == GAP_SECONDS


@in_virtual_time
async def test_what_comes_while_the_writer_is_held_up_leaves_by_itself_too() -> None:
    wire = Wire()
    box = Outbox(wire.send, Pace())
    running = asyncio.create_task(box.run())
    box.put(b"a")
    await box.flush()
    wire.gate.clear()
    box.put(b"b")
    await asyncio.sleep(GAP_SECONDS)
    assert wire.asked == [b"a", b"b"]
    box.put(b"c")
    wire.gate.set()
    await until_quiet()
    assert wire.bodies == [b"a", b"b", b"c"]
    running.cancel()
