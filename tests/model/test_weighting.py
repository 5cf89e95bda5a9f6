"""The weights of the heads' losses against plain formulas and few-line references.

B images, P pixels, F features, H heads, K classes of a head.
"""

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import methodcaller
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raymlc.labels import MISSING, Head, Labels
from raymlc.model.loss import HeadLosses, summed_loss
from raymlc.model.weighting import TaskWeighting
from raymlc.trial import TrialConfig
from tests.no_waiting import no_waiting

CPU = torch.device("cpu")
SIZES = {"color": 3, "side": 2, "article": 9}
LABELS = Labels(tuple(Head(name, tuple(map(str, range(size)))) for name, size in SIZES.items()))
WEIGHTINGS: dict[str, dict[str, Any]] = {
    "fixed": {"head_weights": {"color": 3.0, "article": 0.5}},
    "uncertainty": {"task_weighting": "uncertainty"},
    "gradnorm": {"task_weighting": "gradnorm"},
}
every_weighting = pytest.mark.parametrize("name", WEIGHTINGS)


def weighting_of(**changes: Any) -> TaskWeighting:
    return TaskWeighting(TrialConfig(**changes), LABELS, CPU)


def alone(tensor: Tensor) -> None:
    """One worker's sum over all workers is its own."""


class Net(nn.Module):
    """Features of a linear layer, and a head for each entry of SIZES."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Linear(6, 5)
        heads = [nn.Linear(5, size) for size in SIZES.values()]
        with torch.no_grad():
            heads[2].weight *= 6  # a steeper head
        self.heads = nn.ModuleList(heads)

    def forward(self, pixels_BP: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features_BF = self.backbone(pixels_BP).tanh()
        heads = zip(SIZES, self.heads, strict=True)
        return features_BF, {name: head(features_BF) for name, head in heads}


Step = tuple[Tensor, dict[str, Tensor]]


def steps_of(seed: int, count: int, rows: int = 12, absent: Sequence[str] = ()) -> list[Step]:
    """Pixels and targets of some steps; the first one has no label of the heads in `absent`."""
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for step in range(count):
        pixels_BP = torch.randn(rows, 6, generator=generator)
        targets = {}
        for head, size in SIZES.items():
            target_B = (pixels_BP[:, :size].sum(1) * 2).long().remainder(size)
            lost_B = torch.rand(rows, generator=generator) < 0.3
            if step == 0 and head in absent:
                lost_B[:] = True
            targets[head] = torch.where(lost_B, MISSING, target_B)
        steps.append((pixels_BP, targets))
    return steps


def known_of(targets: Mapping[str, Tensor], workers: int = 1) -> dict[str, float]:
    return {head: float((target != MISSING).sum()) / workers for head, target in targets.items()}


def sums_of(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {head: summed_loss(logits[head], target) for head, target in targets.items()}


def part_of(step: Step, rows: slice) -> Step:
    pixels_BP, targets = step
    return pixels_BP[rows], {head: target[rows] for head, target in targets.items()}


def gradients_of(
    net: Net,
    weighting: TaskWeighting,
    step: Step,
    parts: Sequence[slice] = (slice(None),),
    known: Mapping[str, float] | None = None,
) -> float:
    """Add a worker's gradients of a step, part after part, as training does; its loss."""
    known = known or known_of(step[1])
    loss = 0.0
    for rows in parts:
        pixels_BP, targets = part_of(step, rows)
        features_BF, logits = net(pixels_BP)
        sums = sums_of(logits, targets)
        combined = weighting.combine(sums, known, len(pixels_BP) / len(step[0]))
        if weighting.needs_features:
            weighting.observe(sums, known, features_BF)
        torch.autograd.backward(combined)
        loss += float(combined.detach())
    return loss


def trained(weighting: TaskWeighting, steps: Sequence[Step], seed: int = 0) -> list[Tensor]:
    """The weights after each step of SGD."""
    net = Net(seed)
    optimizer = torch.optim.SGD([*net.parameters(), *weighting.parameters()], lr=0.1)
    weights = []
    for step in steps:
        gradients_of(net, weighting, step)
        optimizer.step()
        optimizer.zero_grad()
        if weighting.needs_features:
            weighting.update(alone, 1)
        weights.append(weighting.weights())
    return weights


def random_sums(seed: int, requires_grad: bool = False) -> dict[str, Tensor]:
    values_H = 10 * torch.rand(3, generator=torch.Generator().manual_seed(seed))
    return {
        name: value.clone().requires_grad_(requires_grad)
        for name, value in zip(SIZES, values_H, strict=True)
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("absent", [(), ("side",), ("color", "article")])
def test_by_default_the_loss_is_the_mean_over_heads_of_means_over_known_labels(
    seed: int, absent: tuple[str, ...]
) -> None:
    targets = steps_of(seed, 1, absent=absent)[0][1]
    known = known_of(targets)
    logits = {head: torch.randn(12, size) for head, size in SIZES.items()}
    loss = weighting_of().combine(sums_of(logits, targets), known, 1.0)
    means = [
        cross_entropy(logits[head], target, ignore_index=MISSING)
        for head, target in targets.items()
        if head not in absent
    ]
    torch.testing.assert_close(loss, torch.stack(means).mean())


def test_fixed_weights_make_a_weighted_mean_over_the_heads_with_labels() -> None:
    weights = {"color": 3.0, "side": 1.0, "article": 0.5}
    sums, known = random_sums(0), {"color": 4.0, "side": 8.0, "article": 2.5}
    weighting = weighting_of(head_weights={"color": 3.0, "article": 0.5})
    for absent in (None, *SIZES):
        present = {head: 0.0 if head == absent else count for head, count in known.items()}
        heads = [head for head in SIZES if head != absent]
        mean = sum(weights[head] * float(sums[head]) / known[head] for head in heads)
        loss = weighting.combine(sums, present, 1.0)
        assert float(loss) == pytest.approx(mean / sum(weights[head] for head in heads))


def test_only_the_ratios_of_fixed_weights_count() -> None:
    sums, known = random_sums(1), dict.fromkeys(SIZES, 4.0)
    one, other = (
        weighting_of(head_weights={"color": 2.0 * scale, "side": scale, "article": 5.0 * scale})
        for scale in (1.0, 0.01)
    )
    torch.testing.assert_close(one.combine(sums, known, 1.0), other.combine(sums, known, 1.0))
    torch.testing.assert_close(one.weights(), torch.tensor([2.0, 1.0, 5.0]) * 3 / 8)
    torch.testing.assert_close(other.weights(), one.weights())


@every_weighting
@pytest.mark.parametrize("absent", [("side",), ("color", "article"), tuple(SIZES)])
def test_heads_without_labels_are_left_out_and_get_zero_gradients(
    name: str, absent: tuple[str, ...]
) -> None:
    sums = random_sums(2, requires_grad=True)
    known = {head: 0.0 if head in absent else 5.0 for head in SIZES}
    loss = weighting_of(**WEIGHTINGS[name]).combine(sums, known, 1.0)
    torch.autograd.backward(loss)
    for head, value in sums.items():
        assert value.grad is not None  # which an average of gradients over workers waits for
        assert value.grad.isfinite()
        assert bool(value.grad == 0) == (head in absent)
    assert bool(loss.detach() == 0) == (absent == tuple(SIZES))


@every_weighting
def test_the_weights_are_what_the_mean_losses_are_multiplied_by_in_a_mean(name: str) -> None:
    weighting = weighting_of(**WEIGHTINGS[name])
    trained(weighting, steps_of(3, 5))
    sums = random_sums(3, requires_grad=True)
    torch.autograd.backward(weighting.combine(sums, dict.fromkeys(SIZES, 1.0), 1.0))
    factors = [float(value.grad) for value in sums.values() if value.grad is not None]
    assert (3 * torch.tensor(factors)).tolist() == pytest.approx(weighting.weights().tolist())
    assert not weighting.weights().requires_grad
    assert len({round(weight, 3) for weight in weighting.weights().tolist()}) == 3


@every_weighting
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("size", [2, 5, 12])
def test_parts_add_up_and_workers_average_to_the_whole_step(
    name: str, workers: int, size: int
) -> None:
    """Labels are missing more in one part than in another, and in some altogether."""
    weighting = weighting_of(**WEIGHTINGS[name])
    trained(weighting, steps_of(4, 3))
    (step,) = steps_of(5, 1)
    step[1]["side"][:8] = MISSING
    net = Net(0)
    watched = [*net.parameters(), *weighting.parameters()]
    whole = gradients_of(net, weighting, step)
    expected = [parameter.grad for parameter in watched]
    for parameter in watched:
        parameter.grad = None
    rows = 12 // workers
    losses = []
    for rank in range(workers):
        mine = part_of(step, slice(rank * rows, (rank + 1) * rows))
        parts = [slice(start, start + size) for start in range(0, rows, size)]
        known = known_of(step[1], workers)
        losses.append(gradients_of(net, weighting, mine, parts, known))
    assert sum(losses) / workers == pytest.approx(whole, rel=1e-5)
    for parameter, gradient in zip(watched, expected, strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad / workers, gradient, rtol=1e-4, atol=1e-6)


def test_uncertainty_is_the_papers_loss_with_learnt_log_variances() -> None:
    """arXiv:1705.07115, for classification: L / sigma^2 + log sigma, with s = log sigma^2."""
    steps = steps_of(6, 20, absent=("side",))
    weighting = weighting_of(task_weighting="uncertainty")
    weights = trained(weighting, steps)
    net, sigmas = Net(0), {head: torch.ones((), requires_grad=True) for head in SIZES}
    for (pixels_BP, targets), weights_H in zip(steps, weights, strict=True):
        losses = {
            head: cross_entropy(logits, targets[head], ignore_index=MISSING)
            for head, logits in net(pixels_BP)[1].items()
            if (targets[head] != MISSING).any()
        }
        terms = [loss / sigmas[head] ** 2 + sigmas[head].log() for head, loss in losses.items()]
        torch.autograd.backward(torch.stack(terms).mean())
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.1)
                    parameter.grad = None
            for sigma in sigmas.values():
                if sigma.grad is not None:
                    # ds = 2 dsigma / sigma, so the gradient by s is that by sigma times sigma / 2.
                    s = 2 * sigma.log() - 0.1 * sigma.grad * sigma / 2
                    sigma.copy_((s / 2).exp())
                    sigma.grad = None
        expected = [1 / float(sigma.detach()) ** 2 for sigma in sigmas.values()]
        assert weights_H.tolist() == pytest.approx(expected, rel=1e-4)
    assert weights[0][1] == 1  # no label of "side" in the first step
    assert min(abs(weights[-1] - 1)) > 0.01


def test_uncertainty_weighs_losses_that_stay_as_they_are_by_half_their_inverse() -> None:
    weighting = weighting_of(task_weighting="uncertainty")
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.5)
    sums = {"color": torch.tensor(2.0), "side": torch.tensor(0.5), "article": torch.tensor(8.0)}
    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(weighting.combine(sums, dict.fromkeys(SIZES, 1.0), 1.0))
        optimizer.step()
    assert weighting.weights().tolist() == pytest.approx([1 / 4, 1, 1 / 16], rel=1e-3)


@every_weighting
def test_only_uncertainty_has_parameters_and_only_gradnorm_looks_at_features(name: str) -> None:
    weighting = weighting_of(**WEIGHTINGS[name])
    assert weighting.needs_features == (name == "gradnorm")
    shapes = [tuple(parameter.shape) for parameter in weighting.parameters()]
    assert shapes == ([(3,)] if name == "uncertainty" else [])


def gradnorm_reference(
    steps: Sequence[Step], alpha: float, lr: float = 0.025
) -> Iterator[list[float]]:
    """The algorithm of arXiv:1711.02257 as it is printed, with norms taken at the features."""
    net = Net(0)
    w_H = torch.ones(3, requires_grad=True)
    adam = torch.optim.Adam([w_H], lr=lr)
    first_H: Tensor | None = None
    for pixels_BP, targets in steps:
        features_BF, logits = net(pixels_BP)
        means = [cross_entropy(logits[h], targets[h], ignore_index=MISSING) for h in SIZES]
        losses_H = torch.stack(means).detach()
        first_H = losses_H if first_H is None else first_H
        weighted = [w * mean for w, mean in zip(w_H, means, strict=True)]
        norms_H = torch.stack(
            [torch.autograd.grad(one, features_BF, create_graph=True)[0].norm() for one in weighted]
        )
        ratio_H = losses_H / first_H
        wanted_H = (norms_H.mean() * (ratio_H / ratio_H.mean()) ** alpha).detach()
        (w_H.grad,) = torch.autograd.grad((norms_H - wanted_H).abs().sum(), w_H, retain_graph=True)
        parameters = list(net.parameters())
        gradients = torch.autograd.grad(torch.stack(weighted).sum() / 3, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=0.1)
            adam.step()
            w_H.clamp_(min=1e-3).mul_(3 / w_H.sum())
        yield w_H.tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_gradnorm_is_the_papers_algorithm(alpha: float) -> None:
    steps = steps_of(7, 60)
    weights = trained(weighting_of(task_weighting="gradnorm", gradnorm_alpha=alpha), steps)
    for weights_H, expected in zip(weights, gradnorm_reference(steps, alpha), strict=True):
        assert weights_H.tolist() == pytest.approx(expected, rel=1e-4)
    assert weights[-1][2] < 0.8  # the steep head


def test_gradnorm_evens_out_the_norms_of_heads_that_learn_at_one_speed() -> None:
    weighting = weighting_of(task_weighting="gradnorm")
    features_BF = torch.ones(1, 3, requires_grad=True)
    slopes_H = torch.tensor([1.0, 2.0, 8.0])
    for _ in range(400):
        sums = dict(zip(SIZES, (features_BF[0] * slopes_H).unbind(), strict=True))
        weighting.observe(sums, dict.fromkeys(SIZES, 1.0), features_BF)
        weighting.update(alone, 1)
    expected_H = 1 / slopes_H
    torch.testing.assert_close(
        weighting.weights(), 3 * expected_H / expected_H.sum(), rtol=0.1, atol=0.01
    )


@pytest.mark.parametrize("slopes", [(1e-6, 1.0, 1e6), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
def test_gradnorms_weights_stay_positive_and_sum_to_the_number_of_heads(
    slopes: tuple[float, ...],
) -> None:
    weighting = weighting_of(task_weighting="gradnorm", gradnorm_alpha=3.0)
    features_BF = torch.ones(1, 3, requires_grad=True)
    for step in range(100):
        values_H = features_BF[0] * torch.tensor(slopes) + (1 + step % 2)
        sums = dict(zip(SIZES, values_H.unbind(), strict=True))
        weighting.observe(sums, dict.fromkeys(SIZES, 1.0), features_BF)
        weighting.update(alone, 1)
        assert weighting.weights().min() > 0
        assert float(weighting.weights().sum()) == pytest.approx(3)


def test_gradnorm_learns_a_heads_first_loss_when_its_first_label_comes() -> None:
    steps = steps_of(8, 12, absent=("side",))
    weighting = weighting_of(task_weighting="gradnorm")
    weights = trained(weighting, steps)
    assert torch.stack(weights).isfinite().all()
    net, (pixels_BP, targets) = Net(0), steps[0]
    sums, known = sums_of(net(pixels_BP)[1], targets), known_of(targets)
    expected = [float(sums[head].detach()) / known[head] for head in ("color", "article")]
    first_H = weighting.state_dict()["first"]
    assert first_H[[0, 2]].tolist() == pytest.approx(expected)
    assert first_H[1] > 0


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradnorm_compares_a_head_with_those_that_have_labels_in_the_step(alpha: float) -> None:
    weighting = weighting_of(task_weighting="gradnorm", gradnorm_alpha=alpha)
    features_BF = torch.ones(1, 2, requires_grad=True)
    slopes_H = torch.tensor([1.2, 2.0])
    sums = dict(zip(("color", "article"), (features_BF[0] * slopes_H).unbind(), strict=True))
    sums["side"] = 0 * features_BF.sum()
    known = {"color": 1.0, "side": 0.0, "article": 1.0}
    loss = weighting.combine(sums, known, 1.0)
    assert float(loss.detach()) == pytest.approx((1.2 + 2.0) / 2)
    weighting.observe(sums, known, features_BF)
    weighting.update(alone, 1)
    # The mean norm is 1.6, between the two; over three heads it would be below both.
    assert weighting.weights().tolist() == pytest.approx([1.025, 1, 0.975])


def test_gradnorm_never_weighs_a_step_by_what_it_sees_in_it() -> None:
    """The weights of a step are those from before its update, as in the paper."""
    steps = steps_of(9, 2)
    weighting = weighting_of(task_weighting="gradnorm")
    net = Net(0)
    plain = gradients_of(net, weighting_of(), steps[0])
    assert gradients_of(net, weighting, steps[0]) == pytest.approx(plain)
    assert weighting.weights().tolist() == [1, 1, 1]
    weighting.update(alone, 1)
    assert weighting.weights().tolist() != [1, 1, 1]


class Meeting:
    """A sum over workers that are threads."""

    def __init__(self, workers: int) -> None:
        self._barrier = threading.Barrier(workers, timeout=60)
        self._brought: dict[int, Tensor] = {}

    def sum_of(self, rank: int) -> Callable[[Tensor], None]:
        def sum_(tensor: Tensor) -> None:
            self._brought[rank] = tensor.clone()
            self._barrier.wait()
            tensor.copy_(torch.stack([self._brought[k] for k in sorted(self._brought)]).sum(0))
            self._barrier.wait()

        return sum_


def updated_together(weightings: Sequence[TaskWeighting]) -> None:
    meeting = Meeting(len(weightings))
    threads = [
        threading.Thread(target=one.update, args=(meeting.sum_of(rank), len(weightings)))
        for rank, one in enumerate(weightings)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("size", [3, 12])
def test_gradnorm_of_some_workers_in_parts_is_that_of_one_on_the_joined_batch(
    workers: int, size: int
) -> None:
    steps = steps_of(10, 10, absent=("side",))
    for _, targets in steps:
        targets["article"][: 12 // workers] = MISSING  # none for the first worker
    one = weighting_of(task_weighting="gradnorm")
    many = [weighting_of(task_weighting="gradnorm") for _ in range(workers)]
    net = Net(0)
    rows = 12 // workers
    for step in steps:
        gradients_of(net, one, step)
        one.update(alone, 1)
        for rank, weighting in enumerate(many):
            mine = part_of(step, slice(rank * rows, (rank + 1) * rows))
            parts = [slice(start, start + size) for start in range(0, rows, size)]
            gradients_of(net, weighting, mine, parts, known_of(step[1], workers))
        updated_together(many)
        for weighting in many:
            torch.testing.assert_close(weighting.weights(), one.weights(), rtol=1e-4, atol=1e-5)
            assert torch.equal(weighting.weights(), many[0].weights())
    torch.testing.assert_close(many[0].state_dict()["first"], one.state_dict()["first"])
    assert max(abs(one.weights() - 1)) > 0.1


def test_gradnorm_sees_gradients_of_large_steps_in_half_precision() -> None:
    """Of the mean over so many rows, float16 would know a gradient of 0 alone."""
    weights = []
    for dtype in (torch.float16, torch.float32):
        weighting = weighting_of(task_weighting="gradnorm")
        features_BF = torch.ones(4, 3, dtype=dtype, requires_grad=True)
        sums_H = (features_BF * torch.tensor([0.01, 0.02, 0.08], dtype=dtype)).sum(0).float()
        sums = dict(zip(SIZES, sums_H.unbind(), strict=True))
        for _ in range(3):
            weighting.observe(sums, dict.fromkeys(SIZES, 1e7), features_BF)
            weighting.update(alone, 1)
        weights.append(weighting.weights())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-3)
    assert weights[0][2] < 0.97


def test_what_was_observed_of_a_step_that_is_taken_again_can_be_forgotten() -> None:
    steps = steps_of(11, 2)
    again, plain = (weighting_of(task_weighting="gradnorm") for _ in range(2))
    net = Net(0)
    gradients_of(net, again, steps[0])
    again.forget()
    for weighting in (again, plain):
        gradients_of(net, weighting, steps[1])
        weighting.update(alone, 1)
    assert torch.equal(again.weights(), plain.weights())
    assert torch.equal(again.state_dict()["first"], plain.state_dict()["first"])


@every_weighting
def test_a_stored_weighting_goes_on_to_the_same_bits(name: str) -> None:
    steps = steps_of(12, 10, absent=("side",))
    weighting = weighting_of(**WEIGHTINGS[name])
    trained(weighting, steps[:5])
    file = io.BytesIO()
    torch.save(weighting.state_dict(), file)
    whole = trained(weighting, steps[5:], seed=1)
    file.seek(0)
    resumed = weighting_of(**WEIGHTINGS[name])
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for weights_H, expected_H in zip(trained(resumed, steps[5:], seed=1), whole, strict=True):
        assert torch.equal(weights_H, expected_H)
    states = weighting.state_dict(), resumed.state_dict()
    for key in ("learnt", "first"):
        assert torch.equal(states[0][key], states[1][key])


@pytest.mark.parametrize(
    "wait",
    [float, bool, *map(methodcaller, ("item", "tolist")), lambda _: torch.tensor([1.0])],
)
def test_what_would_wait_for_the_device_is_noticed(wait: Callable[[Tensor], object]) -> None:
    """Else the test below could not fail."""
    with pytest.raises(AssertionError, match="waits for the device"), no_waiting():
        wait(torch.ones(()))


@every_weighting
@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "focal", "asymmetric"])
@pytest.mark.parametrize("class_weighting", ["none", "inverse"])
def test_nothing_in_a_step_waits_for_the_device(name: str, loss: str, class_weighting: str) -> None:
    steps = steps_of(13, 2, absent=("side",))
    heads = LABELS.heads
    if loss != "cross_entropy":  # which no multi-hot head has
        heads = (Head("color", heads[0].classes, multi_hot=True), *heads[1:])
        for _, targets in steps:
            targets["color"] = torch.randint(0, 2, (12, 3))
    labels = Labels(heads)
    cells = {"color": ["0", "1", "2"] * 3, "side": ["0", "1", "1"] * 3, "article": [*"012345678"]}
    changes = {**WEIGHTINGS[name], "loss": loss, "class_weighting": class_weighting}
    config = TrialConfig.from_dict(changes)
    losses = HeadLosses(config, labels, labels.encode(cells), CPU)
    weighting = TaskWeighting(config, labels, CPU)
    net = Net(0)
    for pixels_BP, targets in steps:
        known = known_of(targets)
        mixed = {head: target.flip(0) for head, target in targets.items()}
        with no_waiting():
            features_BF, logits = net(pixels_BP)
            sums = losses(logits, targets, mixed, 0.8)
            combined = weighting.combine(sums, known, 1.0)
            if weighting.needs_features:
                weighting.observe(sums, known, features_BF)
            torch.autograd.backward(combined)
            if weighting.needs_features:
                weighting.update(alone, 1)
        assert combined.isfinite()
