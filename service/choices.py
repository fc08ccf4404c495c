"""All answers of one request: generated side by side, merged into one stream, measured and counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from engines.errors import EngineDead
from service.admission.ticket import Ticket
from service.admission.time_limits import Expired
from service.disconnect import stop_tasks
from service.errors import RequestAborted
from service.generation import CUT_SHORT, NOTHING_IN_TIME, TextOutput, TextRequest, generate_text
from service.request_account import RequestAccount
from service.sequence_meter import SequenceMeter
from service.state import LoadedModel, ServiceState


@dataclass(slots=True)
class UsageTally:
    """Counts tokens over the prompts and answers of a request; `num_choices` is that of each prompt."""

    num_prompt_tokens: int
    num_choices: int
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0

    def end(self, index: int, last: TextOutput, num_generated_tokens: int) -> None:
        """The answer with this index has ended; the number is that of all answers so far."""
        self.num_generated_tokens = num_generated_tokens
        # The other answers to a prompt find the first one's blocks; that is no saving for the client.
        if index % self.num_choices == 0:
            self.num_cached_tokens += last.num_cached_tokens

    def as_json(self) -> dict[str, Any]:
        """The `usage` object; see `service.protocol.usage.Usage`."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_generated_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_generated_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


def generate_choices(
    state: ServiceState,
    model: LoadedModel,
    requests: Sequence[TextRequest],
    ticket: Ticket,
    account: RequestAccount,
) -> AsyncGenerator[tuple[int, TextOutput], None]:
    """Run the requests together and yield (index, output) in the order outputs come.

    Each waits for its turn first; what it took goes into `account`. Closing the generator, or an error in one
    of the sequences, aborts them all. When a time limit of the ticket passes, what has been generated is the
    answer (`CUT_SHORT`), or its error is raised if that is nothing. Raises also what `generate_text` raises,
    and RequestAborted.
    """
    state.metrics.preparation_seconds.observe(time.perf_counter() - account.arrived)
    for request in requests:
        state.metrics.prompt_tokens.observe(len(request.prompt_token_ids))
    if len(requests) == 1:
        return _measured(state, model, requests, 0, ticket, account)
    return _merged(state, model, requests, ticket, account)


async def _measured(
    state: ServiceState,
    model: LoadedModel,
    requests: Sequence[TextRequest],
    index: int,
    ticket: Ticket,
    account: RequestAccount,
) -> AsyncGenerator[tuple[int, TextOutput], None]:
    """One sequence. Its loop runs once for every token of every stream, so there is little in it."""
    meter = SequenceMeter(state.metrics, account, index)
    last = NOTHING_IN_TIME
    try:
        async with ticket.turn(index):
            meter.admitted()
            outputs = generate_text(model.engine, model.tokenizer, requests[index], ticket=ticket)
            take = meter.take
            try:
                async with aclosing(outputs):
                    async for output in outputs:
                        if output.finish_reason is not None:
                            last = output
                            break
                        if take(output):
                            ticket.count_generated(index, output.num_new_tokens)
                        yield index, output
            finally:
                # The first token changes what the ticket waits for; the others are for its books.
                ticket.count_generated(index, meter.num_later_tokens + last.num_new_tokens)
    except Expired:
        pass  # while it waited for its turn
    except EngineDead as error:
        state.lifecycle.mark_failed(str(error))
        raise
    # After the turn, so that a client that is slow to take the end keeps nobody waiting.
    meter.finish(last, _ending(last))
    if last.finish_reason == "abort":
        raise RequestAborted("The request was aborted by the server's operator.")
    yield index, last


def _ending(output: TextOutput) -> str:
    is_cut = output.finish_reason == "length" and output.stop_reason == CUT_SHORT
    return CUT_SHORT if is_cut else str(output.finish_reason)


async def _merged(
    state: ServiceState,
    model: LoadedModel,
    requests: Sequence[TextRequest],
    ticket: Ticket,
    account: RequestAccount,
) -> AsyncGenerator[tuple[int, TextOutput], None]:
    # Bounded, so that a slow client slows the engine's side of the queue down and not only the socket's.
    queue: asyncio.Queue[tuple[int, TextOutput] | BaseException] = asyncio.Queue(maxsize=2 * len(requests))

    async def pump(index: int) -> None:
        try:
            async with aclosing(_measured(state, model, requests, index, ticket, account)) as outputs:
                async for item in outputs:
                    await queue.put(item)
        except Exception as error:
            await queue.put(error)

    pumps = [asyncio.create_task(pump(index)) for index in range(len(requests))]
    num_unfinished = len(pumps)
    try:
        while num_unfinished:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item[1].finish_reason is not None:
                num_unfinished -= 1
            yield item
    finally:
        await stop_tasks(*pumps)
