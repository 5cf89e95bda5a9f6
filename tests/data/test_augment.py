"""A batch is augmented as timm augments its images, reproducibly, and without waiting for a GPU.

Shapes: B images, C channels, H and W pixels, N samples, M images that are mixed into one.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timm
from torch import Tensor

from raymlc.data import augment as module
from raymlc.data.augment import augment, batched_view
from raymlc.data.batches import Normalization
from raymlc.data.color import apply_colors
from raymlc.data.geometry import crops, flips, moves, resample
from raymlc.data.policy import augmix, randaugment
from raymlc.trial import TrialConfig

Samples = NDArray[np.float64]
OFF: dict[str, Any] = {"crop_min_area": 1.0, "hflip_prob": 0.0}
EACH: dict[str, dict[str, Any]] = {
    "randaug": {"randaug_ops": 2},
    "geometric": {"randaug_ops": 2, "randaug_color": False},
    "autoaugment": {"autoaugment": True},
    "augmix": {"augmix": True},
    "jitter": {"color_jitter": 0.4},
    "crop": {"crop_min_area": 0.3},
    "hflip": {"hflip_prob": 0.5},
    "vflip": {"vflip_prob": 0.5},
    "pixel": {"erasing_prob": 0.5},
    "color": {"erasing_prob": 0.5, "erasing_mode": "color", "erasing_count": 3},
    "zero": {"erasing_prob": 0.5, "erasing_mode": "zero"},
}
# timm fills with grey 128, which is the mean here.
GREY = Normalization((128 / 255,) * 3, (1 / 255,) * 3)


@pytest.fixture(params=["batched", "opencv"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test is done for both ways in which a CPU may augment."""
    way: str = request.param
    if way == "opencv":
        pytest.importorskip("cv2")
    else:
        monkeypatch.setattr(module, "_fastest_view", lambda _: batched_view)
    return way


def pictures(batch: int, side: int = 24) -> Tensor:
    rng = np.random.default_rng(0)
    small_NHWC = rng.integers(0, 256, (batch, 4, 4, 3), dtype=np.uint8)
    whole = [
        np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
        for small in small_NHWC
    ]
    return torch.from_numpy(np.stack(whole)).permute(0, 3, 1, 2)


def trial(**fields: Any) -> TrialConfig:
    """A trial that does nothing to images but what is asked."""
    return TrialConfig(**{**OFF, **fields})


def augmented(pixels_BCHW: Tensor, seed: int = 0, **fields: Any) -> Tensor:
    torch.manual_seed(seed)
    return augment(pixels_BCHW, trial(**fields), GREY)


@pytest.mark.parametrize("fields", EACH.values(), ids=EACH)
def test_one_seed_gives_one_batch_to_the_bit(fields: dict[str, Any]) -> None:
    pixels_BCHW = pictures(16)
    first_BCHW = augmented(pixels_BCHW, 1, **fields)
    np.random.default_rng().random()
    random.random()
    assert torch.equal(augmented(pixels_BCHW, 1, **fields), first_BCHW)
    assert not torch.equal(augmented(pixels_BCHW, 2, **fields), first_BCHW)


@pytest.mark.parametrize("fields", EACH.values(), ids=EACH)
def test_a_batch_after_another_is_augmented_otherwise(fields: dict[str, Any]) -> None:
    pixels_BCHW = pictures(16)
    first_BCHW = augmented(pixels_BCHW, **fields)
    assert not torch.equal(augment(pixels_BCHW, trial(**fields), GREY), first_BCHW)


@pytest.mark.parametrize("fields", EACH.values(), ids=EACH)
def test_the_pixels_stay_and_the_result_is_float32_with_channels_last(
    fields: dict[str, Any],
) -> None:
    pixels_BCHW = pictures(16)
    before_BCHW = pixels_BCHW.clone()
    for given_BCHW in (pixels_BCHW, pixels_BCHW.contiguous()):
        result_BCHW = augmented(given_BCHW, **fields)
        assert torch.equal(given_BCHW, before_BCHW)
        assert result_BCHW.dtype == torch.float32
        assert result_BCHW.shape == pixels_BCHW.shape
        assert result_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert not torch.equal(result_BCHW, GREY(pixels_BCHW))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fields", EACH.values(), ids=EACH)
def test_no_value_is_waited_for(fields: dict[str, Any], interpolation: str) -> None:
    # Tensors of the device "meta" have no values: whatever waits for one fails.
    pixels_BCHW = pictures(16).to("meta")
    result_BCHW = augmented(pixels_BCHW, interpolation=interpolation, **fields)
    assert result_BCHW.device.type == "meta"


@pytest.mark.parametrize("fields", EACH.values(), ids=EACH)
def test_another_default_type_changes_nothing(fields: dict[str, Any]) -> None:
    pixels_BCHW = pictures(8)
    expected_BCHW = augmented(pixels_BCHW, **fields)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(augmented(pixels_BCHW, **fields), expected_BCHW)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_augmentation_that_would_wait_is_noticed() -> None:
    """Else the test above could not fail."""
    with pytest.raises(NotImplementedError, match=r"(?i)meta"):
        pictures(2).to("meta").nonzero()
    with pytest.raises(RuntimeError, match="meta"):
        float(pictures(2).to("meta").sum())


def test_where_nothing_is_asked_images_are_only_normalised() -> None:
    pixels_BCHW = pictures(8)
    assert torch.equal(augmented(pixels_BCHW), GREY(pixels_BCHW))


def test_geometric_operations_leave_one_color_or_the_fill() -> None:
    color_C11 = torch.tensor([10, 200, 90], dtype=torch.uint8)[:, None, None]
    pixels_BCHW = color_C11.expand(200, 3, 24, 24)
    result_BCHW = augmented(
        pixels_BCHW, randaug_ops=3, randaug_color=False, crop_min_area=0.4, hflip_prob=0.5
    )
    same_BHW = ((result_BCHW - GREY(pixels_BCHW)).abs() < 1e-3).all(1)
    filled_BHW = (result_BCHW == 0).all(1)
    assert (same_BHW | filled_BHW).all()
    assert 0.5 < same_BHW.float().mean() < 0.95
    # Colour operations do not.
    colored_BCHW = augmented(pixels_BCHW, randaug_ops=3)
    other_BHW = ((colored_BCHW - GREY(pixels_BCHW)).abs() >= 1).any(1) & (colored_BCHW != 0).any(1)
    assert other_BHW.flatten(1).any(1).float().mean() > 0.3


def statistics(images_BCHW: Samples) -> dict[str, Samples]:
    """A few numbers of each image, which different operations change."""
    grey_BHW = images_BCHW.mean(1)
    return {
        "mean": grey_BHW.mean((1, 2)),
        "spread": grey_BHW.std((1, 2)),
        "color": images_BCHW.std(1).mean((1, 2)),
        "edges": np.abs(np.diff(grey_BHW, axis=2)).mean((1, 2)),
        "fill": (np.abs(images_BCHW - 128).max(1) < 1).mean((1, 2)),
    }


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"randaug_ops": 2}, "rand-m9-mstd0.5"),
        ({"randaug_ops": 3, "randaug_magnitude": 4.0, "randaug_std": 0.0}, "rand-m4-n3"),
        ({"autoaugment": True}, "original"),
        ({"augmix": True}, "augmix-m3"),
    ],
)
def test_a_batch_is_distributed_as_images_that_timm_augments(
    assert_one_distribution: Callable[[Samples, Samples], None], fields: dict[str, Any], text: str
) -> None:
    random.seed(0)
    np.random.seed(0)
    hparams = {"img_mean": (128,) * 3, "interpolation": Image.Resampling.BILINEAR}
    make = {"r": timm.rand_augment_transform, "o": timm.auto_augment_transform}
    transform = make.get(text[0], timm.augment_and_mix_transform)(text, hparams)
    pixels_BCHW = pictures(400)
    theirs_BHWC = np.stack(
        [
            np.asarray(transform(Image.fromarray(image_CHW.permute(1, 2, 0).numpy())))
            for image_CHW in pixels_BCHW
        ]
    )
    ours = statistics(augmented(pixels_BCHW, **fields).double().numpy() + 128)
    theirs = statistics(theirs_BHWC.transpose(0, 3, 1, 2).astype(float))
    if "augmix" in fields:  # timm rounds what it mixes to whole values
        del ours["fill"]
    for name, samples_N in ours.items():
        assert_one_distribution(samples_N, theirs[name])


def assert_alike(way: str, result_BCHW: Tensor, expected_BCHW: Tensor) -> None:
    """OpenCV cuts whole pixels, and rounds values otherwise: its images are alike, no more."""
    if way == "batched":
        torch.testing.assert_close(result_BCHW, expected_BCHW, rtol=0, atol=1e-3)
        return
    unlike_B = (result_BCHW - expected_BCHW).abs().mean((1, 2, 3))
    others_B = (result_BCHW - expected_BCHW.roll(1, 0)).abs().mean((1, 2, 3))
    assert (unlike_B < 0.2 * others_B).all()


def test_operations_come_before_the_crop_and_the_flip(way: str) -> None:
    pixels_BCHW = pictures(16, side=96)  # more than a CPU takes at once
    result_BCHW = augmented(
        pixels_BCHW, 5, randaug_ops=2, crop_min_area=0.3, hflip_prob=0.5, vflip_prob=0.5
    )
    torch.manual_seed(5)
    rng = np.random.default_rng(torch.randint(2**62, (2,)).numpy())
    steps = randaugment(rng, 16, 2, 9.0, 0.5, color=True)
    crop_B33, flip_B33 = crops(rng, 16, 0.3, 4 / 3), flips(rng, 16, 0.5, 0.5)
    expected_BCHW = resample(
        GREY(apply_colors(pixels_BCHW, steps)),
        moves(steps, 96, 96) @ crop_B33 @ flip_B33,
        "bilinear",
    )
    assert_alike(way, result_BCHW, expected_BCHW)


def test_augmix_is_the_mean_of_its_images_by_their_shares(way: str) -> None:
    pixels_BCHW = pictures(16)
    result_BCHW = augmented(pixels_BCHW, 6, augmix=True)
    torch.manual_seed(6)
    rng = np.random.default_rng(torch.randint(2**62, (2,)).numpy())
    shares_BM, mixed = augmix(rng, 16)
    expected_BCHW = torch.zeros(16, 3, 24, 24)
    for share_B, steps in zip(torch.from_numpy(shares_BM).float().T, mixed, strict=True):
        seen_BCHW = resample(
            GREY(apply_colors(pixels_BCHW, steps)), moves(steps, 24, 24), "bilinear"
        )
        expected_BCHW += share_B[:, None, None, None] * seen_BCHW
    assert_alike(way, result_BCHW, expected_BCHW)


def test_what_is_erased_is_erased_after_all_else() -> None:
    pixels_BCHW = pictures(64)
    fields: dict[str, Any] = {"crop_min_area": 0.3, "randaug_ops": 2}
    before_BCHW = augmented(pixels_BCHW, **fields)
    after_BCHW = augmented(pixels_BCHW, erasing_prob=1.0, erasing_mode="zero", **fields)
    kept_BCHW = after_BCHW == before_BCHW
    assert (after_BCHW[~kept_BCHW] == 0).all()
    assert (~kept_BCHW).flatten(1).any(1).float().mean() > 0.9
