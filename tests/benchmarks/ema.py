"""What an update of the moving average costs in CPU-seconds, against timm's ModelEmaV3.

Command:   python tests/benchmarks/ema.py [--repeats N]

Both average the same timm backbone on one thread. CPU-seconds are paired: one after the other,
the order swapped each time; timm's has `foreach` on, as by default. The first updates are left out.
The floor is one call on two arrays of as many numbers, as if the model were a single parameter.
"""

import argparse
from functools import partial

import timm
import torch
from timm.utils import ModelEmaV3

from raymlc.model.ema import EMA
from tests.benchmarks.rounds import cpu_seconds, paired, ratios, spread

DECAY = 0.998
WARM_UP = 3  # updates


def compare(backbone: str, repeats: int) -> None:
    """Print the costs and the paired ratios."""
    torch.manual_seed(0)
    model = timm.create_model(backbone)
    ours = EMA(model, DECAY)
    theirs = ModelEmaV3(model, decay=DECAY, use_warmup=True)
    average = torch.cat([p.detach().flatten() for p in model.state_dict().values() if p.ndim])
    weights = average.clone()
    updates = {
        "timm": lambda: theirs.update(model, step=ours.updates),
        "ours": ours.update,
        "floor": lambda: average.lerp_(weights, 1 - DECAY),
    }
    sides = {name: partial(cpu_seconds, update) for name, update in updates.items()}
    seconds = paired(sides, repeats, WARM_UP)
    print(f"{backbone}, n = {repeats}, CPU-ms an update: median [range]")
    for name, own in seconds.items():
        print(
            f"  {name:5}  {spread([1000 * value for value in own])},"
            f" timm's divided by it {spread(ratios(seconds, 'timm', name))}"
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
