"""One resampling does what the operations do one after another, distributed as torchvision's.

Shapes: B images, C channels, H and W pixels, S operations of an image, 33 a matrix.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timm
from torch import Tensor
from torchvision import transforms

from raymlc.data.geometry import central, crops, flips, moves, resample
from raymlc.data.policy import COLOR_OPS, GEOMETRIC_OPS, Op, Steps, randaugment

Array = NDArray[np.float64]
WHOLE = np.eye(3)[None]
TIMM = {
    Op.ROTATE: timm.rotate,
    Op.SHEAR_X: timm.shear_x,
    Op.SHEAR_Y: timm.shear_y,
    Op.TRANSLATE_X: timm.translate_x_rel,
    Op.TRANSLATE_Y: timm.translate_y_rel,
}
ARGS = {Op.ROTATE: 27.0, Op.TRANSLATE_X: -0.4, Op.TRANSLATE_Y: 0.13}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(batch: int, height: int = 9, width: int = 12) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def smooth(height: int, width: int) -> NDArray[np.float32]:
    """A grey picture of slow waves between 50 and 200."""
    y_HW, x_HW = np.mgrid[:height, :width]
    waves_HW = np.sin(x_HW / width * 5 + 1) + np.cos(y_HW / height * 4 + x_HW / width)
    return np.asarray(125 + waves_HW * 37, np.float32)


def step(op: Op, arg: float, batch: int = 1) -> Steps:
    return Steps(np.full((batch, 1), int(op)), np.full((batch, 1), arg))


def frames(matrices_B33: Array) -> dict[str, Array]:
    """Where crops lie, as shares of the image."""
    width_B, height_B = matrices_B33[:, 0, 0], matrices_B33[:, 1, 1]
    return {
        "area": np.abs(width_B * height_B),
        "log_ratio": np.log(np.abs(width_B / height_B)),
        "width": np.abs(width_B),
        "height": np.abs(height_B),
        "x": (matrices_B33[:, 0, 2] + 1) / 2,
        "y": (matrices_B33[:, 1, 2] + 1) / 2,
    }


def reference_crops(samples: int, min_area: float, max_ratio: float) -> dict[str, Array]:
    """The same of torchvision's crops, on an image so large that rounding does not show."""
    side = 10_000
    image = torch.empty(3, side, side, device="meta")
    found_N4 = np.array(
        [
            transforms.RandomResizedCrop.get_params(
                image, [min_area, 1.0], [1 / max_ratio, max_ratio]
            )
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


@pytest.mark.parametrize("max_ratio", [1.0, 4 / 3, 3.0])
@pytest.mark.parametrize("min_area", [0.08, 0.6])
def test_crops_are_distributed_as_torchvisions(
    assert_one_distribution: Callable[[Array, Array], None], min_area: float, max_ratio: float
) -> None:
    torch.manual_seed(1)
    ours = frames(crops(generator(), 4000, min_area, max_ratio))
    theirs = reference_crops(2000, min_area, max_ratio)
    if max_ratio == 1:
        assert np.abs(ours.pop("log_ratio")).max() < 1e-9
    for name, samples_N in ours.items():
        assert_one_distribution(samples_N, theirs[name])


@pytest.mark.parametrize("max_ratio", [1.0, 4 / 3, 10.0])
@pytest.mark.parametrize("min_area", [0.08, 0.6, 1.0])
def test_crops_lie_inside_the_image_and_keep_area_and_ratio(
    min_area: float, max_ratio: float
) -> None:
    found = frames(crops(generator(), 2000, min_area, max_ratio))
    assert found["area"].min() >= min_area - 1e-9
    assert np.abs(found["log_ratio"]).max() <= math.log(max_ratio) + 1e-9
    for centre, size in (("x", "width"), ("y", "height")):
        assert (found[centre] - found[size] / 2).min() >= -1e-9
        assert (found[centre] + found[size] / 2).max() <= 1 + 1e-9


def test_images_of_one_batch_are_cropped_each_in_its_own_way() -> None:
    assert len(np.unique(frames(crops(generator(), 64, 0.3, 4 / 3))["area"].round(6))) > 60


@pytest.mark.parametrize(("hflip", "vflip"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.6), (0.5, 0.5)])
def test_the_shares_of_mirrored_images_are_the_asked_ones(hflip: float, vflip: float) -> None:
    matrices_B33 = flips(generator(), 4000, hflip, vflip)
    across_B, down_B = matrices_B33[:, 0, 0] == -1, matrices_B33[:, 1, 1] == -1
    for flipped_B, prob in ((across_B, hflip), (down_B, vflip), (across_B & down_B, hflip * vflip)):
        assert abs(flipped_B.mean() - prob) <= 4 * math.sqrt(prob * (1 - prob) / 4000)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("hflip", "vflip", "axes"), [(1.0, 0.0, [-1]), (0.0, 1.0, [-2]), (1.0, 1.0, [-2, -1])]
)
def test_a_flipped_image_is_mirrored(
    interpolation: Literal["bilinear", "bicubic"], hflip: float, vflip: float, axes: list[int]
) -> None:
    images_BCHW = noise(5)
    flipped_BCHW = resample(images_BCHW, flips(generator(), 5, hflip, vflip), interpolation)
    torch.testing.assert_close(flipped_BCHW, images_BCHW.flip(axes), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "matrices_B33",
    [
        crops(generator(), 5, 1.0, 3.0),
        flips(generator(), 5, 0.0, 0.0),
        central(5, 1.0),
        moves(step(Op.INVERT, 1.0, 5), 9, 12),
    ],
)
def test_what_changes_nothing_returns_the_images_themselves(matrices_B33: Array) -> None:
    images_BCHW = noise(5)
    assert resample(images_BCHW, matrices_B33, "bilinear") is images_BCHW


def test_a_crop_is_the_enlargement_of_its_rectangle() -> None:
    # The lower left quarter's upper half, 16 x 8 pixels, enlarged as torch does it.
    images_BCHW = noise(2, 32, 32)
    part_BCHW = images_BCHW[:, :, 16:24, :16]
    matrix_33 = np.array([[0.5, 0, -0.5], [0, 0.25, 0.25], [0, 0, 1]])
    seen_BCHW = resample(images_BCHW, np.stack([matrix_33, WHOLE[0]]), "bilinear")
    expected_BCHW = torch.nn.functional.interpolate(part_BCHW, (32, 32), mode="bilinear")
    # Its outermost pixels see the image around the rectangle.
    inner = (slice(2, -2), slice(1, -1))
    torch.testing.assert_close(
        seen_BCHW[0, :, *inner], expected_BCHW[0, :, *inner], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(seen_BCHW[1], images_BCHW[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.875])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_central_part_is_that_of_each_side(
    share: float, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    side = 64
    picture_HW = torch.from_numpy(smooth(side, side))
    (seen_HW,) = resample(picture_HW[None, None], central(1, share), interpolation)[0]
    kept = round(side * share)
    first = (side - kept) // 2
    part_HW = picture_HW[first : first + kept, first : first + kept]
    expected_HW = torch.nn.functional.interpolate(
        part_HW[None, None], (side, side), mode=interpolation
    )[0, 0]
    inner = slice(4, -4)
    assert (seen_HW - expected_HW)[inner, inner].abs().max() < 0.1


def test_bicubic_is_another_resampling_than_bilinear() -> None:
    images_BCHW = noise(1, 16, 16)
    kinds: tuple[Literal["bilinear", "bicubic"], ...] = ("bilinear", "bicubic")
    linear_BCHW, cubic_BCHW = (resample(images_BCHW, central(1, 0.7), kind) for kind in kinds)
    assert (linear_BCHW - cubic_BCHW).abs().mean() > 0.01


def inside_of(op: Op, arg: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A smooth picture moved by one operation: timm's on Pillow, with the fill -1, and ours."""
    picture_HW = smooth(height, width)
    moved = TIMM[op](
        Image.fromarray(picture_HW), arg, fillcolor=-1, resample=Image.Resampling.BILINEAR
    )
    ours_BCHW = resample(
        torch.from_numpy(picture_HW)[None, None], moves(step(op, arg), height, width), "bilinear"
    )
    return torch.from_numpy(np.array(moved)), ours_BCHW[0, 0]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("op", GEOMETRIC_OPS)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_each_geometric_operation_is_timms(op: Op, sign: int, size: tuple[int, int]) -> None:
    theirs_HW, ours_HW = inside_of(op, sign * ARGS.get(op, 0.3), *size)
    filled_HW = theirs_HW == -1
    assert 0.05 < filled_HW.float().mean() < 0.5
    # Of a line of the picture's edge, rounding may put pixels on either side.
    assert ((ours_HW == 0) == filled_HW).float().mean() > 0.995
    both_HW = (ours_HW != 0) & ~filled_HW
    assert (ours_HW - theirs_HW)[both_HW].abs().max() < 1.0


def test_operations_compose_as_one_after_another() -> None:
    side, batch = 96, 40
    picture_HW = smooth(side, side)
    rng = generator(3)
    steps = randaugment(rng, batch, 4, 4.0, 2.0, color=True)
    frame_B33 = crops(rng, batch, 0.4, 4 / 3) @ flips(rng, batch, 0.5, 0.5)
    matrices_B33 = moves(steps, side, side) @ frame_B33
    pictures_BCHW = torch.from_numpy(picture_HW).expand(batch, 1, -1, -1)
    ours_BHW = resample(pictures_BCHW, matrices_B33, "bilinear")[:, 0]
    compared = 0
    for ours_HW, ops_S, args_S, frame_33 in zip(
        ours_BHW, steps.ops_BS, steps.args_BS, frame_B33, strict=True
    ):
        image = Image.fromarray(picture_HW)
        seen = Image.new("F", image.size, 1.0)  # where timm's result comes from the picture
        for op, arg in zip(map(Op, ops_S), args_S, strict=True):
            if op in GEOMETRIC_OPS:
                image = TIMM[op](image, arg, resample=Image.Resampling.BILINEAR, fillcolor=0)
                seen = TIMM[op](seen, arg, resample=Image.Resampling.BILINEAR, fillcolor=0)
        moved_CHW = torch.from_numpy(np.stack([np.array(image), np.array(seen)]))
        theirs_HW, whole_HW = resample(moved_CHW[None], frame_33[None], "bilinear")[0]
        inside_HW = whole_HW == 1
        compared += int(inside_HW.sum())
        assert (ours_HW - theirs_HW)[inside_HW].abs().max() < 2.0
    assert compared > 0.5 * batch * side**2
    assert np.isin(steps.ops_BS, COLOR_OPS).any()


def test_beyond_the_edge_there_is_0_and_within_it_the_picture_up_to_the_edge() -> None:
    ones_BCHW = torch.ones(300, 2, 24, 32)
    steps = randaugment(generator(), 300, 2, 9.0, 0.5, color=False)
    moved_BCHW = resample(ones_BCHW, moves(steps, 24, 32), "bilinear")
    assert ((moved_BCHW == 0) | ((moved_BCHW - 1).abs() < 1e-5)).all()
    assert torch.equal(moved_BCHW[:, 0] == 0, moved_BCHW[:, 1] == 0)
    filled_B = (moved_BCHW == 0).flatten(1).any(1)
    moved_B = torch.from_numpy((steps.ops_BS != Op.NOTHING).any(1))
    assert not filled_B[~moved_B].any()
    assert filled_B[moved_B].float().mean() > 0.9
    cropped_BCHW = resample(ones_BCHW, crops(generator(), 300, 0.2, 2.0), "bilinear")
    torch.testing.assert_close(cropped_BCHW, ones_BCHW)


@pytest.mark.parametrize("op", GEOMETRIC_OPS)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_a_small_move_uncovers_is_filled_too(op: Op, sign: int) -> None:
    arg = sign * (2.0 if op == Op.ROTATE else 0.03)
    moved_BCHW = resample(torch.ones(1, 1, 64, 64), moves(step(op, arg), 64, 64), "bilinear")
    assert 0.005 < (moved_BCHW == 0).float().mean() < 0.05


def test_what_leaves_the_image_and_comes_back_is_not_lost() -> None:
    steps = Steps(np.array([[Op.TRANSLATE_X, Op.TRANSLATE_X]]), np.array([[0.4, -0.4]]))
    images_BCHW = noise(1)
    seen_BCHW = resample(images_BCHW, moves(steps, 9, 12), "bilinear")
    torch.testing.assert_close(seen_BCHW, images_BCHW, rtol=0, atol=1e-5)
