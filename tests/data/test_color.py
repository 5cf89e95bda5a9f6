"""Colour operations of a batch give the pixels that Pillow gives image by image.

Shapes: B images, C channels, H and W pixels, S operations of an image.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment as timm
from torch import Tensor
from torchvision.transforms import functional

from raymlc.data.color import apply_colors
from raymlc.data.policy import COLOR_OPS, GEOMETRIC_OPS, Op, Steps, color_jitter, randaugment
from raymlc.data.warp import colored

Reference = Callable[[Image.Image, float], Image.Image]
PILLOW: dict[Op, Reference] = {
    Op.AUTO_CONTRAST: lambda image, _: ImageOps.autocontrast(image),
    Op.EQUALIZE: lambda image, _: ImageOps.equalize(image),
    Op.INVERT: lambda image, _: ImageOps.invert(image),
    Op.POSTERIZE: lambda image, mask: image.point(lambda value: value & int(mask)),
    Op.SOLARIZE: lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    Op.SOLARIZE_ADD: lambda image, added: timm.solarize_add(image, int(added)),
    Op.COLOR: lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    Op.CONTRAST: lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    Op.BRIGHTNESS: lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    Op.SHARPNESS: lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}
WAYS = ("batched", "opencv")
FACTORS = (0.0, 0.1, 0.37, 1.0, 1.3, 1.72, 1.9)
ARGS: dict[Op, tuple[float, ...]] = {
    Op.POSTERIZE: (0, 128, 192, 224, 240, 255),
    Op.SOLARIZE: (0, 1, 100, 230, 255, 256),
    Op.SOLARIZE_ADD: (0, 1, 60, 110, 128),
    Op.COLOR: FACTORS,
    Op.CONTRAST: FACTORS,
    Op.BRIGHTNESS: FACTORS,
    Op.SHARPNESS: FACTORS,
}


def pictures(height: int = 20, width: int = 16) -> Tensor:
    """Pictures of noise, of few values, of a narrow range, of one colour, and smooth ones."""
    rng = np.random.default_rng(0)
    shape = (height, width, 3)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    kinds = [
        rng.integers(0, 256, shape),
        rng.integers(0, 3, shape) * 100,
        rng.integers(90, 140, shape),
        np.broadcast_to([7, 200, 128], shape),
        np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC)),
        np.where(np.arange(width)[:, None] == 0, 255, rng.integers(0, 9, shape)),
    ]
    return torch.from_numpy(np.stack(kinds).astype(np.uint8)).permute(0, 3, 1, 2)


def same(batch: int, op: Op, arg: float) -> Steps:
    """One operation for every image."""
    return Steps(np.full((batch, 1), int(op)), np.full((batch, 1), arg))


def changed(way: str, images_BCHW: Tensor, steps: Steps) -> Tensor:
    """The images after the operations, in batches or each by OpenCV."""
    if way == "batched":
        return apply_colors(images_BCHW, steps)
    pytest.importorskip("cv2")
    ops, args = steps.ops_BS.tolist(), steps.args_BS.tolist()
    images_BHWC = images_BCHW.permute(0, 2, 3, 1).numpy()
    whole = [colored(*image) for image in zip(images_BHWC, ops, args, strict=True)]
    return torch.from_numpy(np.stack(whole)).permute(0, 3, 1, 2)


def reference(image_CHW: Tensor, op: Op, arg: float) -> Tensor:
    image = Image.fromarray(image_CHW.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.array(PILLOW[op](image, arg))).permute(2, 0, 1)


def gap(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize(
    ("op", "arg"), [(op, arg) for op in COLOR_OPS for arg in ARGS.get(op, (0.0,))]
)
@pytest.mark.parametrize("size", [(20, 16), (9, 15), (64, 64)])
@pytest.mark.parametrize("way", WAYS)
def test_each_operation_is_pillows(op: Op, arg: float, size: tuple[int, int], way: str) -> None:
    images_BCHW = pictures(*size)
    before_BCHW = images_BCHW.clone()
    changed_BCHW = changed(way, images_BCHW, same(len(images_BCHW), op, arg))
    assert torch.equal(images_BCHW, before_BCHW)
    assert changed_BCHW.dtype == torch.uint8
    # Pillow's AutoContrast rounds whole numbers down to the one below at times; OpenCV rounds once
    # where Pillow does twice.
    inexact = {Op.COLOR, Op.CONTRAST, Op.SHARPNESS} if way == "opencv" else set()
    tolerance = 1 if op in {Op.AUTO_CONTRAST, *inexact} else 0
    for image_CHW, changed_CHW in zip(images_BCHW, changed_BCHW, strict=True):
        assert gap(changed_CHW, reference(image_CHW, op, arg)) <= tolerance


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("factor", [0.37, 1.0, 1.3, 1.72, 1.9])
@pytest.mark.parametrize("op", [Op.COLOR, Op.CONTRAST, Op.SHARPNESS])
def test_what_is_rounded_otherwise_is_neither_brighter_nor_darker(
    op: Op, factor: float, way: str
) -> None:
    images_BCHW = pictures(64, 64)
    changed_BCHW = changed(way, images_BCHW, same(len(images_BCHW), op, factor))
    for place in (0, 1, 2, 3, 5):  # not the smooth one, which Pillow's first rounding makes flat
        expected_CHW = reference(images_BCHW[place], op, factor)
        assert (changed_BCHW[place].double() - expected_CHW).mean().abs() < 0.1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("op", COLOR_OPS)
def test_each_operation_changes_pictures(op: Op, way: str) -> None:
    images_BCHW = pictures()
    arg = ARGS.get(op, (0.0,) * 3)[2]
    changed_BCHW = changed(way, images_BCHW, same(len(images_BCHW), op, arg))
    assert (changed_BCHW != images_BCHW).flatten(1).any(1).sum() >= 3


@pytest.mark.parametrize("way", WAYS)
def test_auto_contrast_spreads_a_channel_over_all_values(way: str) -> None:
    images_BCHW = pictures()[[2, 4]]
    changed_BCHW = changed(way, images_BCHW, same(2, Op.AUTO_CONTRAST, 0.0))
    assert (changed_BCHW.amin((2, 3)) == 0).all()
    assert (changed_BCHW.amax((2, 3)) == 255).all()


@pytest.mark.parametrize("size", [(20, 16), (9, 15)])
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5))
def test_each_image_gets_its_own_operations_in_their_order(
    size: tuple[int, int], seed: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    images_BCHW = pictures(*size)[torch.from_numpy(rng.integers(0, 6, 12))]
    before_BCHW = images_BCHW.clone()
    steps = randaugment(rng, 12, count, 6.0, 2.0, color=True)
    changed_BCHW = apply_colors(images_BCHW, steps)
    assert torch.equal(images_BCHW, before_BCHW)
    for image_CHW, changed_CHW, ops_S, args_S in zip(
        images_BCHW, changed_BCHW, steps.ops_BS, steps.args_BS, strict=True
    ):
        expected_CHW = image_CHW
        for op, arg in zip(map(Op, ops_S), args_S, strict=True):
            if op == Op.AUTO_CONTRAST:  # the only one that is not Pillow's to the bit
                expected_CHW = apply_colors(expected_CHW[None], same(1, op, arg))[0]
            elif op in COLOR_OPS:
                expected_CHW = reference(expected_CHW, op, float(np.float32(arg)))
        assert torch.equal(changed_CHW, expected_CHW)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5))
def test_opencv_does_an_images_operations_one_after_another(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    images_BCHW = pictures()[torch.from_numpy(rng.integers(0, 6, 12))]
    steps = randaugment(rng, 12, count, 6.0, 2.0, color=True)
    expected_BCHW = images_BCHW
    for place in range(count):
        one = Steps(steps.ops_BS[:, [place]], steps.args_BS[:, [place]])
        expected_BCHW = changed("opencv", expected_BCHW, one)
    assert torch.equal(changed("opencv", images_BCHW, steps), expected_BCHW)


@pytest.mark.parametrize("way", WAYS)
def test_geometric_operations_and_none_leave_pixels_alone(way: str) -> None:
    images_BCHW = pictures()
    ops = (Op.NOTHING, *GEOMETRIC_OPS)
    steps = Steps(np.tile(ops, (6, 1)), np.ones((6, len(ops))))
    assert torch.equal(changed(way, images_BCHW, steps), images_BCHW)


@pytest.mark.parametrize("batch", [1, 40])
def test_large_groups_are_taken_a_few_at_a_time_with_the_same_result(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, 96, 96)  # 40 of these are more than a CPU takes at once
    images_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    steps = Steps(np.full((batch, 1), int(Op.BRIGHTNESS)), np.linspace(0.1, 1.9, batch)[:, None])
    for image_CHW, changed_CHW, factor in zip(
        images_BCHW, apply_colors(images_BCHW, steps), steps.args_BS[:, 0], strict=True
    ):
        assert torch.equal(changed_CHW, reference(image_CHW, Op.BRIGHTNESS, float(factor)))


def test_jitter_of_a_batch_is_torchvisions_of_each_image() -> None:
    images_BCHW = pictures(32, 32)
    adjust = {
        Op.BRIGHTNESS: functional.adjust_brightness,
        Op.CONTRAST: functional.adjust_contrast,
        Op.COLOR: functional.adjust_saturation,
    }
    for seed in range(6):
        steps = color_jitter(np.random.default_rng(seed), len(images_BCHW), 0.8)
        changed_BCHW = apply_colors(images_BCHW, steps)
        for image_CHW, changed_CHW, ops_S, args_S in zip(
            images_BCHW, changed_BCHW, steps.ops_BS, steps.args_BS, strict=True
        ):
            image = functional.to_pil_image(image_CHW)
            for op, factor in zip(map(Op, ops_S), args_S, strict=True):
                image = adjust[op](image, float(np.float32(factor)))
            assert gap(changed_CHW, functional.pil_to_tensor(image)) == 0
