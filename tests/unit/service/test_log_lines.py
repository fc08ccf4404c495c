"""Log lines in both formats."""

from __future__ import annotations

import json
import logging

from service.logs import JsonFormatter, TextFormatter


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("nybble", logging.INFO, "x.py", 1, "hello %s", ("you",), None)
    made.__dict__.update(extra)
    return made


def test_json_lines_hold_the_known_fields_only() -> None:
    line = json.loads(JsonFormatter().format(record(request_id="r", seconds=0.5, prompt="secret")))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "nybble",
        "message": "hello you",
        "request_id": "r",
        "seconds": 0.5,
    }


def test_text_lines_end_with_the_fields() -> None:
    line = TextFormatter().format(record(request_id="r", status=200))
    assert line.endswith("INFO nybble hello you request_id=r status=200")
