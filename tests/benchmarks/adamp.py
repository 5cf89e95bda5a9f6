"""What a step of AdamP costs, against timm's: ATen calls, host syncs and CPU-seconds.

Command:   python tests/benchmarks/adamp.py [--repeats N]

Both optimizers train a copy of one network, a timm backbone with linear heads of 5, 141 and 47
classes, on one thread. Calls are counted by a dispatch mode below autograd; a host sync is a call
that reads a tensor's value into Python. CPU-seconds of a step alone are paired: the same images,
one optimizer right after the other, the order swapped each time; the first steps are left out.
"""

import argparse
import copy
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from raymlc.optim.adamp import AdamP
from tests.benchmarks.rounds import cpu_seconds, paired, ratios, spread

CLASSES = (5, 141, 47)
LR, WEIGHT_DECAY = 1e-3, 1e-2
WARM_UP = 3  # steps: the first ones allocate


class CallCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the ATen calls made while it is entered, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "aten":
            self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Network(nn.Module):
    """A backbone and one linear head for each count of classes."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, num_classes=0)
        width = self.backbone(torch.zeros(2, 3, 64, 64)).shape[1]
        self.heads = nn.ModuleList(nn.Linear(width, classes) for classes in CLASSES)

    def backward(self, seed: int) -> None:
        """Fresh gradients of the summed cross-entropies on random images and classes."""
        generator = torch.Generator().manual_seed(seed)
        images_BCHW = torch.randn(4, 3, 64, 64, generator=generator)
        self.zero_grad()
        features_BF = self.backbone(images_BCHW)
        losses = []
        for head, classes in zip(self.heads, CLASSES, strict=True):
            targets_B = torch.randint(0, classes, (4,), generator=generator)
            losses.append(nn.functional.cross_entropy(head(features_BF), targets_B))
        torch.autograd.backward(losses)


class Contender:
    """An optimizer at work on its own copy of a network."""

    def __init__(self, network: Network, optimizer: str) -> None:
        self.network = copy.deepcopy(network)
        self.seeds = itertools.count()
        params = list(self.network.parameters())
        self.optimizer: torch.optim.Optimizer
        if optimizer == "timm":
            self.optimizer = create_optimizer_v2(
                params, opt="adamp", lr=LR, weight_decay=WEIGHT_DECAY
            )
        else:
            self.optimizer = AdamP(
                params, lr=LR, weight_decay=WEIGHT_DECAY, gc=optimizer == "ours with gc"
            )

    def step(self) -> float:
        """CPU-seconds of a step on fresh gradients, without the time to compute these."""
        self.network.backward(next(self.seeds))
        return cpu_seconds(self.optimizer.step)

    def count(self) -> tuple[int, int]:
        """ATen calls and host syncs of a step on fresh gradients."""
        self.network.backward(next(self.seeds))
        with CallCounter() as counter:
            self.optimizer.step()
        return counter.calls.total(), counter.calls["_local_scalar_dense"]


def compare(backbone: str, repeats: int) -> None:
    torch.manual_seed(0)
    network = Network(backbone)
    contenders = {name: Contender(network, name) for name in ("timm", "ours", "ours with gc")}
    seconds = paired({name: one.step for name, one in contenders.items()}, repeats, WARM_UP)
    params = sum(param.numel() for param in network.parameters())
    print(f"\n{backbone}, {params / 1e6:.2f} M parameters, n = {repeats}: median [range]")
    for name, contender in contenders.items():
        calls, syncs = contender.count()
        milliseconds = spread([1000 * value for value in seconds[name]], 1)
        print(
            f"  {name:12}  {calls:5} calls  {syncs:3} syncs  {milliseconds} CPU-ms a step,"
            f" timm's divided by it {spread(ratios(seconds, 'timm', name))}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each optimizer")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, timm {timm.__version__}, one thread")
    for backbone in ("efficientnet_b0", "efficientnet_b2"):
        compare(backbone, repeats)


if __name__ == "__main__":
    main()
