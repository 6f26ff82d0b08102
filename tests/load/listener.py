"""Which process on this host serves an address."""

from __future__ import annotations

import socket

import psutil

from tests.load.client import endpoint
from tests.load.errors import LoadError


def pid(url: str) -> int:
    """The process that listens there; of several that share the port, the one that all of them are children of. Raises
    LoadError."""
    found = endpoint(url)
    try:
        owners = _unix_owners(found) if isinstance(found, str) else _tcp_owners(url, *found)
    except psutil.AccessDenied:
        raise LoadError(f"who listens on {url} is not for this user to see") from None
    if not owners:
        raise LoadError(f"nobody listens on {url} on this host")
    if None in owners:
        raise LoadError(f"{url} is served by a process of somebody else, or one that this user may not see")
    first, *others = sorted(owner for owner in owners if owner is not None)
    if not others:
        return first
    parents = {psutil.Process(owner).ppid() for owner in (first, *others)}
    if len(parents) > 1:
        raise LoadError(f"several processes listen on {url}: {', '.join(map(str, (first, *others)))}")
    return int(parents.pop())


def _tcp_owners(url: str, host: str, port: int) -> set[int | None]:
    try:
        asked = {str(where[0]) for *_, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise LoadError(f"{url}: {error.strerror or error}") from None
    ours = {address.address.partition("%")[0] for card in psutil.net_if_addrs().values() for address in card}
    if not any(address in ours or address.startswith("127.") for address in asked):
        raise LoadError(f"{url} is not on this host")
    here = {*asked, "0.0.0.0", "::"}
    return {
        listening.pid
        for listening in psutil.net_connections("tcp")
        # grpcio listens on IPv4 addresses through IPv6 sockets.
        if listening.status == psutil.CONN_LISTEN
        and listening.laddr.port == port
        and listening.laddr.ip.removeprefix("::ffff:") in here
    }


def _unix_owners(path: str) -> set[int | None]:
    return {c.pid for c in psutil.net_connections("unix") if c.laddr == path and not c.raddr}
