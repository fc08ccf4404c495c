"""A server without keys is for this machine only, unless somebody insists."""

from __future__ import annotations

import ipaddress
import socket

from service.settings import ServiceSettings


class ExposedWithoutKeys(Exception):
    """The server would be open to everybody who can reach it."""


def check_exposure(settings: ServiceSettings) -> None:
    """Raises ExposedWithoutKeys for an address that other machines can reach, when there are no keys."""
    if settings.api_key_file is None and not settings.insecure_no_auth and not is_loopback(settings.host):
        raise ExposedWithoutKeys(
            f"without API keys everybody who can reach {settings.host or 'any address'} could use it; "
            "give --api-key-file FILE (`nybble keys create` makes a key), listen on 127.0.0.1, or say "
            "--insecure-no-auth"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address or all addresses of the name."""
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found)
