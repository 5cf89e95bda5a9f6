"""What a training process does with memory that it has freed."""

import ctypes
import os
import subprocess
import sys

import pytest

STEPS = """
import resource
import torch
from raymlc.training.memory import keep_freed_memory

def step():
    kept = [torch.ones(4 << 20) for _ in range(8)]  # 16 MiB each, freed together

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
for _ in range(8):
    step()
before = faults()
for _ in range(8):
    step()
print(faults() - before)
"""
glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="the C library is not glibc",
)


def faults(**settings: str) -> int:
    """Pages that the system had to hand out in eight steps of 128 MiB, after eight that warm up."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        env={**os.environ, **settings},
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@glibc
def test_what_a_step_freed_is_used_by_the_next_without_the_system() -> None:
    assert faults() < 1000


@glibc
def test_a_users_own_settings_of_the_c_library_stand() -> None:
    # 32,768 pages a step, given back each time.
    assert faults(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 100_000
