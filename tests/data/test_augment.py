"""Augmented batches have the distribution of torchvision's augmented images.

Shapes: B images, C channels, H and W pixels, N samples, 2 for height and width.
"""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from raymlc.data.augment import crop_and_flip, erase, randaugment

SIDE = 32
Samples = NDArray[np.float64]


def noise(batch: int, height: int = 9, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator)


def coordinates(batch: int) -> Tensor:
    """Images whose channel 0 is each pixel's x, and channel 1 its y, both in [0, 1]."""
    line = (torch.arange(SIDE) + 0.5) / SIDE
    y_HW, x_HW = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x_HW, y_HW]).expand(batch, -1, -1, -1)


def crops(batch: int, min_area: float, hflip_prob: float) -> dict[str, Samples]:
    """What `crop_and_flip` did to each image, read off the coordinates in its result."""
    cropped_BCHW = crop_and_flip(coordinates(batch), min_area, hflip_prob).double()
    # Inner pixels, since the outermost are interpolated over the image's edge.
    near, far = SIDE // 4, 3 * SIDE // 4
    share = (far - near) / SIDE
    x_BW, y_BH = cropped_BCHW[:, 0, SIDE // 2], cropped_BCHW[:, 1, :, SIDE // 2]
    width_B = (x_BW[:, far] - x_BW[:, near]) / share
    height_B = (y_BH[:, far] - y_BH[:, near]) / share
    # The middle of the result lies between its two middle pixels.
    centre_x_B = x_BW[:, SIDE // 2 - 1 : SIDE // 2 + 1].mean(1)
    centre_y_B = y_BH[:, SIDE // 2 - 1 : SIDE // 2 + 1].mean(1)
    return {
        "area": (width_B.abs() * height_B).numpy(),
        "log_ratio": (width_B.abs() / height_B).log().numpy(),
        "width": width_B.abs().numpy(),
        "height": height_B.numpy(),
        "x": centre_x_B.numpy(),
        "y": centre_y_B.numpy(),
        "mirrored": (width_B < 0).double().numpy(),
    }


def reference_crops(samples: int, min_area: float) -> dict[str, Samples]:
    """The same of torchvision's crops, on an image so large that rounding does not show."""
    side = 10_000
    image = torch.empty(3, side, side, device="meta")
    found_N4 = np.array(
        [
            transforms.RandomResizedCrop.get_params(image, [min_area, 1.0], [3 / 4, 4 / 3])
            for _ in range(samples)
        ]
    )
    top_N, left_N, height_N, width_N = found_N4.T / side
    return {
        "area": height_N * width_N,
        "log_ratio": np.log(width_N / height_N),
        "width": width_N,
        "height": height_N,
        "x": left_N + width_N / 2,
        "y": top_N + height_N / 2,
    }


def distance(first_N: Samples, second_N: Samples) -> float:
    """Kolmogorov and Smirnov's: the largest gap between the two cumulative distributions."""
    places = np.concatenate([first_N, second_N])
    first_cdf = np.searchsorted(np.sort(first_N), places, side="right") / len(first_N)
    second_cdf = np.searchsorted(np.sort(second_N), places, side="right") / len(second_N)
    return float(np.abs(first_cdf - second_cdf).max())


def assert_one_distribution(first_N: Samples, second_N: Samples) -> None:
    """That two samples differ no more than one in 1,000 pairs of the same distribution would."""
    n, m = len(first_N), len(second_N)
    assert distance(first_N, second_N) < 1.95 * math.sqrt((n + m) / (n * m))


def test_whole_crops_without_a_flip_are_the_images_themselves() -> None:
    images_BCHW = noise(5)
    torch.testing.assert_close(crop_and_flip(images_BCHW, 1.0, 0.0), images_BCHW, rtol=0, atol=1e-5)


def test_whole_crops_that_are_all_flipped_are_mirrored_left_to_right() -> None:
    images_BCHW = noise(5)
    torch.testing.assert_close(
        crop_and_flip(images_BCHW, 1.0, 1.0), images_BCHW.flip(-1), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("hflip_prob", [0.0, 0.3, 1.0])
def test_the_share_of_mirrored_images_is_the_asked_one(hflip_prob: float) -> None:
    torch.manual_seed(0)
    share = crops(2000, 0.5, hflip_prob)["mirrored"].mean()
    assert abs(share - hflip_prob) <= 4 * math.sqrt(hflip_prob * (1 - hflip_prob) / 2000)


@pytest.mark.parametrize("min_area", [0.08, 0.6])
def test_crops_are_distributed_as_torchvisions(min_area: float) -> None:
    torch.manual_seed(1)
    ours, theirs = crops(4000, min_area, 0.5), reference_crops(4000, min_area)
    for name, samples_N in theirs.items():
        assert_one_distribution(ours[name], samples_N)


def test_a_mirrored_crop_is_from_the_same_distribution_as_another() -> None:
    torch.manual_seed(2)
    found = crops(4000, 0.3, 0.5)
    for name in ("area", "log_ratio", "x", "y"):
        mirrored_N = found["mirrored"] == 1
        assert_one_distribution(found[name][mirrored_N], found[name][~mirrored_N])


@pytest.mark.parametrize("min_area", [0.08, 0.6, 1.0])
def test_crops_lie_inside_the_image_and_cover_the_least_area(min_area: float) -> None:
    torch.manual_seed(3)
    found = crops(2000, min_area, 0.5)
    assert found["area"].min() >= min_area - 1e-3
    assert np.abs(found["log_ratio"]).max() <= math.log(4 / 3) + 1e-3
    for centre, size in (("x", "width"), ("y", "height")):
        assert (found[centre] - found[size] / 2).min() >= -1e-3
        assert (found[centre] + found[size] / 2).max() <= 1 + 1e-3


def test_a_crop_holds_what_an_enlargement_of_its_rectangle_holds() -> None:
    torch.manual_seed(4)
    original_BCHW = noise(1, SIDE, SIDE)
    seen_BCHW = torch.cat([coordinates(1), original_BCHW], dim=1).repeat(8, 1, 1, 1)
    for x_HW, y_HW, *colors in crop_and_flip(seen_BCHW, 0.3, 0.5):
        # Where the coordinates say a pixel came from, the other channels came from too.
        column_HW, row_HW = x_HW * SIDE - 0.5, y_HW * SIDE - 0.5
        left_HW = column_HW.floor().long().clamp(0, SIDE - 2)
        top_HW = row_HW.floor().long().clamp(0, SIDE - 2)
        right_share_HW, lower_share_HW = column_HW - left_HW, row_HW - top_HW
        for color_HW, original_HW in zip(colors, original_BCHW[0], strict=True):
            upper_HW = torch.lerp(
                original_HW[top_HW, left_HW], original_HW[top_HW, left_HW + 1], right_share_HW
            )
            lower_HW = torch.lerp(
                original_HW[top_HW + 1, left_HW],
                original_HW[top_HW + 1, left_HW + 1],
                right_share_HW,
            )
            expected_HW = torch.lerp(upper_HW, lower_HW, lower_share_HW)
            torch.testing.assert_close(color_HW, expected_HW, rtol=0, atol=1e-3)


def test_images_of_one_batch_are_cropped_each_in_its_own_way() -> None:
    torch.manual_seed(5)
    assert len(np.unique(crops(64, 0.3, 0.0)["area"].round(6))) > 60


def erased_masks(batch: int, prob: float, side: int = SIDE) -> NDArray[np.bool_]:
    """Which pixels of images of nothing but 9 are erased; the same ones in every channel."""
    nines_BCHW = torch.full((batch, 2, side, side), 9.0)
    changed_BCHW = (erase(nines_BCHW, prob) != 9).numpy()
    assert (changed_BCHW[:, 0] == changed_BCHW[:, 1]).all()
    masks_BHW: NDArray[np.bool_] = changed_BCHW[:, 0]
    return masks_BHW


def test_no_image_is_erased_with_probability_0() -> None:
    images_BCHW = noise(50)
    assert torch.equal(erase(images_BCHW, 0.0), images_BCHW)


def test_what_is_erased_is_one_rectangle_inside_each_image() -> None:
    torch.manual_seed(6)
    masks_BHW = erased_masks(500, 1.0)
    rows_BH, columns_BW = masks_BHW.max(2), masks_BHW.max(1)
    assert (masks_BHW == (rows_BH[:, :, None] & columns_BW[:, None, :])).all()
    for lines_BL in (rows_BH, columns_BW):
        # A rectangle's rows, or columns, begin once and end once.
        padded_BL = np.pad(lines_BL, ((0, 0), (1, 1))).astype(int)
        assert (np.abs(np.diff(padded_BL, axis=1)).sum(1) == 2).all()


def test_erased_rectangles_have_torchvisions_areas_and_ratios() -> None:
    torch.manual_seed(7)
    masks_BHW = np.concatenate([erased_masks(250, 1.0, side=128) for _ in range(8)])
    ours_N2 = np.stack([masks_BHW.any(2).sum(1), masks_BHW.any(1).sum(1)], axis=1) / 128
    image_CHW = torch.empty(1, 128, 128)
    params = [
        transforms.RandomErasing.get_params(image_CHW, (0.02, 1 / 3), (0.3, 1 / 0.3), [0.0])
        for _ in range(4000)
    ]
    theirs_N2 = np.array([(height, width) for _, _, height, width, _ in params]) / 128
    error = theirs_N2.prod(1).std() * math.sqrt(1 / 2000 + 1 / 4000)
    assert abs(ours_N2.prod(1).mean() - theirs_N2.prod(1).mean()) < 4 * error

    # Sizes are whole pixels, which torchvision rounds to and the batch does not: a jitter of one
    # pixel hides it.
    rng = np.random.default_rng(0)
    ours_N2, theirs_N2 = (
        sizes_N2 + rng.uniform(-0.5, 0.5, sizes_N2.shape) / 128 for sizes_N2 in (ours_N2, theirs_N2)
    )
    assert_one_distribution(ours_N2.prod(1), theirs_N2.prod(1))
    assert_one_distribution(ours_N2[:, 0], theirs_N2[:, 0])
    assert_one_distribution(ours_N2[:, 1], theirs_N2[:, 1])
    assert_one_distribution(ours_N2[:, 0] / ours_N2[:, 1], theirs_N2[:, 0] / theirs_N2[:, 1])


def test_erased_rectangles_lie_anywhere_alike() -> None:
    torch.manual_seed(8)
    share_HW: Samples = erased_masks(3000, 1.0).mean(0)
    for mirrored_HW in (share_HW[::-1], share_HW[:, ::-1], share_HW.T):
        assert np.abs(share_HW - mirrored_HW).max() < 0.05
    assert share_HW[SIDE // 2, SIDE // 2] > 2 * share_HW[0, 0] > 0


def test_the_share_of_erased_images_is_the_asked_one() -> None:
    torch.manual_seed(9)
    share = erased_masks(2000, 0.3).any((1, 2)).mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


def test_erased_pixels_hold_normal_noise_and_the_others_what_they_held() -> None:
    torch.manual_seed(10)
    images_BCHW = torch.full((200, 3, 32, 32), 9.0)
    erased_BCHW = erase(images_BCHW, 1.0)
    values_N = erased_BCHW[erased_BCHW != 9]
    assert len(values_N) > 50_000
    assert abs(values_N.mean()) < 0.02
    assert abs(values_N.std() - 1) < 0.02
    # Each channel has its own.
    chosen_B1HW = (erased_BCHW != 9).all(1, keepdim=True)
    first_N, second_N = (erased_BCHW[:, c : c + 1][chosen_B1HW] for c in (0, 1))
    assert abs(np.corrcoef(first_N, second_N)[0, 1]) < 0.03


def test_randaugment_augments_each_image_as_torchvision_does() -> None:
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    torch.manual_seed(11)
    augmented_BCHW = randaugment(images_BCHW, ops=2, magnitude=9)
    torch.manual_seed(11)
    reference = v2.RandAugment(num_ops=2, magnitude=9)
    for result_CHW, image_CHW in zip(augmented_BCHW, images_BCHW, strict=True):
        assert torch.equal(result_CHW, reference(image_CHW))
    assert augmented_BCHW.dtype == torch.uint8
    assert not torch.equal(augmented_BCHW, images_BCHW)


def test_one_seed_gives_one_augmentation() -> None:
    images_BCHW = noise(4)
    results = []
    for seed in (12, 12, 13):
        torch.manual_seed(seed)
        results.append(erase(crop_and_flip(images_BCHW, 0.5, 0.5), 0.5))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
