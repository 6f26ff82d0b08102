"""How the process keeps memory: freed memory stays at hand, and objects that live for ever are left alone."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
MMAP_BYTES = 32 << 20
"""glibc's own upper limit."""
KEPT_BYTES = 128 << 20


def keep_freed() -> bool:
    """Have glibc give memory back to the system only beyond 128 MiB; False where there is no glibc.

    By default each tensor of some hundred KiB and more is mapped and unmapped, and each page of it faults anew: an echo
    of 16 MB took 65 ms of processor time so, and 20 ms with this.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


def freeze() -> None:
    """What has been made until now (modules, models) is no longer looked through by the garbage collector."""
    gc.collect()
    gc.freeze()
