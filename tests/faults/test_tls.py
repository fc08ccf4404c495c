"""Certificates that expired, are exchanged under load, or are missing on the client's side."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import make_pair
from tests.support.drill import MODEL, Load, drill, served_certificate
from tests.support.service import wait_until

BODY: dict[str, object] = {
    "model": MODEL,
    "prompt": "x",
    "ignore_eos": True,
    "max_tokens": 40,
    "stream": True,
}
GAUGE = 'nybble_tls_certificate_expiry_timestamp_seconds{subject="CN=nybble-test"}'


def tls_options(certificate: Path, key: Path) -> tuple[str, ...]:
    return "--tls-cert-file", str(certificate), "--tls-key-file", str(key)


def test_a_server_does_not_start_with_an_expired_certificate(tmp_path: Path) -> None:
    pair = make_pair(valid_from=-timedelta(days=9), valid_for=-timedelta(days=2))
    with drill(*tls_options(*pair.write(tmp_path))) as process:
        assert process.wait() == 1
    date = pair.certificate.not_valid_after_utc.strftime("%Y-%m-%d")
    assert f"expired on {date}" in process.log
    assert process.log.count("\n") == 1


def test_a_new_certificate_is_taken_under_load_and_an_expired_one_is_not(tmp_path: Path) -> None:
    first, second = make_pair(), make_pair(valid_for=timedelta(days=300))
    expired = make_pair(valid_from=-timedelta(days=9), valid_for=-timedelta(days=2))
    with drill(*tls_options(*first.write(tmp_path)), "--echo-faults", "step_seconds=0.002") as process:
        process.wait_until_ready()
        url = f"https://127.0.0.1:{process.port}"
        assert process.metric(GAUGE) == first.certificate.not_valid_after_utc.timestamp()
        with Load(url, 6, "/v1/completions", BODY) as load:
            load.wait_for_more(6)
            assert served_certificate(process.port) == first.der
            second.write(tmp_path)
            wait_until(
                lambda: served_certificate(process.port) == second.der,
                seconds=30,
                what="the new one is served",
            )
            assert process.metric(GAUGE) == second.certificate.not_valid_after_utc.timestamp()
            expired.write(tmp_path)
            wait_until(
                lambda: "the old one stays" in process.log, seconds=30, what="the expired one was looked at"
            )
            assert served_certificate(process.port) == second.der
            load.wait_for_more(6)
        process.popen.terminate()
        assert process.wait() == 0
    assert all(answer.is_complete_stream for answer in load.answers)


def test_clients_may_need_a_certificate_too(tmp_path: Path) -> None:
    server, client = make_pair(), make_pair()
    authority, client_key = client.write(tmp_path / "client")
    certificate, key = server.write(tmp_path / "server")
    with drill(*tls_options(certificate, key), "--tls-client-ca-file", str(authority)) as process:
        process.wait_until_ready()
        context = ssl.create_default_context(cafile=str(certificate))
        url = f"https://127.0.0.1:{process.port}/version"
        # In TLS 1.3 the refusal comes after the client's side of the handshake.
        with httpx.Client(verify=context) as without, pytest.raises(httpx.TransportError):
            without.get(url)
        context.load_cert_chain(authority, client_key)
        with httpx.Client(verify=context) as http:
            assert http.get(url).status_code == 200
