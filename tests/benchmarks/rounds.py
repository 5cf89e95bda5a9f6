"""What the benchmarks share: rounds of the sides of a comparison, and how they are told."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def paired(
    sides: Mapping[str, Callable[[], float]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds, as each side tells its own, in every round but the first `warm_up`.

    A round is one call of each side, one after the other, the order swapped each time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warm_up + repeats):
        for name in sorted(sides, reverse=bool(repeat % 2)):
            spent = sides[name]()
            if repeat >= warm_up:
                seconds[name].append(spent)
    return seconds


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> list[float]:
    """How many times as fast one side was, round by round."""
    return [one / other for one, other in zip(seconds[slow], seconds[fast], strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    return (
        f"{statistics.median(values):.{digits}f}"
        f" [{min(values):.{digits}f}–{max(values):.{digits}f}]"
    )


def processor() -> str:
    """The name of this machine's processor, as well as Python can tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
