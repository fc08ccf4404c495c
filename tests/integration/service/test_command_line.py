"""The `nybble` command in this process: mistakes, and `generate`."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import MissingScope
from service.exposure import check_exposure, is_loopback
from service.keys.entry import Scope
from service.keys.file import read_keys
from service.keys.ring import KeyRing
from service.settings import ServiceSettings
from tests.support.command_line import Result

CHECKPOINT = str(Path(__file__).parents[2] / "golden" / "mistral-mxfp4-ct")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("serve", "/nonexistent"), 1, "not a folder"),
        (("serve", CHECKPOINT, "--engine", "warp"), 1, "expected one of: auto, cpu"),
        (("serve", CHECKPOINT, "--activations", "fp2"), 1, "activations"),
        (("serve", CHECKPOINT, "--kv-cache-memory", "lots"), 1, "kv_cache_memory_bytes"),
        (("serve", CHECKPOINT, "--port", "70000"), 1, "port"),
        (("serve", CHECKPOINT, "--api-key-file", "/nonexistent"), 1, "API key file"),
        (("serve", CHECKPOINT, "--host", "0.0.0.0"), 1, "--insecure-no-auth"),
        (("serve", CHECKPOINT, "--host", "::"), 1, "--api-key-file"),
        (("keys", "create"), 2, "--name"),
        (("keys", "create", "--name", "a b"), 2, "--name"),
        (("keys", "create", "--name", "a", "--scope", "root"), 2, "inference, metrics, admin"),
        (("keys", "create", "--name", "a", "--expires", "2099-01-01T00:00:00"), 2, "with a zone"),
        (("keys", "create", "--name", "a", "--expires", "2001-01-01T00:00:00Z"), 2, "has passed"),
        (("keys", "check", "/nonexistent"), 1, "cannot read"),
        (("serve", CHECKPOINT, "--no-such-option"), 2, "--no-such-option"),
        (("serve",), 2, "DIR"),
        (("generate", CHECKPOINT), 2, "--prompt"),
        (("generate", CHECKPOINT, "--prompt", "a", "--chat", "b"), 2, "--prompt"),
        (("generate", CHECKPOINT, "--prompt", "a", "--stop", ""), 2, "--stop"),
        (("generate", CHECKPOINT, "--prompt", "a", "--kv-cache-memory", "lots"), 2, "lots"),
        (("generate", CHECKPOINT, "--prompt", "a", "--engine", "warp"), 1, "unknown engine"),
        (("generate", CHECKPOINT, "--engine", "echo", "--prompt", "a " * 2000), 1, "context holds"),
        (("generate", "/nonexistent", "--prompt", "a"), 2, "not a folder"),
    ],
)
def test_mistakes_are_explained_in_one_line(
    run: Callable[..., Result], arguments: tuple[str, ...], status: int, text: str
) -> None:
    result = run(*arguments)
    assert result.status == status
    assert result.err.startswith("error: ")
    assert text in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_a_port_that_is_taken(run: Callable[..., Result]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("serve", CHECKPOINT, "--engine", "echo", "--port", port)
    assert result.status == 1
    assert result.err.startswith(f"error: cannot listen on 127.0.0.1:{port}")


def test_version(run: Callable[..., Result]) -> None:
    result = run("--version")
    assert result.status == 0
    assert result.out.strip()


def test_inspect_is_there(run: Callable[..., Result]) -> None:
    assert run("inspect", CHECKPOINT).status == 0


def test_generate_writes_the_answer(run: Callable[..., Result]) -> None:
    result = run("generate", CHECKPOINT, "--engine", "echo", "--prompt", "héllo", "--max-tokens", "200")
    assert result.status == 0, result.err
    assert result.out == "héllo\n"


def test_generate_json(run: Callable[..., Result]) -> None:
    options = ("--engine", "echo", "--chat", "hello", "--max-tokens", "5", "--json")
    result = run("generate", CHECKPOINT, *options)
    assert result.status == 0, result.err
    answer = json.loads(result.out)
    assert answer["finish_reason"] == "length"
    assert answer["num_generated_tokens"] == len(answer["token_ids"]) == 5


def test_a_key_that_was_created_is_the_one_that_is_let_in(run: Callable[..., Result], tmp_path: Path) -> None:
    options = (
        "--name",
        "alice",
        "--scope",
        "metrics",
        "--scope",
        "admin",
        "--expires",
        "2099-01-01T00:00:00Z",
    )
    created = run("keys", "create", *options)
    assert created.status == 0
    (key,) = [line for line in created.err.splitlines() if not line.startswith("#")]
    assert key.startswith("sk-nybble-")
    assert key not in created.out
    file = tmp_path / "keys.toml"
    file.write_text(created.out)
    ring = KeyRing(read_keys(file))
    assert ring.identify(key.encode(), Scope.METRICS).key.name == "alice"
    with pytest.raises(MissingScope):
        ring.identify(key.encode(), Scope.INFERENCE)
    checked = run("keys", "check", str(file))
    assert checked.out == "alice  admin,metrics  expires 2099-01-01T00:00:00+00:00  priority 0  weight 1\n"
    assert run("keys", "create", "--name", "alice").err != created.err


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
    ],
)
def test_which_addresses_only_this_machine_can_reach(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_whoever_insists_or_has_keys_may_serve_other_machines(tmp_path: Path) -> None:
    for fields in ({"insecure_no_auth": True}, {"api_key_file": tmp_path}):
        check_exposure(
            ServiceSettings.model_validate({"checkpoint": CHECKPOINT, "host": "0.0.0.0", **fields})
        )


def test_the_settings_are_printed_with_their_sources(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nybble.toml"
    file.write_text(f"checkpoint = {json.dumps(CHECKPOINT)}\nmax_num_seqs = 3\nport = 1\n")
    monkeypatch.setenv("NYBBLE_CONFIG", str(file))
    monkeypatch.setenv("NYBBLE_PORT", "2")
    result = run("serve", "--max-num-seqs", "5", "--print-config")
    assert result.status == 0
    lines = result.out.splitlines()
    assert f"checkpoint = {json.dumps(CHECKPOINT)}  # {file}" in lines
    assert "max_num_seqs = 5  # flag" in lines
    assert "port = 2  # NYBBLE_PORT" in lines
    assert "# block_size = 16" in lines


def test_a_mistake_in_the_configuration_file_is_one_line(run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "nybble.toml"
    file.write_text("max_num_seq = 3\n")
    result = run("serve", CHECKPOINT, "--config", str(file))
    assert result.status == 1
    assert result.err == f"error: {file}: unknown key 'max_num_seq'; did you mean 'max_num_seqs'?\n"
