"""Starting a front: a process of its own, two sockets and a piece of unnamed memory, and no other tie."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from server.rpc.fronts.link import MEMORY_BYTES, Link

ROOT = Path(__file__).resolve().parents[3]
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_LEFT_TO_US = (signal.SIGINT, signal.SIGTERM)
"""A terminal and an init system send these to the whole group; the engine is the one that says when a front ends."""


def start(most: int) -> tuple[subprocess.Popen[bytes], Link, socket.socket]:
    """A front that waits for its SETUP, and the door through which it takes connections; `most` as in Link.

    Raises OSError.
    """
    with ExitStack() as theirs, ExitStack() as ours:
        bell, their_bell = socket.socketpair()
        door, their_door = socket.socketpair()
        for end in (bell, door):
            ours.callback(end.close)
        for end in (their_bell, their_door):
            theirs.callback(end.close)
        memory = os.memfd_create("demiglace-front", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        theirs.callback(os.close, memory)
        os.ftruncate(memory, MEMORY_BYTES)
        # memory that shrinks under a reader kills the reader
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        mapped = mmap.mmap(memory, MEMORY_BYTES)
        started = _start(their_bell.fileno(), their_door.fileno(), memory)
        ours.pop_all()
        door.setblocking(False)
        return started, Link(bell, mapped, engine=True, most=most), door


def command() -> list[str]:
    return [sys.executable, "-m", "server.rpc.fronts.front"]


def _start(*descriptors: int) -> subprocess.Popen[bytes]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_US)  # what a thread blocks, its children do
    try:
        return subprocess.Popen(
            [*command(), *map(str, descriptors)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
