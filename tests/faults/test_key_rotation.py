"""A key is replaced under load: the old one works until it is taken out, streams that run are not cut."""

from __future__ import annotations

from pathlib import Path

from tests.support.drill import MODEL, Load, ask, drill
from tests.support.service import wait_until

BODY: dict[str, object] = {
    "model": MODEL,
    "prompt": "x",
    "ignore_eos": True,
    "max_tokens": 60,
    "stream": True,
}


def test_a_key_is_rotated_under_load(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old-key\n")
    with drill("--api-key-file", str(keys), "--echo-faults", "step_seconds=0.002") as process:
        process.wait_until_ready()

        def status(api_key: str) -> int:
            return ask(process.url, "/v1/completions", {**BODY, "max_tokens": 1}, api_key).status

        assert (status("old-key"), status("new-key")) == (200, 401)
        with Load(process.url, 6, "/v1/completions", BODY, "old-key") as load:
            load.wait_for_more(6)
            keys.write_text("old-key\nnew-key\n")
            wait_until(lambda: status("new-key") == 200, seconds=30, what="the new key works")
            assert status("old-key") == 200
            load.api_key = "new-key"
            load.wait_for_more(12)  # whatever was asked with the old one is answered
            keys.write_text("new-key\n")
            wait_until(lambda: status("old-key") == 401, seconds=30, what="the old key is out")
            load.wait_for_more(12)
        process.popen.terminate()
        assert process.wait() == 0
    assert all(answer.is_complete_stream for answer in load.answers)
    assert "old-key" not in process.log
    assert "new-key" not in process.log
