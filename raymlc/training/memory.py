"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_BLOCK = 1 << 30  # bytes; a larger one is still the system's as soon as it is freed
_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> None:
    """Let what a step frees be used again by the next one, and give back what is free now.

    By itself glibc gives a step's activations back to the system, which hands them out again page
    by page, cleared; `tests/benchmarks/memory.py` measures what that costs. Holds for the whole
    process from then on; nothing is changed where the user has set the C library's own variables,
    nor where the C library is another one.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _SETTINGS):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    library.malloc_trim(0)
    library.mallopt(_MMAP_THRESHOLD, _BLOCK)
    library.mallopt(_TRIM_THRESHOLD, -1)
