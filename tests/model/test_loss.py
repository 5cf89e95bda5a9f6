"""The losses of the heads against plain formulas, torch, torchvision and scikit-learn.

B images, K classes of a head.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot
from torchvision.ops import sigmoid_focal_loss

from raymlc.errors import UserError
from raymlc.labels import MISSING, Head, Labels, Targets
from raymlc.model.loss import HeadLosses, loss_of, summed_loss
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")
SIZES = {"article": 7, "gender": 2, "tags": 3, "one": 1}
MULTI_HOT = {"tags", "one"}
KINDS: dict[str, dict[str, Any]] = {
    "auto": {},
    "bce": {"loss": "bce"},
    "focal": {"loss": "focal"},
    "focal of a small gamma": {"loss": "focal", "focal_gamma": 0.3},
    "asymmetric": {"loss": "asymmetric", "asl_gamma_pos": 1.0},
    "asymmetric of small gammas": {
        "loss": "asymmetric",
        "asl_gamma_pos": 0.3,
        "asl_gamma_neg": 0.7,
        "asl_clip": 0.2,
    },
    "asymmetric without a clip": {"loss": "asymmetric", "asl_gamma_neg": 0.5, "asl_clip": 0.0},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
WEIGHTINGS = ("none", "inverse", "effective")


def labels_of(sizes: Mapping[str, int] = SIZES) -> Labels:
    return Labels(
        tuple(
            Head(name, tuple(f"{number:05}" for number in range(size)), name in MULTI_HOT)
            for name, size in sizes.items()
        )
    )


def split_of(targets: Mapping[str, Tensor]) -> Targets:
    """A training split with these targets, one head after the other."""
    parts = {head: target.reshape(len(target), -1).numpy() for head, target in targets.items()}
    columns, start = {}, 0
    for head, part in parts.items():
        columns[head] = slice(start, start + part.shape[1])
        start += part.shape[1]
    return Targets(
        np.concatenate(list(parts.values()), axis=1),
        columns,
        {head: target.dim() == 2 for head, target in targets.items()},
        dict.fromkeys(parts, ()),
    )


def random_batch(
    seed: int, rows: int, missing: float = 0.2, sizes: Mapping[str, int] = SIZES
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits that want gradients, and targets, for every head."""
    generator = torch.Generator().manual_seed(seed)
    logits: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    for head, classes in sizes.items():
        logits[head] = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float32)
        lost_B = torch.rand(rows, generator=generator) < missing
        if head in MULTI_HOT:
            target_BK = torch.randint(0, 2, (rows, classes), generator=generator)
            targets[head] = torch.where(lost_B[:, None], MISSING, target_BK)
        else:
            target_B = torch.randint(0, classes, (rows,), generator=generator)
            targets[head] = torch.where(lost_B, MISSING, target_B)
        logits[head].requires_grad_()
    return logits, targets


def losses_of(changes: Mapping[str, Any], split: Mapping[str, Tensor] | None = None) -> HeadLosses:
    """The losses of a trial; `split`: the training labels, which only class weights look at."""
    split = random_batch(100, 60)[1] if split is None else split
    sizes = {head: SIZES.get(head, 0) for head in split}
    return HeadLosses(TrialConfig(**changes), labels_of(sizes), split_of(split), CPU)


def one_vs_rest(config: TrialConfig, kind: str, logits_K: Tensor) -> tuple[Tensor, Tensor]:
    """Of each class the loss if it is there, and if it is not, by the papers' formulas."""
    p_K = torch.sigmoid(logits_K)
    shifted_K, on, off = p_K, 0.0, 0.0
    if kind == "focal":
        on = off = config.focal_gamma
    if kind == "asymmetric":
        shifted_K = (p_K - config.asl_clip).clamp(min=0)
        on, off = config.asl_gamma_pos, config.asl_gamma_neg
    # A class below the clip has no loss; the power of 0 has no gradient.
    off_K = torch.zeros_like(p_K)
    up = shifted_K > 0
    off_K[up] = -(shifted_K[up] ** off) * torch.log(1 - shifted_K[up])
    return -((1 - p_K) ** on) * torch.log(p_K), off_K


def loss_of_row(config: TrialConfig, kind: str, logits_K: Tensor, target: Tensor) -> Tensor:
    """One label's loss, from probabilities in float64."""
    if kind == "auto":
        kind = "bce" if target.dim() else "cross_entropy"
    if kind in ("cross_entropy", "focal") and target.dim() == 0:
        p_K = torch.softmax(logits_K, 0)
        gamma = config.focal_gamma if kind == "focal" else 0.0
        if_label_K = -((1 - p_K) ** gamma) * torch.log(p_K)
    else:
        on_K, off_K = one_vs_rest(config, kind, logits_K)
        if target.dim():
            return torch.where(target == 1, on_K, off_K).mean()
        if_label_K = on_K + off_K.sum() - off_K
    return (1 - config.smoothing) * if_label_K[target] + config.smoothing * if_label_K.mean()


def sums_in_a_loop(
    changes: Mapping[str, Any], logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Each head's sum, row by row."""
    config = TrialConfig(**changes)
    sums = {}
    for head, target in targets.items():
        rows = [
            loss_of_row(config, config.loss, row.double(), label)
            for row, label in zip(logits[head], target, strict=True)
            if MISSING not in label
        ]
        sums[head] = sum(rows, 0 * logits[head].double().sum())
    return sums


def gradients(sums: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of all sums together, which have no logits in common."""
    total = torch.stack([value.double() for value in sums.values()]).sum()
    return dict(zip(logits, torch.autograd.grad(total, list(logits.values())), strict=True))


@every_kind
@pytest.mark.parametrize("smoothing", [0.0, 0.7])
@pytest.mark.parametrize("missing", [0.0, 0.4, 0.9])
def test_every_kind_of_loss_is_its_papers_formula_summed_over_known_labels(
    kind: str, smoothing: float, missing: float
) -> None:
    changes = {**KINDS[kind], "smoothing": smoothing}
    logits, targets = random_batch(1, 12, missing)
    sums = losses_of(changes)(logits, targets)
    expected = sums_in_a_loop(changes, logits, targets)
    assert list(sums) == list(SIZES)
    for head, value in sums.items():
        assert value.dtype == torch.float32
        assert value.shape == ()
        torch.testing.assert_close(value.double(), expected[head], rtol=2e-5, atol=1e-5)
    wanted = gradients(expected, logits)
    for head, grad_BK in gradients(sums, logits).items():
        torch.testing.assert_close(grad_BK, wanted[head], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reference", ["cross_entropy", "auto"])
def test_cross_entropy_is_torchs_with_its_smoothing(smoothing: float, reference: str) -> None:
    logits, targets = random_batch(0, 16, 0.3, {"article": 7})
    changes = {"loss": reference, "smoothing": smoothing}
    sums = losses_of(changes, targets)(logits, targets)
    expected = cross_entropy(
        logits["article"],
        targets["article"],
        ignore_index=MISSING,
        label_smoothing=smoothing,
        reduction="sum",
    )
    torch.testing.assert_close(sums["article"], expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_bce_is_torchs_over_classes_the_mean_if_multi_hot_the_sum_if_single_label(
    smoothing: float,
) -> None:
    logits, targets = random_batch(0, 16, 0.0)
    sums = losses_of({"loss": "bce", "smoothing": smoothing})(logits, targets)
    tags_BK = targets["tags"].float()
    expected = binary_cross_entropy_with_logits(logits["tags"], tags_BK, reduction="sum") / 3
    torch.testing.assert_close(sums["tags"], expected)
    article_BK = (1 - smoothing) * one_hot(targets["article"], 7) + smoothing / 7
    expected = binary_cross_entropy_with_logits(logits["article"], article_BK, reduction="sum")
    torch.testing.assert_close(sums["article"], expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_multi_hot_focal_is_torchvisions_without_alpha_averaged_over_classes(gamma: float) -> None:
    logits, targets = random_batch(2, 16, 0.0, {"tags": 3})
    changes = {"loss": "focal", "focal_gamma": gamma, "smoothing": 0.3}
    sums = losses_of(changes, targets)(logits, targets)
    expected = sigmoid_focal_loss(
        logits["tags"], targets["tags"].float(), alpha=-1, gamma=gamma, reduction="sum"
    )
    torch.testing.assert_close(sums["tags"], expected / 3)
    wanted = gradients({"tags": expected / 3}, logits)
    torch.testing.assert_close(gradients(sums, logits), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_focus_and_clip_focal_is_the_usual_loss_and_asymmetric_is_bce(
    smoothing: float,
) -> None:
    logits, targets = random_batch(3, 16)
    common = {"smoothing": smoothing}
    unfocused = {"asl_gamma_pos": 0.0, "asl_gamma_neg": 0.0, "asl_clip": 0.0}
    pairs = [
        ({"loss": "focal", "focal_gamma": 0.0}, {"loss": "auto"}),
        ({"loss": "asymmetric", **unfocused}, {"loss": "bce"}),
    ]
    for changes, usual in pairs:
        sums = losses_of({**common, **changes})(logits, targets)
        expected = losses_of({**common, **usual})(logits, targets)
        torch.testing.assert_close(sums, expected)
        torch.testing.assert_close(gradients(sums, logits), gradients(expected, logits))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.4])
def test_the_gradient_of_asymmetric_goes_through_its_factors_as_the_paper_derives_it(
    gamma: float, clip: float
) -> None:
    z_B = torch.linspace(-6, 6, 41)[:, None].requires_grad_()
    changes = {"loss": "asymmetric", "asl_gamma_neg": gamma, "asl_clip": clip}
    absent = {"one": torch.zeros(41, 1, dtype=torch.int64)}
    sums = losses_of(changes, absent)({"one": z_B}, absent)
    p = torch.sigmoid(z_B.detach().double())
    m = p - clip
    slope = m**gamma * (1 / (1 - m) - gamma / m * torch.log(1 - m)) * p * (1 - p)
    expected = torch.where(m > 0, slope, 0).float()
    torch.testing.assert_close(gradients(sums, {"one": z_B})["one"], expected, rtol=1e-4, atol=1e-6)


@every_kind
@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_mixed_batch_has_the_shares_of_both_losses_each_over_its_own_known_labels(
    kind: str, rows: int, share: float
) -> None:
    """Law 6 of the 2021 scripts, which mixed wrongly if rows were as many as classes, or one."""
    sizes = {"one": 1, "tags": 3, "side": 3, "article": 7}
    logits, targets = random_batch(4, rows, 0.3, sizes)
    mixed = random_batch(5, rows, 0.3, sizes)[1]
    config = TrialConfig(**KINDS[kind], class_weighting="inverse")
    split = random_batch(6, 60, 0.1, sizes)[1]
    losses = HeadLosses(config, labels_of(sizes), split_of(split), CPU)
    sums = losses(logits, targets, mixed, share)
    own, other = losses(logits, targets), losses(logits, mixed)
    for head, value in sums.items():
        torch.testing.assert_close(value, share * own[head] + (1 - share) * other[head])


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("classes", [3, 7])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_cross_entropy_is_torchs_of_either_label_by_its_share(
    rows: int, classes: int, share: float
) -> None:
    sizes = {"head": classes}
    logits, targets = random_batch(7, rows, 0.0, sizes)
    mixed = {"head": targets["head"].flip(0)}
    losses = HeadLosses(TrialConfig(smoothing=0.1), labels_of(sizes), split_of(targets), CPU)
    sums = losses(logits, targets, mixed, share)
    first, second = (
        cross_entropy(logits["head"], label["head"], label_smoothing=0.1) * rows
        for label in (targets, mixed)
    )
    torch.testing.assert_close(sums["head"], share * first + (1 - share) * second)


@every_kind
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_head_or_row_without_labels_adds_nothing_and_gets_no_gradient(
    kind: str, weighting: str
) -> None:
    logits, targets = random_batch(8, 20, 0.5)
    for silent in ("article", "tags"):
        targets[silent] = torch.full_like(targets[silent], MISSING)
    sums = losses_of({**KINDS[kind], "class_weighting": weighting})(logits, targets)
    for head, grad_BK in gradients(sums, logits).items():
        lost_B = (targets[head].reshape(20, -1) == MISSING).any(1)
        assert lost_B.any()
        assert not grad_BK[lost_B].any()
        if head in ("article", "tags"):
            assert float(sums[head].detach()) == 0
        else:
            assert float(sums[head].detach()) > 0
            # Below its clip, a class that is absent has no gradient.
            assert grad_BK[~lost_B].abs().sum(1).count_nonzero() > len(grad_BK[~lost_B]) / 2


@every_kind
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_class_that_training_never_saw_adds_nothing(kind: str, weighting: str) -> None:
    logits, targets = random_batch(9, 10, 0.2)
    losses = losses_of({**KINDS[kind], "class_weighting": weighting})
    with_unseen = dict(targets)
    with_unseen["article"] = targets["article"].clone()
    with_unseen["article"][::3] = SIZES["article"] + torch.arange(4)
    without = dict(targets)
    without["article"] = with_unseen["article"].where(
        with_unseen["article"] < SIZES["article"], torch.tensor(MISSING)
    )
    unseen_columns = torch.randint(0, 2, (10, 2))
    unseen_columns[targets["tags"][:, 0] == MISSING] = MISSING
    with_unseen["tags"] = torch.cat([targets["tags"], unseen_columns], 1)
    sums, expected = losses(logits, with_unseen), losses(logits, without)
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(gradients(sums, logits), gradients(expected, logits))


@every_kind
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("cut", [0, 5])
def test_parts_of_a_batch_add_up_to_the_whole(kind: str, weighting: str, cut: int) -> None:
    losses = losses_of({**KINDS[kind], "class_weighting": weighting})
    logits, targets = random_batch(10, 16, 0.4)
    mixed = {head: target.flip(0) for head, target in targets.items()}

    def sums_of(part: slice) -> dict[str, Tensor]:
        cut_out = [
            {head: full[part] for head, full in of.items()} for of in (logits, targets, mixed)
        ]
        return losses(cut_out[0], cut_out[1], cut_out[2], 0.7)

    first, second = sums_of(slice(0, cut)), sums_of(slice(cut, 16))
    for head, value in sums_of(slice(0, 16)).items():
        torch.testing.assert_close(first[head] + second[head], value)


@every_kind
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_logits_give_finite_losses_and_gradients(kind: str, smoothing: float) -> None:
    losses = losses_of({**KINDS[kind], "smoothing": smoothing, "class_weighting": "inverse"})
    values = torch.tensor([-1e4, -200.0, -104.0, -20.0, 0.0, 20.0, 104.0, 200.0, 1e4])
    order = torch.randperm(9 * 40, generator=torch.Generator().manual_seed(0)) % 9
    generator = torch.Generator().manual_seed(1)
    logits, targets = {}, {}
    for head, size in SIZES.items():
        picks = order.roll(size)[: 9 * 40 // size * size].view(-1, size)
        logits[head] = values[picks].requires_grad_()
        shape = picks.shape if head in MULTI_HOT else picks.shape[:1]
        targets[head] = torch.randint(0, 2, shape, generator=generator)
        targets[head][::5] = MISSING
    sums = losses(logits, targets)
    for head, value in sums.items():
        assert value.isfinite()
        assert value > 0
        assert gradients({head: value}, {head: logits[head]})[head].isfinite().all()


def test_an_extreme_logit_costs_what_the_formula_says() -> None:
    logits = {"one": torch.tensor([[1e4], [-1e4]])}
    right = {"one": torch.tensor([[1], [0]])}
    wrong = {"one": torch.tensor([[0], [1]])}
    for changes, cost in (
        ({"loss": "bce"}, 2e4),
        ({"loss": "focal"}, 2e4),
        ({"loss": "asymmetric", "asl_clip": 0.0}, 2e4),
        ({"loss": "asymmetric", "asl_clip": 0.05}, 1e4 - 0.95**4 * math.log(0.05)),
    ):
        losses = losses_of(changes, right)
        assert float(losses(logits, right)["one"]) == 0
        assert float(losses(logits, wrong)["one"]) == pytest.approx(cost)


@every_kind
def test_a_head_may_have_ten_thousand_classes(kind: str) -> None:
    sizes = {"article": 10_000, "tags": 10_000}
    changes = {**KINDS[kind], "smoothing": 0.1}
    logits, targets = random_batch(11, 4, 0.3, sizes)
    losses = HeadLosses(TrialConfig(**changes), labels_of(sizes), split_of(targets), CPU)
    sums = losses(logits, targets)
    for head, expected in sums_in_a_loop(changes, logits, targets).items():
        torch.testing.assert_close(sums[head].double(), expected, rtol=1e-4, atol=1e-4)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_summed_in_float32(kind: str, dtype: torch.dtype) -> None:
    logits, targets = random_batch(12, 200, 0.1)
    halved = {head: part.detach().to(dtype) for head, part in logits.items()}
    widened = {head: part.float() for head, part in halved.items()}
    losses = losses_of(KINDS[kind])
    sums = losses(halved, targets)
    assert {value.dtype for value in sums.values()} == {torch.float32}
    torch.testing.assert_close(sums, losses(widened, targets))


def test_the_first_steps_loss_is_the_log_of_the_number_of_classes() -> None:
    _, targets = random_batch(13, 30, 0.0)
    logits = {head: torch.zeros(30, classes) for head, classes in SIZES.items()}
    logs = {"article": math.log(7), "gender": math.log(2), "tags": math.log(2), "one": math.log(2)}
    for head, value in losses_of({})(logits, targets).items():
        assert float(value) / 30 == pytest.approx(logs[head])


def test_a_heads_own_loss_takes_the_place_of_the_trials() -> None:
    logits, targets = random_batch(14, 12)
    own = {"article": "bce", "tags": "asymmetric"}
    sums = losses_of({"loss": "focal", "head_losses": own})(logits, targets)
    for head in SIZES:
        alone = losses_of({"loss": own.get(head, "focal")})(logits, targets)
        assert torch.equal(sums[head], alone[head])
        assert not torch.equal(sums[head], losses_of({"loss": "auto"})(logits, targets)[head])


@pytest.mark.parametrize(
    "changes", [{"loss": "cross_entropy"}, {"head_losses": {"tags": "cross_entropy"}}]
)
def test_cross_entropy_of_a_multi_hot_head_is_refused_in_a_line(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        losses_of(changes)
    text = str(error.value)
    assert "'tags' is multi-hot" in text
    assert "head_losses/tags" in text
    for way_out in ("bce", "focal", "asymmetric"):
        assert way_out in text
        others = {"tags": way_out, "one": "auto"}
        assert losses_of({**changes, "head_losses": others})
    assert "\n" not in text


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("loss", ["auto", "bce", "focal", "asymmetric"])
def test_auto_is_cross_entropy_or_bce_as_the_head_is(loss: str, multi_hot: bool) -> None:
    auto = "bce" if multi_hot else "cross_entropy"
    head = Head("head", ("a", "b"), multi_hot)
    assert loss_of(TrialConfig.from_dict({"loss": loss}), head) == {"auto": auto}.get(loss, loss)


@every_kind
def test_a_rows_loss_is_weighed_by_its_label_as_scikit_learn_balances_classes(kind: str) -> None:
    split = random_batch(15, 60)[1]
    known = split["article"][split["article"] != MISSING].numpy()
    weights_K = compute_class_weight("balanced", classes=np.arange(7), y=known)
    logits, _ = random_batch(16, 7)
    targets = {head: torch.full_like(split[head][:7], MISSING) for head in SIZES}
    plain, weighted = (
        losses_of({**KINDS[kind], "class_weighting": name}, split) for name in ("none", "inverse")
    )
    for row in range(7):  # of label `row`
        only = {**targets, "article": torch.full((7,), MISSING)}
        only["article"][row] = row
        expected = plain(logits, only)["article"] * weights_K[row]
        torch.testing.assert_close(weighted(logits, only)["article"], expected)


@every_kind
def test_a_multi_hot_class_is_weighed_as_scikit_learn_balances_it_with_its_absence(
    kind: str,
) -> None:
    split = random_batch(17, 60)[1]
    known_NK = split["tags"][split["tags"][:, 0] != MISSING].numpy()
    known_NK[:, 1] &= known_NK[:, 0]  # rarer
    split["tags"] = torch.from_numpy(known_NK)
    split = {head: target[: len(known_NK)] for head, target in split.items()}
    plain, weighted = (
        losses_of({**KINDS[kind], "class_weighting": name}, split) for name in ("none", "inverse")
    )
    logits, targets = random_batch(18, 6, 0.0)
    for k in range(3):
        weights_2 = compute_class_weight("balanced", classes=np.arange(2), y=known_NK[:, k])
        for row in range(6):
            # A label that is missing in all columns but one leaves that column's term alone.
            only = {head: torch.full_like(target, MISSING) for head, target in targets.items()}
            only["tags"][row, k] = targets["tags"][row, k]
            weight = weights_2[int(targets["tags"][row, k])]
            expected = plain(logits, only)["tags"] * weight
            torch.testing.assert_close(weighted(logits, only)["tags"], expected)


@pytest.mark.parametrize("head", ["article", "tags"])
def test_what_validation_reports_is_neither_smoothed_nor_weighted(head: str) -> None:
    logits, targets = random_batch(19, 30, 0.3)
    expected = losses_of({"smoothing": 0.0})(logits, targets)[head]
    value = summed_loss(logits[head], targets[head])
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    halved = summed_loss(logits[head].half(), targets[head])
    torch.testing.assert_close(halved, summed_loss(logits[head].half().float(), targets[head]))


def test_validation_leaves_out_classes_that_training_never_saw() -> None:
    logits, targets = random_batch(20, 10, 0.2)
    single = targets["article"].clone()
    single[::3] = SIZES["article"] + torch.arange(4)
    seen_B = single < SIZES["article"]
    torch.testing.assert_close(
        summed_loss(logits["article"], single),
        summed_loss(logits["article"][seen_B], single[seen_B]),
    )
    unseen_columns = torch.randint(0, 2, (10, 2))
    unseen_columns[targets["tags"][:, 0] == MISSING] = MISSING
    torch.testing.assert_close(
        summed_loss(logits["tags"], torch.cat([targets["tags"], unseen_columns], 1)),
        summed_loss(logits["tags"], targets["tags"]),
    )
