"""What an update of the moving average costs in CPU-seconds, against timm's ModelEmaV3.

Command:   python tests/benchmarks/ema.py [--repeats N]

Both average the same timm backbone on one thread. CPU-seconds are paired: one after the other,
the order swapped each time; timm's has `foreach` on, as by default. The first updates are left out.
The floor is one call on two arrays of as many numbers, as if the model were a single parameter.
"""

import argparse
import time
from collections.abc import Callable

import timm
import torch
from timm.utils import ModelEmaV3

from raymlc.model.ema import EMA
from tests.benchmarks.adamp import spread

DECAY = 0.998
WARM_UP = 3  # updates


def cpu_seconds(update: Callable[[], object]) -> float:
    """Of one call."""
    start = time.process_time()
    update()
    return time.process_time() - start


def compare(backbone: str, repeats: int) -> None:
    """Print the costs and the paired ratios."""
    torch.manual_seed(0)
    model = timm.create_model(backbone)
    ours = EMA(model, DECAY)
    theirs = ModelEmaV3(model, decay=DECAY, use_warmup=True)
    average = torch.cat([p.detach().flatten() for p in model.state_dict().values() if p.ndim])
    weights = average.clone()
    updates: dict[str, Callable[[], object]] = {
        "timm": lambda: theirs.update(model, step=ours.updates),
        "ours": ours.update,
        "floor": lambda: average.lerp_(weights, 1 - DECAY),
    }
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for repeat in range(WARM_UP + repeats):
        for name in sorted(updates, reverse=bool(repeat % 2)):
            spent = cpu_seconds(updates[name])
            if repeat >= WARM_UP:
                seconds[name].append(spent)
    print(f"{backbone}, n = {repeats}, CPU-ms an update: median [range]")
    for name, own in seconds.items():
        ratios = [t / o for t, o in zip(seconds["timm"], own, strict=True)]
        print(
            f"  {name:5}  {spread([1000 * value for value in own], 2)},"
            f" timm's divided by it {spread(ratios, 2)}"
        )


def main() -> None:
    """Measure on two backbones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=30, help="timed updates of each average")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, timm {timm.__version__}, one thread")
    for backbone in ("efficientnet_b0", "efficientnet_b2"):
        compare(backbone, repeats)


if __name__ == "__main__":
    main()
