"""What it is worth to keep memory between steps: forward and backward with it and without.

Command:   python tests/benchmarks/memory.py [--seconds N] [--repeats N]

Each side is a process of its own that takes the same network through the same batch of 64, on one
thread and on two. A round is a stretch of steps of each, in turns, by the clock; the first is left
out. glibc only; elsewhere both sides are the same.
"""

import argparse
from functools import partial

from raymlc.door import SPINS
from raymlc.trial import TrialConfig
from tests.benchmarks.epoch import network_alone, side
from tests.benchmarks.rounds import paired, processor, ratios, spread

PIXELS = {"test_efficientnet": (64, 128), "efficientnet_b0": (64,)}


def compare(config: TrialConfig, threads: int, seconds: float, repeats: int) -> list[float]:
    """Times as fast with memory kept, round by round."""
    with side(partial(network_alone, config, 1), threads, SPINS) as step:
        step()
        steps = max(1, round(seconds / step()))
    gives_back = partial(network_alone, config, steps, keeps_memory=False)
    with (
        side(partial(network_alone, config, steps), threads, SPINS) as keeps,
        side(gives_back, threads, SPINS) as gives,
    ):
        spent = paired({"keeps": keeps, "gives": gives}, repeats)
    return ratios(spent, "gives", "keeps")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2, help="of a stretch, about")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    options = parser.parse_args()
    print(f"{processor()}; batches of 64")
    print("| network | pixels | threads | times as fast, median [range] | n |")
    print("|---|---|---|---|---|")
    for backbone, sizes in PIXELS.items():
        for pixels in sizes:
            config = TrialConfig(backbone=backbone, pretrained=False, image_size=pixels)
            for threads in (1, 2):
                faster = compare(config, threads, options.seconds, options.repeats)
                row = f"{backbone} | {pixels} | {threads} | {spread(faster)} | {len(faster)}"
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
