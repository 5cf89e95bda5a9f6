"""OpenCV shows images as the batched way and torchvision do, and is taken wherever it can be.

Shapes: B images, C channels, H and W pixels, N samples, 33 a matrix.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from raymlc.data import augment, warp
from raymlc.data.batches import Normalization
from raymlc.data.geometry import crops, flips, moves, resample
from raymlc.data.policy import Op, Steps, no_steps, randaugment

pytest.importorskip("cv2")

ROOT = Path(__file__).parents[2]
Array = NDArray[np.float64]
NORMALIZE = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINDS: tuple[Literal["bilinear", "bicubic"], ...] = ("bilinear", "bicubic")
MODES = {
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
}


def unchanged(pixels_BCHW: Tensor) -> Tensor:
    return pixels_BCHW.float()


def pictures(batch: int, height: int = 48, width: int = 64) -> Tensor:
    rng = np.random.default_rng(0)
    small_BHWC = rng.integers(0, 256, (batch, 4, 4, 3), dtype=np.uint8)
    size, kind = (width, height), Image.Resampling.BICUBIC
    whole = [np.asarray(Image.fromarray(small_HWC).resize(size, kind)) for small_HWC in small_BHWC]
    return torch.from_numpy(np.stack(whole)).permute(0, 3, 1, 2)


def box_of(top: int, left: int, height: int, width: int, shape: tuple[int, int]) -> Array:
    """The matrix that shows a box of pixels."""
    across, down = width / shape[1], height / shape[0]
    x, y = 2 * left / shape[1] + across - 1, 2 * top / shape[0] + down - 1
    return np.array([[across, 0, x], [0, down, y], [0, 0, 1]])


@pytest.mark.parametrize("interpolation", KINDS)
@pytest.mark.parametrize(("hflip", "vflip"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_an_upright_box_is_torchvisions_crop(
    interpolation: Literal["bilinear", "bicubic"], hflip: int, vflip: int
) -> None:
    pixels_BCHW = pictures(4)
    boxes = [(0, 0, 48, 64), (5, 9, 31, 40), (20, 0, 28, 17), (0, 63, 48, 1)]
    matrices_B33 = np.stack([box_of(*box, (48, 64)) for box in boxes])
    matrices_B33 = matrices_B33 @ flips(np.random.default_rng(0), 4, hflip, vflip)
    seen_BCHW = warp.view(pixels_BCHW, no_steps(4), matrices_B33, interpolation, unchanged)
    for pixels_CHW, seen_CHW, box in zip(pixels_BCHW, seen_BCHW, boxes, strict=True):
        expected_CHW = functional.resized_crop(
            pixels_CHW.float(), *box, [48, 64], MODES[interpolation], antialias=False
        )
        if hflip:
            expected_CHW = functional.hflip(expected_CHW)
        if vflip:
            expected_CHW = functional.vflip(expected_CHW)
        torch.testing.assert_close(seen_CHW, expected_CHW, rtol=0, atol=0.02)


@pytest.mark.parametrize("interpolation", KINDS)
def test_what_is_slanted_or_moved_out_is_shown_as_in_batches(
    interpolation: Literal["bilinear", "bicubic"],
) -> None:
    rng = np.random.default_rng(1)
    pixels_BCHW = pictures(60)
    steps = randaugment(rng, 60, 3, 6.0, 2.0, color=False)
    steps.ops_BS[:, 0] = rng.choice([Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y], 60)
    steps.args_BS[:, 0] = np.where(steps.ops_BS[:, 0] == Op.ROTATE, 17.0, -0.2)
    frames_B33 = crops(rng, 60, 0.5, 4 / 3) @ flips(rng, 60, 0.5, 0.5)
    matrices_B33 = moves(steps, 48, 64) @ frames_B33
    seen_BCHW = warp.view(pixels_BCHW, steps, matrices_B33, interpolation, unchanged)
    expected_BCHW = resample(unchanged(pixels_BCHW), matrices_B33, interpolation)
    filled_BHW, expected_filled_BHW = ((image == 0).all(1) for image in (seen_BCHW, expected_BCHW))
    # Of a line of the picture's edge, rounding may put pixels on either side.
    assert (filled_BHW == expected_filled_BHW).float().mean() > 0.998
    assert filled_BHW.float().mean() > 0.02
    both_BHW = ~filled_BHW & ~expected_filled_BHW
    # OpenCV 4 rounds places to 1/32 of a pixel.
    assert ((seen_BCHW - expected_BCHW).abs().amax(1)[both_BHW] < 1.5).all()
    assert (seen_BCHW - expected_BCHW).abs().amax(1)[both_BHW].mean() < 0.25


def test_an_image_that_is_moved_and_not_turned_keeps_its_fill() -> None:
    ones_BCHW = torch.ones(2, 3, 40, 40, dtype=torch.uint8)
    steps = Steps(np.array([[Op.TRANSLATE_X], [Op.TRANSLATE_Y]]), np.array([[0.25], [-0.25]]))
    seen_BCHW = warp.view(ones_BCHW, steps, moves(steps, 40, 40), "bilinear", unchanged)
    assert torch.equal(seen_BCHW[0, :, :, :30], torch.ones(3, 40, 30))
    assert (seen_BCHW[0, :, :, 30:] == 0).all()
    assert torch.equal(seen_BCHW[1, :, 10:], torch.ones(3, 30, 40))
    assert (seen_BCHW[1, :, :10] == 0).all()


def test_values_are_normalised_and_the_fill_is_the_mean() -> None:
    pixels_BCHW = pictures(3)
    whole_B33 = np.tile(np.eye(3), (3, 1, 1))
    seen_BCHW = warp.view(pixels_BCHW, no_steps(3), whole_B33, "bilinear", NORMALIZE)
    torch.testing.assert_close(seen_BCHW, NORMALIZE(pixels_BCHW), rtol=0, atol=1e-5)
    assert seen_BCHW.is_contiguous(memory_format=torch.channels_last)
    steps = Steps(np.full((3, 1), int(Op.ROTATE)), np.full((3, 1), 45.0))
    turned_BCHW = warp.view(pixels_BCHW, steps, moves(steps, 48, 64), "bilinear", NORMALIZE)
    assert (turned_BCHW[:, :, 0, 0] == 0).all()


def test_colours_change_before_the_geometry_does() -> None:
    pixels_BCHW = pictures(2)
    steps = Steps(np.full((2, 1), int(Op.INVERT)), np.zeros((2, 1)))
    half_B33 = np.stack([box_of(0, 0, 24, 32, (48, 64))] * 2)
    seen_BCHW = warp.view(pixels_BCHW, steps, half_B33, "bilinear", unchanged)
    plain_BCHW = warp.view(pixels_BCHW, no_steps(2), half_B33, "bilinear", unchanged)
    torch.testing.assert_close(seen_BCHW, 255 - plain_BCHW, rtol=0, atol=1e-3)


@pytest.mark.parametrize("min_area", [0.08, 0.6])
def test_boxes_are_distributed_as_torchvisions_of_that_size(
    assert_one_distribution: Callable[[Array, Array], None], min_area: float
) -> None:
    torch.manual_seed(1)
    side = 32
    image = torch.empty(3, side, side, device="meta")
    draw = transforms.RandomResizedCrop.get_params
    theirs_N4 = np.array([draw(image, [min_area, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)])
    matrices_N33 = crops(np.random.default_rng(0), 4000, min_area, 4 / 3)
    edges_N4 = np.array([edges for edges, _ in warp._boxes(matrices_N33, side, side)])
    left_N, top_N, right_N, lower_N = edges_N4.T
    assert edges_N4.min() >= 0
    assert edges_N4.max() <= side
    ours = (top_N, left_N, lower_N - top_N, right_N - left_N)
    for ours_N, theirs_N in zip(ours, theirs_N4.T, strict=True):
        assert_one_distribution(ours_N.astype(float), theirs_N.astype(float))


def test_opencv_is_taken_on_the_cpu_alone() -> None:
    assert augment._fastest_view("cpu") is warp.view
    assert augment._fastest_view("cuda") is augment.batched_view
    assert augment._fastest_view("meta") is augment.batched_view


def test_without_opencv_images_are_augmented_in_batches() -> None:
    code = """
import sys
sys.modules["cv2"] = None  # an import of it fails
from raymlc.data.augment import _fastest_view, batched_view
assert _fastest_view("cpu") is batched_view
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
