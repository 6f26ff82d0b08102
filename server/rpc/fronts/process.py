"""Starting a front: a process of its own, a socket and a piece of unnamed memory, and no other tie."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from server.rpc.fronts.link import MEMORY_BYTES, Link

ROOT = Path(__file__).resolve().parents[3]
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_LEFT_TO_US = (signal.SIGINT, signal.SIGTERM)
"""A terminal and an init system send these to the whole group; the engine is the one that says when a front ends."""


def start(most: int) -> tuple[subprocess.Popen[bytes], Link]:
    """A front that waits for its SETUP; `most` as in Link. Raises OSError."""
    here, there = socket.socketpair()
    with there:
        try:
            memory = os.memfd_create("demiglace-front", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(memory, MEMORY_BYTES)
                # memory that shrinks under a reader kills the reader
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
                link = Link(here, mmap.mmap(memory, MEMORY_BYTES), engine=True, most=most)
                return _start(there.fileno(), memory), link
            finally:
                os.close(memory)
        except OSError:
            here.close()
            raise


def _start(bell: int, memory: int) -> subprocess.Popen[bytes]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_US)  # what a thread blocks, its children do
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "server.rpc.fronts.front", str(bell), str(memory)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=(bell, memory),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
