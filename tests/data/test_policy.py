"""Images get the operations that timm gives them, and as strong.

Shapes: B images, S operations of an image, N operations of all images.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from timm.data import auto_augment as timm
from torchvision import transforms

from raymlc.data.policy import (
    AUGMIX_OPS,
    COLOR_OPS,
    GEOMETRIC_OPS,
    IMAGENET_POLICY,
    Op,
    Steps,
    arguments,
    augmix,
    autoaugment,
    color_jitter,
    no_steps,
    randaugment,
)

TIMM = {
    Op.AUTO_CONTRAST: "AutoContrast",
    Op.EQUALIZE: "Equalize",
    Op.INVERT: "Invert",
    Op.POSTERIZE: "Posterize",
    Op.SOLARIZE: "Solarize",
    Op.SOLARIZE_ADD: "SolarizeAdd",
    Op.COLOR: "Color",
    Op.CONTRAST: "Contrast",
    Op.BRIGHTNESS: "Brightness",
    Op.SHARPNESS: "Sharpness",
    Op.ROTATE: "Rotate",
    Op.SHEAR_X: "ShearX",
    Op.SHEAR_Y: "ShearY",
    Op.TRANSLATE_X: "TranslateXRel",
    Op.TRANSLATE_Y: "TranslateYRel",
}
MEASURED = [op for op in TIMM if timm.LEVEL_TO_ARG[TIMM[op]] is not None]
Samples = NDArray[np.float64]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_share(hits: int, of: int, share: float) -> None:
    """That so many hits are no more than 4 standard errors from a share of all."""
    assert abs(hits / of - share) <= 4 * math.sqrt(share * (1 - share) / of)


@pytest.mark.parametrize("variant", ["plain", "original", "increasing"])
@pytest.mark.parametrize("op", MEASURED)
def test_an_operations_argument_is_timms(op: Op, variant: str) -> None:
    name = TIMM[op]
    if variant == "original" and op == Op.POSTERIZE:
        name = "PosterizeOriginal"
    if variant == "increasing" and f"{name}Increasing" in timm.LEVEL_TO_ARG:
        name = f"{name}Increasing"
    levels_BS = np.linspace(0, 10, 201)[:, None]
    ops_BS = np.full(levels_BS.shape, int(op))
    args_BS = arguments(generator(), ops_BS, levels_BS, variant)  # type: ignore[arg-type]
    for level, arg in zip(levels_BS[:, 0], args_BS[:, 0], strict=True):
        # Where timm draws a sign there are two.
        theirs = {timm.LEVEL_TO_ARG[name](level, {})[0] for _ in range(30)}
        if op == Op.POSTERIZE:
            theirs = {256 - 2 ** (8 - bits) for bits in theirs}
        assert min(abs(arg - other) for other in theirs) < 1e-9, (level, arg, theirs)


@pytest.mark.parametrize("op", [*GEOMETRIC_OPS, Op.COLOR])
def test_an_operation_that_has_a_sign_goes_either_way_alike(op: Op) -> None:
    shape = (2000, 1)
    args_BS = arguments(generator(), np.full(shape, int(op)), np.full(shape, 5.0), "increasing")
    middle = 1.0 if op == Op.COLOR else 0.0
    assert len(np.unique(np.abs(args_BS - middle).round(9))) == 1
    assert_share(int((args_BS > middle).sum()), 2000, 0.5)


@pytest.mark.parametrize("color", [True, False])
def test_randaugment_draws_each_operation_alike_and_does_half_of_them(color: bool) -> None:
    ops_BS = randaugment(generator(), 6000, 3, 9.0, 0.5, color).ops_BS
    known = (COLOR_OPS if color else ()) + GEOMETRIC_OPS
    assert len(known) == (15 if color else 5)
    assert {TIMM[op] for op in known} <= set(timm._RAND_TRANSFORMS)
    for place in range(3):
        ops_B = ops_BS[:, place]
        assert_share(int((ops_B == Op.NOTHING).sum()), 6000, 0.5)
        for op in known:
            assert_share(int((ops_B == op).sum()), 6000, 0.5 / len(known))
    assert set(ops_BS.flat) == {Op.NOTHING, *known}
    # With replacement, and each place for itself.
    same = (ops_BS[:, 0] == ops_BS[:, 1]) & (ops_BS[:, 0] != Op.NOTHING)
    assert_share(int(same.sum()), 6000, 0.25 / len(known))


@pytest.mark.parametrize(("magnitude", "std"), [(9.0, 0.5), (5.0, 4.0), (7.0, 0.0)])
def test_strengths_are_normal_and_cut_off_as_timms(
    assert_one_distribution: Callable[[Samples, Samples], None], magnitude: float, std: float
) -> None:
    steps = randaugment(generator(), 6000, 2, magnitude, std, color=False)
    ours_N = np.abs(steps.args_BS[steps.ops_BS == Op.ROTATE]) / 30 * 10
    theirs_N = generator(1).normal(magnitude, std, 5000).clip(0, 10)
    if std == 0:
        np.testing.assert_allclose(ours_N, magnitude)
    else:
        assert_one_distribution(ours_N, theirs_N)
    assert len(np.unique(ours_N.round(9))) > 100 or std == 0


def test_the_policy_for_imagenet_is_timms() -> None:
    theirs = timm.auto_augment_policy("original")
    ours = [
        [(TIMM[op].replace("Posterize", "PosterizeOriginal"), *rest) for op, *rest in pair]
        for pair in IMAGENET_POLICY
    ]
    assert ours == [[(op.name, op.prob, op.magnitude) for op in pair] for pair in theirs]


def test_autoaugment_gives_each_image_one_pair_with_its_probabilities_and_strengths() -> None:
    images = 20_000
    steps = autoaugment(generator(), images)
    assert steps.ops_BS.shape == (images, 2)
    for place in (0, 1):
        for op in Op:
            if op != Op.NOTHING:
                expected = sum(pair[place][1] * (pair[place][0] == op) for pair in IMAGENET_POLICY)
                found = int((steps.ops_BS[:, place] == op).sum())
                assert_share(found, images, expected / len(IMAGENET_POLICY))
    sheared_B = steps.ops_BS[:, 0] == Op.SHEAR_X
    assert sheared_B.any()
    assert (steps.ops_BS[sheared_B, 1] == Op.EQUALIZE).all()
    np.testing.assert_allclose(np.abs(steps.args_BS[sheared_B, 0]), 0.15)


def test_augmix_mixes_an_image_and_three_chains_of_one_to_three_operations(
    assert_one_distribution: Callable[[Samples, Samples], None],
) -> None:
    images = 6000
    shares_BM, mixed = augmix(generator(), images)
    assert shares_BM.shape == (images, 4)
    assert len(mixed) == 4
    assert shares_BM.min() >= 0
    np.testing.assert_allclose(shares_BM.sum(1), 1)
    assert mixed[0].ops_BS.size == 0
    theirs_B3 = generator(1).beta(1, 1, (images, 1)) * generator(2).dirichlet([1] * 3, images)
    assert_one_distribution(1 - shares_BM[:, 0], theirs_B3.sum(1))
    assert {TIMM[op] for op in AUGMIX_OPS} == {
        name.replace("Increasing", "") for name in timm._AUGMIX_TRANSFORMS
    }
    for place, chain in enumerate(mixed[1:], start=1):
        assert_one_distribution(shares_BM[:, place], theirs_B3[:, 0])
        lengths_B = (chain.ops_BS != Op.NOTHING).sum(1)
        assert ((chain.ops_BS != Op.NOTHING) == (np.arange(3) < lengths_B[:, None])).all()
        for length in (1, 2, 3):
            assert_share(int((lengths_B == length).sum()), images, 1 / 3)
        for op in AUGMIX_OPS:
            assert_share(int((chain.ops_BS[:, 0] == op).sum()), images, 1 / len(AUGMIX_OPS))
        turned_N = np.abs(chain.args_BS[chain.ops_BS == Op.ROTATE])
        assert_one_distribution(turned_N, generator(3).uniform(0, 9, 3000))
    assert not np.array_equal(mixed[1].ops_BS, mixed[2].ops_BS)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_color_jitter_draws_torchvisions_factors_in_every_order(
    assert_one_distribution: Callable[[Samples, Samples], None], share: float
) -> None:
    jitter = transforms.ColorJitter(share, share, share)
    params = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None)
        for _ in range(2000)
    ]
    theirs = {op: np.array([draw[1 + i] for draw in params]) for i, op in enumerate(JITTERED)}
    rng = generator()
    drawn = [color_jitter(rng, 20, share) for _ in range(300)]
    for op, theirs_N in theirs.items():
        ours_N = np.concatenate([steps.args_BS[steps.ops_BS == op] for steps in drawn])
        assert len(ours_N) == 300 * 20
        assert_one_distribution(ours_N, theirs_N)
    orders = [tuple(steps.ops_BS[0]) for steps in drawn]
    assert all((steps.ops_BS == steps.ops_BS[0]).all() for steps in drawn)
    assert len(set(orders)) == 6
    for order in set(orders):
        assert_share(orders.count(order), 300, 1 / 6)


JITTERED = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR)


def test_steps_follow_one_another() -> None:
    first = Steps(np.array([[1], [2]]), np.array([[0.1], [0.2]]))
    second = Steps(np.array([[3, 4], [5, 6]]), np.array([[0.3, 0.4], [0.5, 0.6]]))
    both = first.then(second)
    assert both.ops_BS.tolist() == [[1, 3, 4], [2, 5, 6]]
    assert both.args_BS.tolist() == [[0.1, 0.3, 0.4], [0.2, 0.5, 0.6]]
    assert no_steps(2).then(first).ops_BS.tolist() == [[1], [2]]
