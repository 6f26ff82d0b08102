"""Where to listen: an IP address, a host name or `unix:/path`."""

from __future__ import annotations

import socket
from pathlib import Path

BACKLOG = 1024


def listener(address: str, port: int) -> socket.socket:
    """Bound, listening, not blocking. Raises OSError."""
    found = _unix(unix_path(address)) if address.startswith("unix:") else _tcp(address, port)
    found.setblocking(False)
    return found


def unix_path(address: str) -> Path:
    return Path(address.removeprefix("unix:"))


def _tcp(address: str, port: int) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    both = where[0] == "::" and socket.has_dualstack_ipv6()  # IPv4 too, as with grpcio's server and most others
    return socket.create_server((str(where[0]), int(where[1])), family=family, backlog=BACKLOG, dualstack_ipv6=both)


def _unix(path: Path) -> socket.socket:
    """In the place of a socket that a server has left that died, too."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and _dead(path):
            path.unlink()
        found.bind(str(path))
        found.listen(BACKLOG)
    except OSError:
        found.close()
        raise
    return found


def _dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
