"""Evaluation: the same numbers however it is done, and nothing changed by it."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor, nn

from raymlc.data.batches import Normalization, evaluation_batches
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import MISSING, Labels
from raymlc.model.network import Network, build_network
from raymlc.training.evaluate import Workers, autocast_dtype, evaluate
from raymlc.training.metrics import Counts, reported_metrics
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")
PIXELS = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def network(config: TrialConfig, labels: Labels) -> Network:
    """Untrained, with other statistics in its batch norms than they start with."""
    torch.manual_seed(0)
    network = build_network(config, labels).train()
    for _ in range(3):
        network(torch.randn(16, 3, 32, 32))
    return network


def measure(
    network: nn.Module,
    labels: Labels,
    data: ImageSplit,
    batch_size: int = 8,
    precision: str = "auto",
    flip: bool = False,
    workers: Workers = Workers(),
) -> dict[str, float]:
    return evaluate(
        network,
        labels,
        data,
        PIXELS,
        CPU,
        batch_size=batch_size,
        precision=precision,
        flip=flip,
        workers=workers,
    ).metrics("val")


def test_it_equals_scikit_learn_on_logits_of_one_batch_made_by_hand(
    network: Network, labels: Labels, val: ImageSplit
) -> None:
    mean_C, std_C = np.array(PIXELS.mean), np.array(PIXELS.std)
    images_NHWC = ((val.images_NHWC / 255 - mean_C) / std_C).astype(np.float32)
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(images_NHWC.transpose(0, 3, 1, 2).copy()))
    metrics = measure(network, labels, val)
    assert set(metrics) == set(reported_metrics(labels))
    for head in ("color", "side"):
        truth_N = val.targets.values_NT[:, val.targets.columns[head].start]
        said_N = logits[head].argmax(1).numpy()
        known_N = truth_N != MISSING
        expected = accuracy_score(truth_N[known_N], said_N[known_N])
        assert metrics[f"val/accuracy/{head}"] == pytest.approx(expected)
    truth_NK = val.targets.values_NT[:, val.targets.columns["tags"]]
    known_N = truth_NK[:, 0] != MISSING
    expected = accuracy_score(truth_NK[known_N], (logits["tags"] > 0).numpy()[known_N])
    assert metrics["val/accuracy/tags"] == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", [1, 4, 20, 21, 1000])
def test_the_batch_size_changes_nothing(
    network: Network, labels: Labels, val: ImageSplit, batch_size: int
) -> None:
    expected = measure(network, labels, val, batch_size=7)
    assert measure(network, labels, val, batch_size) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("rows", [21, 4])
def test_workers_that_sum_their_counts_measure_what_one_does(
    network: Network, labels: Labels, make_split: Callable[..., ImageSplit], size: int, rows: int
) -> None:
    data = make_split(rows, seed=5)
    alone = CountsOf(0)
    expected = measure(network, labels, data, workers=Workers(0, 1, alone.keep))
    counts = [CountsOf(rank) for rank in range(size)]
    for count in counts:
        measure(network, labels, data, workers=Workers(count.rank, size, count.keep))
    sums = [torch.stack(parts).sum(0) for parts in zip(*(c.kept for c in counts), strict=True)]
    for added, whole in zip(sums, alone.kept, strict=True):
        torch.testing.assert_close(added, whole)  # no row is left out, none is counted twice
    for count in counts:
        left = iter(sums)
        workers = Workers(count.rank, size, replace_with(left))
        together = measure(network, labels, data, workers=workers)
        assert together == pytest.approx(expected, rel=1e-5, nan_ok=True)
        assert next(left, None) is None


@dataclasses.dataclass
class CountsOf:
    """What one worker would have summed with the others."""

    rank: int
    kept: list[Tensor] = dataclasses.field(default_factory=list)

    def keep(self, tensor: Tensor) -> None:
        self.kept.append(tensor.clone())


def replace_with(sums: Iterator[Tensor]) -> Callable[[Tensor], None]:
    def sum_(tensor: Tensor) -> None:
        tensor.copy_(next(sums))

    return sum_


def mirrored(data: ImageSplit) -> ImageSplit:
    return dataclasses.replace(data, images_NHWC=data.images_NHWC[:, :, ::-1].copy())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_mean_of_two_views_that_are_the_same_is_one_view(
    network: Network, labels: Labels, val: ImageSplit, precision: str
) -> None:
    half_NHWC = val.images_NHWC[:, :, :16]
    even = dataclasses.replace(
        val, images_NHWC=np.concatenate([half_NHWC, half_NHWC[:, :, ::-1]], 2)
    )
    expected = measure(network, labels, even, precision=precision)
    flipped = measure(network, labels, even, precision=precision, flip=True)
    assert flipped == pytest.approx(expected, rel=1e-6)


def test_a_flip_makes_an_image_and_its_mirror_image_the_same(
    network: Network, labels: Labels, val: ImageSplit
) -> None:
    one, other = (measure(network, labels, data, flip=True) for data in (val, mirrored(val)))
    assert one == pytest.approx(other, rel=1e-5)
    plain = [measure(network, labels, data)["val/loss"] for data in (val, mirrored(val))]
    assert plain[0] != pytest.approx(plain[1], rel=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_it_counts_the_logits_of_the_part_that_is_seen(
    network: Network, labels: Labels, val: ImageSplit, flip: bool
) -> None:
    expected = Counts(labels, val.targets, CPU)
    for batch in evaluation_batches(val, 4, PIXELS, CPU, eval_crop=0.5, interpolation="bicubic"):
        with torch.no_grad():
            logits = network.eval()(batch.images_BCHW)
            if flip:
                mirror = network(batch.images_BCHW.flip(3))
                logits = {head: (logits[head] + mirror[head]) / 2 for head in logits}
        expected.add(logits, batch.targets)
    counts = evaluate(
        network,
        labels,
        val,
        PIXELS,
        CPU,
        batch_size=4,
        eval_crop=0.5,
        interpolation="bicubic",
        flip=flip,
    )
    assert counts.metrics("val") == pytest.approx(expected.metrics("val"), rel=1e-6)
    assert counts.confusion() == expected.confusion()
    whole = measure(network, labels, val, flip=flip)
    assert counts.metrics("val")["val/loss"] != pytest.approx(whole["val/loss"])


def test_it_changes_no_weight_no_statistic_no_gradient_and_no_random_number(
    network: Network, labels: Labels, val: ImageSplit
) -> None:
    network.train()
    torch.autograd.backward([part.sum() for part in network(torch.randn(4, 3, 32, 32)).values()])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters()]  # type: ignore[union-attr]
    random_state = torch.get_rng_state()
    measure(network, labels, val)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()
    network.zero_grad()


def test_it_records_nothing_for_a_backward_pass(
    network: Network, labels: Labels, val: ImageSplit
) -> None:
    recorded: list[bool] = []
    hook = network.register_forward_hook(
        lambda _, __, logits: recorded.extend(part.requires_grad for part in logits.values())
    )
    measure(network, labels, val)
    hook.remove()
    assert recorded
    assert not any(recorded)


def test_it_leaves_the_model_in_evaluation_mode(
    network: Network, labels: Labels, val: ImageSplit
) -> None:
    network.train()
    first = measure(network, labels, val)
    assert not any(part.training for part in network.modules())
    assert measure(network, labels, val) == first


def test_the_rows_of_a_split_are_found_through_their_places(
    network: Network, labels: Labels, val: ImageSplit
) -> None:
    order_N = np.random.default_rng(0).permutation(len(val))
    shuffled = ImageSplit(
        val.images_NHWC, val.places_N[order_N], val.targets.take(order_N), skipped=0
    )
    expected = measure(network, labels, val)
    assert measure(network, labels, shuffled) == pytest.approx(expected, rel=1e-5)
    wrong = dataclasses.replace(val, places_N=val.places_N[order_N])
    assert measure(network, labels, wrong)["val/loss"] != pytest.approx(expected["val/loss"])


def test_bf16_changes_the_logits_a_little_and_the_losses_are_of_float32(
    network: Network, labels: Labels, val: ImageSplit
) -> None:
    full = measure(network, labels, val, precision="fp32")
    reduced = measure(network, labels, val, precision="bf16")
    assert reduced["val/loss"] != full["val/loss"]
    assert reduced["val/loss"] == pytest.approx(full["val/loss"], rel=0.02)


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", None),
        ("fp32", "cpu", None),
        ("bf16", "cpu", torch.bfloat16),
        ("fp32", "cuda", None),
        ("bf16", "cuda", torch.bfloat16),
        ("fp16", "cuda", torch.float16),
    ],
)
def test_the_type_that_a_trial_computes_in(
    precision: str, device: str, expected: torch.dtype | None
) -> None:
    assert autocast_dtype(precision, torch.device(device)) == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_auto_takes_the_best_reduced_type_of_a_gpu(
    has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    assert autocast_dtype("auto", torch.device("cuda")) == getattr(torch, expected)


def test_fp16_on_a_cpu_is_refused_with_what_to_take_instead() -> None:
    with pytest.raises(UserError, match="use bf16 or fp32"):
        autocast_dtype("fp16", CPU)
