"""An epoch's batches hold each row as often as they should, for one worker or for several.

Shapes: B images of a batch, C channels, H and W pixels, N rows, T target columns.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from raymlc.data import batches
from raymlc.data.augment import augment
from raymlc.data.batches import (
    Batch,
    Normalization,
    check_batch_size,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import MISSING, Labels
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")
PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
ROWS = 22
CELLS = {
    "shape": ["flat", "round", "", "flat"] * 5 + ["round", ""],
    "marks": ["dot|bar", "", "|", "dot", ""] * 4 + ["bar", "|"],
}


@pytest.fixture
def data() -> ImageSplit:
    """22 rows whose images tell their row, in a store of 25 images of which 3 are broken."""
    places_N = np.array([place for place in range(25) if place not in (0, 7, 24)])
    images_NHWC = np.full((25, 6, 6, 3), 255, np.uint8)
    images_NHWC[places_N] = np.arange(ROWS, dtype=np.uint8)[:, None, None, None]
    images_NHWC[..., 1] = 100
    return ImageSplit(images_NHWC, places_N, Labels.learn(CELLS).encode(CELLS), skipped=3)


def plain(batch_size: int, **fields: Any) -> TrialConfig:
    """A trial that augments nothing."""
    return TrialConfig(batch_size=batch_size, crop_min_area=1.0, hflip_prob=0.0, **fields)


def rows_of(batch: Batch) -> list[int]:
    """Which rows a batch holds, by its images' red."""
    red_BHW = batch.images_BCHW[:, 0] * 255
    assert torch.equal(red_BHW, red_BHW[:, :1, :1].expand_as(red_BHW))
    rows: list[int] = red_BHW[:, 0, 0].round().int().tolist()
    return rows


def order(data: ImageSplit, config: TrialConfig, epoch: int) -> list[list[int]]:
    return [rows_of(batch) for batch in training_batches(data, config, PLAIN, CPU, epoch)]


def assert_targets(data: ImageSplit, batch: Batch) -> None:
    """That a batch's targets are those of its images."""
    values_BT = torch.from_numpy(data.targets.values_NT[rows_of(batch)])
    assert set(batch.targets) == {"shape", "marks"}
    assert torch.equal(batch.targets["shape"], values_BT[:, 0])
    assert torch.equal(batch.targets["marks"], values_BT[:, 1:])


def known_labels(head: str, rows: list[int]) -> int:
    return sum(CELLS[head][row] != "" for row in rows)


@pytest.mark.parametrize("batch_size", [2, 4, 5, 11, 21, 22])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_visits_each_row_at_most_once_in_full_batches(
    data: ImageSplit, batch_size: int, epoch: int
) -> None:
    steps = order(data, plain(batch_size), epoch)
    assert len(steps) == steps_per_epoch(ROWS, batch_size) == ROWS // batch_size
    assert {len(rows) for rows in steps} == {batch_size}
    visited = [row for rows in steps for row in rows]
    assert len(set(visited)) == len(visited)
    assert set(visited) <= set(range(ROWS))


def test_every_row_is_visited_over_a_few_epochs(data: ImageSplit) -> None:
    visited = {row for epoch in range(8) for rows in order(data, plain(12), epoch) for row in rows}
    assert visited == set(range(ROWS))


def test_images_come_with_the_targets_of_their_row(data: ImageSplit) -> None:
    for batch in training_batches(data, plain(4), PLAIN, CPU, epoch=3):
        assert_targets(data, batch)
    for batch in evaluation_batches(data, 4, PLAIN, CPU):
        assert_targets(data, batch)


@pytest.mark.parametrize("together", [1, 2, 3, 5, 100])
def test_however_many_steps_are_augmented_together_each_has_its_own_rows(
    data: ImageSplit, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    expected = order(data, plain(4, augment=False), 1)
    augmented: list[int] = []

    def watched(pixels_BCHW: torch.Tensor, *args: Any) -> torch.Tensor:
        augmented.append(len(pixels_BCHW))
        return augment(pixels_BCHW, *args)

    monkeypatch.setattr(batches, "augment", watched)
    monkeypatch.setattr(batches, "_TOGETHER", together * 4 * 6 * 6 * 3)
    found = list(training_batches(data, plain(4), PLAIN, CPU, 1))
    assert [rows_of(batch) for batch in found] == expected
    for batch in found:
        assert_targets(data, batch)
    assert augmented == [
        4 * len(expected[start : start + together]) for start in range(0, 5, together)
    ]


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else(data: ImageSplit) -> None:
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            torch.manual_seed(seed)
            np.random.default_rng(seed)
            orders[seed, epoch] = order(data, plain(11, seed=seed), epoch)
            torch.manual_seed(99)
            again = order(data, plain(11, seed=seed, lr=0.5, drop_rate=0.0), epoch)
            assert again == orders[seed, epoch]
    assert len({str(rows) for rows in orders.values()}) == 4
    assert order(data, plain(22), 0)[0] != sorted(range(ROWS))


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_the_parts_of_several_workers_join_to_the_batch_of_one(
    data: ImageSplit, workers: int
) -> None:
    config = plain(12)
    alone = list(training_batches(data, config, PLAIN, CPU, epoch=2))
    parts = [
        list(training_batches(data, config, PLAIN, CPU, 2, rank, workers))
        for rank in range(workers)
    ]
    assert {len(steps) for steps in parts} == {len(alone)}
    for whole, *shares in zip(alone, *parts, strict=True):
        assert {len(share.images_BCHW) for share in shares} == {12 // workers}
        assert torch.equal(torch.cat([share.images_BCHW for share in shares]), whole.images_BCHW)
        for head, target in whole.targets.items():
            assert torch.equal(torch.cat([share.targets[head] for share in shares]), target)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_known_is_a_workers_share_of_the_labels_in_the_whole_step(
    data: ImageSplit, workers: int
) -> None:
    parts = [
        list(training_batches(data, plain(6), PLAIN, CPU, 4, rank, workers))
        for rank in range(workers)
    ]
    for shares in zip(*parts, strict=True):
        step = [row for share in shares for row in rows_of(share)]
        for share in shares:
            assert share.known == {
                head: pytest.approx(known_labels(head, step) / workers) for head in CELLS
            }


def test_a_mean_over_workers_of_sums_over_known_is_the_mean_of_the_step(data: ImageSplit) -> None:
    def loss(batch: Batch) -> float:
        target_B = batch.targets["shape"]
        return float((target_B[target_B != MISSING] + 1).sum()) / batch.known["shape"]

    alone = [loss(batch) for batch in training_batches(data, plain(12), PLAIN, CPU, 0)]
    shared = [
        [loss(batch) for batch in training_batches(data, plain(12), PLAIN, CPU, 0, rank, 3)]
        for rank in range(3)
    ]
    np.testing.assert_allclose(np.mean(shared, axis=0), alone)


@pytest.mark.parametrize("batch_size", [1, 5, 22, 100])
@pytest.mark.parametrize("workers", [1, 2, 3, 30])
def test_an_evaluation_visits_each_row_exactly_once_over_all_workers(
    data: ImageSplit, batch_size: int, workers: int
) -> None:
    parts = [
        [
            rows_of(batch)
            for batch in evaluation_batches(data, batch_size, PLAIN, CPU, rank, workers)
        ]
        for rank in range(workers)
    ]
    visited = [row for steps in parts for rows in steps for row in rows]
    assert sorted(visited) == list(range(ROWS))
    assert max(len(rows) for steps in parts for rows in steps) <= batch_size
    counts = [sum(map(len, steps)) for steps in parts]
    assert max(counts) - min(counts) <= 1


def test_an_evaluation_of_one_worker_keeps_the_order_of_the_rows(data: ImageSplit) -> None:
    batches = list(evaluation_batches(data, 5, PLAIN, CPU))
    assert rows_of(batches[0]) == [0, 1, 2, 3, 4]
    assert [len(batch.images_BCHW) for batch in batches] == [5, 5, 5, 5, 2]
    for batch in batches:
        assert batch.known == {head: known_labels(head, rows_of(batch)) for head in CELLS}


def test_pixels_are_normalised_as_torchvision_does() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(0, 256, (4, 3, 5, 7), dtype=torch.uint8, generator=generator)
    expected_BCHW = v2.Normalize(list(mean), list(std))(images_BCHW.float() / 255)
    normalised_BCHW = Normalization(mean, std)(images_BCHW)
    assert normalised_BCHW.dtype == torch.float32
    torch.testing.assert_close(normalised_BCHW, expected_BCHW, rtol=1e-5, atol=1e-5)


def test_what_was_normalised_for_an_evaluation_first_can_be_trained_on_next() -> None:
    normalization = Normalization((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    images_BCHW = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
    with torch.inference_mode():
        evaluated_BCHW = normalization(images_BCHW)
    layer = nn.Conv2d(3, 1, 1)
    trained_BCHW = normalization(images_BCHW)
    torch.autograd.backward(layer(trained_BCHW).sum())
    assert layer.weight.grad is not None
    assert torch.equal(trained_BCHW, evaluated_BCHW)


def test_a_batch_is_float32_with_channels_last_in_memory(data: ImageSplit) -> None:
    batches = [
        *training_batches(data, plain(4), PLAIN, CPU, 0),
        *training_batches(data, TrialConfig(batch_size=4, erasing_prob=0.5), PLAIN, CPU, 0),
        *evaluation_batches(data, 4, PLAIN, CPU),
    ]
    for batch in batches:
        assert batch.images_BCHW.dtype == torch.float32
        assert batch.images_BCHW.shape[1:] == (3, 6, 6)
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_min_area": 0.3},
        {"hflip_prob": 1.0},
        {"vflip_prob": 1.0},
        {"crop_min_area": 0.3, "crop_max_ratio": 3.0},
        {"randaug_ops": 8},
        {"randaug_ops": 8, "randaug_color": False},
        {"autoaugment": True},
        {"augmix": True},
        {"color_jitter": 0.5},
        {"erasing_prob": 1.0},
    ],
)
def test_each_field_of_augmentation_changes_images_and_no_targets(fields: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (ROWS, 24, 24, 3), dtype=np.uint8)
    data = ImageSplit(images_NHWC, np.arange(ROWS), Labels.learn(CELLS).encode(CELLS))

    def first(config: TrialConfig) -> Batch:
        torch.manual_seed(0)
        return next(training_batches(data, config, PLAIN, CPU, 0))

    before, after = first(plain(8)), first(plain(8).replace(fields))
    changed_B = (before.images_BCHW != after.images_BCHW).flatten(1).any(1)
    assert changed_B.sum() >= 6
    whole = first(plain(8).replace({**fields, "augment": False}))
    assert torch.equal(whole.images_BCHW, before.images_BCHW)
    for head, target in before.targets.items():
        assert torch.equal(after.targets[head], target)
    assert after.known == before.known


def test_an_evaluation_never_augments(data: ImageSplit) -> None:
    images: list[Tensor] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        images.append(torch.cat([b.images_BCHW for b in evaluation_batches(data, 5, PLAIN, CPU)]))
    assert torch.equal(images[0], images[1])
    expected_NHWC = data.images_NHWC[data.places_N]
    assert ((images[0].permute(0, 2, 3, 1) * 255).round().numpy() == expected_NHWC).all()


def textured(side: int = 24) -> ImageSplit:
    """As `data`, but of noise."""
    images_NHWC = np.random.default_rng(0).integers(0, 256, (ROWS, side, side, 3), dtype=np.uint8)
    return ImageSplit(images_NHWC, np.arange(ROWS), Labels.learn(CELLS).encode(CELLS))


@pytest.mark.parametrize("fields", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_without_augmentation_nothing_is_done_to_images(fields: dict[str, Any]) -> None:
    data = textured()
    config = TrialConfig(batch_size=11, augment=False, randaug_ops=2, erasing_prob=1.0, **fields)
    for batch in training_batches(data, config, PLAIN, CPU, 0):
        assert batch.mixed_targets is None
        assert batch.share == 1.0
    plain_images = [b.images_BCHW for b in training_batches(data, plain(11), PLAIN, CPU, 0)]
    for batch, images_BCHW in zip(
        training_batches(data, config, PLAIN, CPU, 0), plain_images, strict=True
    ):
        assert torch.equal(batch.images_BCHW, images_BCHW)


@pytest.mark.parametrize("fields", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_mixed_batches_come_with_their_partners_targets(fields: dict[str, Any]) -> None:
    data = textured()
    whole = training_batches(data, plain(11), PLAIN, CPU, 2)
    for before, batch in zip(
        whole, training_batches(data, plain(11, **fields), PLAIN, CPU, 2), strict=True
    ):
        assert 0 < batch.share < 1
        assert batch.mixed_targets is not None
        for head, target in before.targets.items():
            assert torch.equal(batch.targets[head], target)
            assert torch.equal(batch.mixed_targets[head], target.flip(0))
        # So that the mean of the batch is the mean of its own and its partners' images.
        if "mixup_alpha" in fields:
            expected_BCHW = before.images_BCHW.lerp(before.images_BCHW.flip(0), 1 - batch.share)
            torch.testing.assert_close(batch.images_BCHW, expected_BCHW)
        else:
            own_BCHW = batch.images_BCHW == before.images_BCHW
            assert abs(own_BCHW[0].float().mean() - batch.share) < 0.02


def test_mixed_steps_are_alike_for_all_workers_and_other_from_step_to_step() -> None:
    config = plain(4, mixup_alpha=0.5, cutmix_alpha=0.5)
    shares = []
    for rank in (0, 1):
        torch.manual_seed(rank)
        batches = training_batches(textured(), config, PLAIN, CPU, 1, rank, 2)
        shares.append([batch.share for batch in batches])
    assert shares[0] == shares[1]
    assert len(set(shares[0])) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_the_mixed_loss_over_known_is_the_mean_of_all_labels_by_their_shares(workers: int) -> None:
    """`known` needs no change: a worker's partners are its own rows, in another order."""

    def loss(batch: Batch) -> float:
        assert batch.mixed_targets is not None
        total = 0.0
        for share, targets in (
            (batch.share, batch.targets),
            (1 - batch.share, batch.mixed_targets),
        ):
            target_B = targets["shape"]
            total += share * float((target_B[target_B != MISSING] + 1).sum())
        return total / batch.known["shape"]

    config = plain(12, mixup_alpha=1.0)
    parts = [
        training_batches(textured(), config, PLAIN, CPU, 0, rank, workers)
        for rank in range(workers)
    ]
    unmixed = training_batches(textured(), plain(12), PLAIN, CPU, 0)
    for shares, whole in zip(zip(*parts, strict=True), unmixed, strict=True):
        target_B = whole.targets["shape"]
        # A permutation of the labels has their mean.
        expected = float((target_B[target_B != MISSING] + 1).float().mean())
        assert np.mean([loss(share) for share in shares]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rows", "size", "lengths"),
    [
        (8, 8, [8]),
        (8, 100, [8]),
        (8, 4, [4, 4]),
        (9, 4, [3, 3, 3]),
        (9, 8, [5, 4]),
        (7, 3, [3, 2, 2]),
        (4, 3, [2, 2]),
        (5, 2, [2, 2, 1]),
        (3, 1, [1, 1, 1]),
        (1, 4, [1]),
    ],
)
def test_parts_are_consecutive_and_alike_in_length(
    rows: int, size: int, lengths: list[int]
) -> None:
    images_BCHW = torch.randn(rows, 3, 2, 2)
    targets = {"shape": torch.arange(rows), "marks": torch.randn(rows, 2)}
    mixed = {head: target.flip(0) for head, target in targets.items()}
    batch = Batch(images_BCHW, targets, {"shape": 3.0, "marks": 2.0}, mixed, 0.7)
    assert len(batch) == rows
    parts = list(batch.parts(size))
    assert [len(part) for part in parts] == lengths
    assert torch.equal(torch.cat([part.images_BCHW for part in parts]), images_BCHW)
    assert parts[0].images_BCHW.data_ptr() == images_BCHW.data_ptr()
    for head in targets:
        assert torch.equal(torch.cat([part.targets[head] for part in parts]), targets[head])
        partners = [part.mixed_targets[head] for part in parts if part.mixed_targets]
        assert torch.equal(torch.cat(partners), mixed[head])
    assert all(part.known == batch.known and part.share == 0.7 for part in parts)
    unmixed = Batch(images_BCHW, targets, batch.known)
    assert all(part.mixed_targets is None and part.share == 1 for part in unmixed.parts(size))


def test_no_part_of_a_larger_batch_has_a_single_row_where_size_is_above_2() -> None:
    for rows in range(2, 60):
        batch = Batch(torch.zeros(rows, 3, 1, 1), {}, {})
        for size in range(3, 40):
            lengths = [len(part) for part in batch.parts(size)]
            assert sum(lengths) == rows
            assert 2 <= min(lengths) <= max(lengths) <= size


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_evaluation_sees_the_central_part_enlarged(interpolation: Any) -> None:
    images_NHWC = np.zeros((ROWS, 24, 24, 3), np.uint8)
    images_NHWC[:, 6:18, 6:18] = 200  # the central half
    data = ImageSplit(images_NHWC, np.arange(ROWS), Labels.learn(CELLS).encode(CELLS))
    for batch in evaluation_batches(data, 5, PLAIN, CPU, 0, 1, 0.5, interpolation):
        inner_BCHW = batch.images_BCHW[:, :, 4:-4, 4:-4] * 255
        torch.testing.assert_close(inner_BCHW, torch.full_like(inner_BCHW, 200.0))
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
    whole = evaluation_batches(data, ROWS, PLAIN, CPU, 0, 1, 1.0, interpolation)
    part = evaluation_batches(data, ROWS, PLAIN, CPU, 0, 1, 0.8, interpolation)
    bright, brighter = (next(batches).images_BCHW.mean() for batches in (whole, part))
    # The square covers a quarter of the whole.
    assert bright == pytest.approx(0.25 * 200 / 255, abs=1e-6)
    assert brighter == pytest.approx(0.25 / 0.8**2 * 200 / 255, rel=0.02)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_whole_evaluation_is_untouched_by_interpolation(
    data: ImageSplit, interpolation: Any
) -> None:
    for first, second in zip(
        evaluation_batches(data, 5, PLAIN, CPU),
        evaluation_batches(data, 5, PLAIN, CPU, 0, 1, 1.0, interpolation),
        strict=True,
    ):
        assert torch.equal(first.images_BCHW, second.images_BCHW)


def test_no_batch_waits_for_its_device() -> None:
    # Tensors of the device "meta" have no values: whatever waits for one fails.
    config = TrialConfig(batch_size=8, randaug_ops=2, erasing_prob=0.5, mixup_alpha=1.0)
    meta = torch.device("meta")
    for config_ in (config, config.replace({"cutmix_alpha": 1.0}), plain(8, augment=False)):
        for batch in training_batches(textured(), config_, PLAIN, meta, 0):
            assert len(list(batch.parts(3))) == 3
    assert len(list(evaluation_batches(textured(), 8, PLAIN, meta, 0, 1, 0.9))) == 3


@pytest.mark.parametrize(
    ("batch_size", "rows", "workers", "line"),
    [
        (8, 8, 1, None),
        (8, 100, 4, None),
        (6, 6, 3, None),
        (9, 8, 1, "must be at most the number of training rows, but is 9 for 8 rows"),
        (8, 7, 2, "must be at most the number of training rows, but is 8 for 7 rows"),
        (8, 100, 3, "they must divide it, but 3 workers do not divide 8"),
        (2, 100, 4, "they must divide it, but 4 workers do not divide 2"),
    ],
)
def test_a_batch_fits_the_rows_and_the_workers_share_it(
    batch_size: int, rows: int, workers: int, line: str | None
) -> None:
    if line is None:
        check_batch_size(batch_size, rows, workers)
    else:
        with pytest.raises(UserError, match=line):
            check_batch_size(batch_size, rows, workers)


def test_training_refuses_a_batch_that_its_rows_do_not_fill(data: ImageSplit) -> None:
    with pytest.raises(UserError, match="but is 23 for 22 rows"):
        next(training_batches(data, plain(23), PLAIN, CPU, 0))
    with pytest.raises(UserError, match="3 workers do not divide 8"):
        next(training_batches(data, plain(8), PLAIN, CPU, 0, rank=0, workers=3))
