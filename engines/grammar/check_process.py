"""The process that grammars are tried out in.

`python -m engines.grammar.check_process DIRECTORY VOCAB_SIZE EOS_TOKEN_ID`

One JSON value a line: first {"ready": true} or {"unusable": reason}; then, for each grammar read, {"error":
text or null}. A grammar that needs too much stack, memory or time ends the process, which is the answer.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from random import Random

from llguidance import LLMatcher, LLTokenizer

from engines.grammar.limits import (
    CHECK_STACK_BYTES,
    MAX_COMPILE_CPU_SECONDS,
    MAX_MASK_CPU_SECONDS,
    NUM_MASKS_TRIED,
    parser_limits,
)
from engines.grammar.vocabulary import UnusableVocabulary, VocabularySource

_MEMORY_BYTES = 1024 * 1024 * 1024  # above what the vocabulary takes


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the server
    directory, vocab_size, eos_token_id = sys.argv[1:]
    try:
        vocabulary = VocabularySource(Path(directory), int(vocab_size), int(eos_token_id)).load()
    except UnusableVocabulary as error:
        _say({"unusable": str(error)})
        return
    _bound_memory()
    _say({"ready": True})
    threading.stack_size(CHECK_STACK_BYTES)
    worker = threading.Thread(target=_serve, args=(vocabulary,))
    worker.start()
    worker.join()


def check(grammar: str, vocabulary: LLTokenizer) -> str | None:
    """What is wrong with a grammar in llguidance's form; None when it can be used.

    Goes the first steps of one way through it: some grammars compile and turn out to be too much at once.
    """
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=parser_limits())
    random = Random(0)
    for _ in range(NUM_MASKS_TRIED):
        if matcher.is_error() or matcher.is_stopped():
            break
        began = time.thread_time()
        mask = matcher.compute_bitmask()
        if time.thread_time() - began > MAX_MASK_CPU_SECONDS:
            return "it takes too long to say which token may come next"
        allowed = [i for i in range(vocabulary.vocab_size) if mask[i >> 3] >> (i & 7) & 1]
        ordinary = [i for i in allowed if i != vocabulary.eos_token]
        if not ordinary:
            break
        matcher.consume_token(random.choice(ordinary))
    return _first_lines(matcher.get_error()) if matcher.is_error() else None


def _serve(vocabulary: LLTokenizer) -> None:
    for line in sys.stdin:
        _bound_cpu_time()
        _say({"error": check(json.loads(line), vocabulary)})


def _first_lines(error: str) -> str:
    """Without the parser's state, which follows the message."""
    message = error.split("\n<")[0].strip()
    return " ".join(message.split())[:500] or "it is refused without a reason"


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def _bound_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm", encoding="ascii") as file:
        used_bytes = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = used_bytes + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _bound_cpu_time() -> None:
    """From now on; the kernel ends the process with SIGXCPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime) + 1 + MAX_COMPILE_CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
