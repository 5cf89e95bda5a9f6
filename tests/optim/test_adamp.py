"""AdamP against timm's, which is a plain loop over parameters. B images, R rows, D their length."""

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import raymlc.optim.adamp as adamp
from raymlc.errors import UserError
from raymlc.optim.adamp import AdamP
from tests.benchmarks.adamp import CallCounter


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small, threads that wait for each other take minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A convolution, a depthwise one, a pointwise one, two linear layers and 1-D parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 5),
    ).to(dtype)


def backward(network: nn.Module, seed: int) -> None:
    """Fresh gradients from a batch of random images and classes."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(network.parameters()).dtype
    images_BCHW = torch.randn(6, 3, 9, 9, generator=generator, dtype=dtype)
    classes_B = torch.randint(0, 5, (6,), generator=generator)
    network.zero_grad()
    torch.autograd.backward(nn.functional.cross_entropy(network(images_BCHW), classes_B))


def random_grads(params: Sequence[Tensor], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = scale * torch.randn(param.shape, generator=generator, dtype=param.dtype)


def weights_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]


def copied(params: Sequence[Tensor]) -> list[Tensor]:
    return [nn.Parameter(param.detach().clone()) for param in params]


def same_grads(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.grad = None if source.grad is None else source.grad.clone()


def assert_all_close(
    actual: Sequence[Tensor], expected: Sequence[Tensor], rtol: float = 1e-9, atol: float = 1e-11
) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def timm_adamp(
    params: list[Tensor],
    lr: float = 1e-3,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.01,
    nesterov: bool = True,
) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        params,
        opt="adamp",
        lr=lr,
        eps=eps,
        weight_decay=weight_decay,
        delta=delta,
        wd_ratio=wd_ratio,
        nesterov=nesterov,
    )
    return optimizer


@pytest.mark.parametrize(("wd_ratio", "nesterov"), [(0.01, True), (0.1, False)])
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-11), (torch.float32, 1e-4, 1e-5)]
)
def test_200_steps_agree_with_timm(
    dtype: torch.dtype, rtol: float, atol: float, eps: float, wd_ratio: float, nesterov: bool
) -> None:
    network = small_network(dtype)
    params: list[Tensor] = list(network.parameters())
    reference = copied(params)
    ours = AdamP(params, eps=eps, weight_decay=0.05, wd_ratio=wd_ratio, nesterov=nesterov)
    theirs = timm_adamp(reference, eps=eps, weight_decay=0.05, wd_ratio=wd_ratio, nesterov=nesterov)
    for step in range(200):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 200)
        backward(network, seed=step)
        same_grads(params, reference)
        ours.step()
        theirs.step()
    assert_all_close(params, reference, rtol=rtol, atol=atol)


def test_default_hyperparameters_are_those_of_timms_factory() -> None:
    factory = create_optimizer_v2(nn.Linear(2, 2), opt="adamp", lr=1e-3)
    ours = AdamP(nn.Linear(2, 2).parameters())
    for name in ("lr", "betas", "eps", "weight_decay", "delta", "wd_ratio", "nesterov"):
        assert ours.defaults[name] == factory.defaults[name], name
    assert (ours.defaults["gc"], ours.defaults["gc_conv_only"]) == (False, False)


@pytest.mark.parametrize(
    ("case", "rows_tangent", "whole_tangent", "shrinks"),
    [
        ("every row orthogonal", True, True, 0.01),
        ("rows along the weight, cancelling in sum", False, True, 0.01),
        ("gradient along the weight", False, False, 1.0),
        ("one row of four along the weight", False, False, 1.0),
    ],
)
def test_the_view_that_passes_is_projected_and_decays_less(
    case: str, rows_tangent: bool, whole_tangent: bool, shrinks: float
) -> None:
    weight = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight /= weight.norm(dim=1, keepdim=True)
    noise = torch.randn(4, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    orthogonal = noise - (noise * weight).sum(1, keepdim=True) * weight
    grad = {
        "every row orthogonal": orthogonal,
        "rows along the weight, cancelling in sum": orthogonal
        + 5 * weight * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]),
        "gradient along the weight": weight,
        "one row of four along the weight": orthogonal
        + 20 * weight * torch.tensor([[0.0], [0.0], [1.0], [0.0]]),
    }[case]

    def after(weight_decay: float) -> Tensor:
        param = nn.Parameter(weight.clone())
        param.grad = grad.clone()
        AdamP([param], lr=0.1, weight_decay=weight_decay).step()
        return param.detach()

    update = after(0.0) - weight
    row_cosines = (update * weight).sum(1) / update.norm(dim=1)
    whole_cosine = float((update * weight).sum() / (update.norm() * weight.norm()))
    assert bool((row_cosines.abs() < 1e-6).all()) == rows_tangent
    assert (abs(whole_cosine) < 1e-6) == whole_tangent
    torch.testing.assert_close(after(0.0) - after(0.5), 0.1 * 0.5 * shrinks * weight)


SHAPES = [
    (), (1,), (7,), (1, 1), (6, 1), (1, 6), (5, 6), (4, 3, 2), (4, 3, 2, 1), (2, 2, 2, 2, 2), (3, 6)
]  # fmt: skip


@pytest.mark.parametrize("delta", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_tensors_of_any_shape_agree_with_timm(delta: float, scale: float) -> None:
    params = weights_of(SHAPES, torch.float64)
    reference = copied(params)
    ours = AdamP(params, lr=0.02, eps=1e-3, weight_decay=0.1, delta=delta)
    theirs = timm_adamp(reference, lr=0.02, eps=1e-3, weight_decay=0.1, delta=delta)
    for step in range(30):
        random_grads(params, step, scale)
        same_grads(params, reference)
        ours.step()
        theirs.step()
    assert_all_close(params, reference)


def test_delta_0_never_projects_not_even_where_the_gradient_is_zero() -> None:
    param = nn.Parameter(torch.ones(3, 4))
    param.grad = torch.zeros(3, 4)
    AdamP([param], lr=0.1, weight_decay=0.5, delta=0.0).step()
    torch.testing.assert_close(param.detach(), torch.full((3, 4), 1 - 0.1 * 0.5))


def test_parameters_without_elements_are_let_through() -> None:
    params = weights_of([(0,), (0, 3), (3, 0), (2, 3)], torch.float32)
    random_grads(params, 0)
    before = params[-1].detach().clone()
    AdamP(params).step()
    assert not torch.equal(params[-1], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_projected_update_is_orthogonal_to_its_weight(dtype: torch.dtype) -> None:
    """delta is so large that every weight is projected; lr 1 keeps rounding out of the update."""
    params = weights_of([(6, 40), (8, 4, 3, 3), (8, 1, 3, 3)], dtype)
    optimizer = AdamP(params, lr=1.0, delta=1e3)
    for step in range(5):
        before = [param.detach().clone() for param in params]
        random_grads(params, step)
        optimizer.step()
        for param, weight in zip(params, before, strict=True):
            update_RD = (param.detach() - weight).flatten(1).double()
            weight_RD = weight.flatten(1).double()
            dots_R = (update_RD * weight_RD).sum(1)
            cosines_R = dots_R / (update_RD.norm(dim=1) * weight_RD.norm(dim=1))
            assert cosines_R.abs().max() < 1e-6


def test_parameters_without_gradient_are_skipped_and_join_later_as_in_timm() -> None:
    params = weights_of([(4, 6), (4, 6), (5,), (5, 6)], torch.float64)
    reference = copied(params)
    ours = AdamP(params, weight_decay=0.1)
    theirs = timm_adamp(reference, weight_decay=0.1)
    for step, absent in enumerate([{1, 2}, {1}, set(), {0, 3}, set(), {0, 1, 2, 3}, set()]):
        random_grads(params, step)
        for index in absent:
            params[index].grad = None
        before = [param.detach().clone() for param in params]
        same_grads(params, reference)
        ours.step()
        theirs.step()
        for index, param in enumerate(params):
            assert torch.equal(param, before[index]) == (index in absent)
    assert_all_close(params, reference)


def test_channels_last_takes_the_same_steps_as_contiguous() -> None:
    shapes = [(8, 4, 3, 3), (6, 1, 3, 3), (5, 8, 1, 1), (4, 6)]
    contiguous = weights_of(shapes, torch.float64)
    strided = [
        nn.Parameter(
            param.detach().to(memory_format=torch.channels_last)
            if param.ndim == 4
            else param.detach().clone()
        )
        for param in contiguous
    ]
    assert not strided[0].is_contiguous()
    optimizers = [AdamP(params, weight_decay=0.1, gc=True) for params in (contiguous, strided)]
    for step in range(5):
        random_grads(contiguous, step)
        for param, twin in zip(contiguous, strided, strict=True):
            assert param.grad is not None
            twin.grad = torch.empty_like(twin).copy_(param.grad)
        for optimizer in optimizers:
            optimizer.step()
    assert_all_close(contiguous, strided, rtol=1e-12, atol=1e-13)  # sums add in another order
    assert not strided[0].is_contiguous()


def test_where_batches_are_cut_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for limit in (1, 40, 10**9):
        monkeypatch.setattr(adamp, "CPU_BATCH", limit)
        params = weights_of(SHAPES, torch.float64)
        optimizer = AdamP(params, lr=0.02, weight_decay=0.1, gc=True)
        for step in range(10):
            random_grads(params, step)
            optimizer.step()
        results.append(params)
    assert_all_close(results[0], results[2], rtol=1e-12, atol=1e-13)
    assert_all_close(results[1], results[2], rtol=1e-12, atol=1e-13)


def test_a_gradient_that_is_not_finite_spoils_its_own_weight_alone() -> None:
    params = weights_of([(4, 6), (4, 6), (3, 6), (5,)], torch.float64)
    clean = copied(params)
    random_grads(params, 0)
    same_grads(params, clean)
    assert params[1].grad is not None
    params[1].grad[0, 0] = torch.nan
    AdamP(params, gc=True).step()
    AdamP(clean, gc=True).step()
    assert params[1].isnan().any()
    assert_all_close([params[i] for i in (0, 2, 3)], [clean[i] for i in (0, 2, 3)])


def test_one_group_may_mix_dtypes() -> None:
    shapes = [(4, 6), (5,), (3, 2, 3, 3)]
    single, double = weights_of(shapes, torch.float32), weights_of(shapes, torch.float64)
    mixed = [copied(single), copied(double)]
    together = AdamP([param for pair in zip(*mixed, strict=True) for param in pair])
    apart = [AdamP(single), AdamP(double)]
    for step in range(5):
        for alone, twins in zip((single, double), mixed, strict=True):
            random_grads(alone, step)
            same_grads(alone, twins)
        together.step()
        for optimizer in apart:
            optimizer.step()
    for alone, twins in zip((single, double), mixed, strict=True):
        for param, twin in zip(alone, twins, strict=True):
            assert torch.equal(param, twin)


@pytest.mark.parametrize("gc", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_single_precision(dtype: torch.dtype, gc: bool) -> None:
    half = weights_of([(4, 60), (5,), (3, 2, 3, 3)], dtype)
    single = [nn.Parameter(param.detach().float()) for param in half]
    optimizers = [
        AdamP(params, lr=0.01, eps=1e-3, weight_decay=0.1, gc=gc) for params in (half, single)
    ]
    for step in range(5):
        random_grads(half, step)
        for param, twin in zip(half, single, strict=True):
            assert param.grad is not None
            twin.grad = param.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    precision = torch.finfo(dtype).eps
    assert_all_close(
        [param.float() for param in half], single, rtol=4 * precision, atol=4 * precision
    )


def on_meta(network: nn.Module) -> list[Tensor]:
    params: list[Tensor] = list(copy.deepcopy(network).to("meta").parameters())
    for param in params:
        param.grad = torch.empty_like(param)
    return params


def test_a_step_never_reads_a_value_back_to_the_host() -> None:
    """Tensors on the meta device have no values to read: the first attempt raises.

    One group on two devices also shows that they are not mixed up.
    """
    network = small_network()
    backward(network, seed=0)
    with pytest.raises(RuntimeError, match="item"):
        timm_adamp(on_meta(network)).step()
    optimizer = AdamP(
        [*on_meta(network), *network.parameters()], weight_decay=0.1, gc=True, gc_conv_only=True
    )
    before = [param.detach().clone() for param in network.parameters()]
    for _ in range(3):
        optimizer.step()
    assert not any(map(torch.equal, before, network.parameters()))


@pytest.mark.parametrize(
    ("backbone", "width", "most"), [("efficientnet_b0", 1280, 650), ("efficientnet_b2", 1408, 900)]
)
@pytest.mark.parametrize("gc", [False, True])
def test_a_step_makes_few_calls(backbone: str, width: int, most: int, gc: bool) -> None:
    body = timm.create_model(backbone, num_classes=0)
    heads = nn.ModuleList(nn.Linear(width, classes) for classes in (5, 141, 47))
    params: list[Tensor] = [*body.parameters(), *heads.parameters()]
    random_grads(params, 0)
    optimizer = AdamP(params, weight_decay=1e-2, gc=gc)
    optimizer.step()
    with CallCounter() as counter:
        optimizer.step()
    assert 200 < counter.calls.total() <= most
    assert counter.calls["_local_scalar_dense"] == 0


def loaded_from_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def fresh(params: list[Tensor], state: dict[str, Any]) -> AdamP:
    optimizer = AdamP(params)
    optimizer.load_state_dict(state)
    return optimizer


def used_before(params: list[Tensor], state: dict[str, Any]) -> AdamP:
    optimizer = AdamP(params)
    kept = [param.detach().clone() for param in params]
    random_grads(params, 99)
    optimizer.step()
    with torch.no_grad():
        for param, value in zip(params, kept, strict=True):
            param.copy_(value)
    optimizer.load_state_dict(state)
    return optimizer


@pytest.mark.parametrize("restored", [fresh, used_before])
def test_a_restored_state_goes_on_to_the_same_bits(
    restored: Callable[[list[Tensor], dict[str, Any]], AdamP],
) -> None:
    params = weights_of(SHAPES, torch.float32)
    optimizer = AdamP(
        params, lr=0.02, betas=(0.8, 0.99), weight_decay=0.1, gc=True, gc_conv_only=True
    )
    for step in range(3):
        random_grads(params, step)
        optimizer.step()
    twins = copied(params)
    twin_optimizer = restored(twins, loaded_from_file(optimizer.state_dict()))
    assert twin_optimizer.param_groups[0]["gc_conv_only"] is True
    for step in range(3, 6):
        random_grads(params, step)
        same_grads(params, twins)
        optimizer.step()
        twin_optimizer.step()
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)


def test_a_deep_copy_goes_on_by_itself_to_the_same_bits() -> None:
    network = small_network()
    optimizer = AdamP(network.parameters())
    backward(network, seed=0)
    optimizer.step()
    twin, twin_optimizer = copy.deepcopy((network, optimizer))
    for one, its_optimizer in ((network, optimizer), (twin, twin_optimizer)):
        for seed in (1, 2):
            backward(one, seed)
            its_optimizer.step()
    for param, other in zip(network.parameters(), twin.parameters(), strict=True):
        assert param is not other
        assert torch.equal(param, other)


def test_a_closure_is_called_once_with_gradients_on_and_its_loss_returned() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = AdamP([param], lr=0.1)
    losses = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = (param**2).sum()
        torch.autograd.backward(loss)
        losses.append(loss.item())
        return losses[-1]

    assert optimizer.step(closure) == 3.0
    assert losses == [3.0]
    # The first Nesterov step is lr * (1 + beta1) long.
    torch.testing.assert_close(param.detach(), torch.full((3,), 1 - 0.1 * 1.9))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1e-3),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("betas", (1.0, 0.999)),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.999)),
        ("betas", (0.9, float("nan"))),
        ("eps", 0.0),
        ("eps", -1e-8),
        ("weight_decay", -0.1),
        ("delta", -0.1),
        ("wd_ratio", -0.1),
    ],
)
def test_a_value_outside_its_range_is_refused_in_one_line(name: str, value: Any) -> None:
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = AdamP([nn.Parameter(torch.ones(2))])
    with pytest.raises(UserError, match=rf"^{name} must .*, but (is|are) .*$"):
        optimizer.add_param_group({"params": [param], name: value})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(UserError, match=rf"^{name} must "):
        AdamP([{"params": [param], name: value}])


@pytest.mark.parametrize(
    "param", [torch.ones(2, dtype=torch.complex64), torch.ones(2, 2).to_sparse()]
)
def test_complex_and_sparse_parameters_are_refused_in_one_line(param: Tensor) -> None:
    with pytest.raises(UserError, match=r"^AdamP needs real, dense parameters, .*$"):
        AdamP([nn.Parameter(param)])


def test_a_sparse_gradient_is_refused_in_one_line_before_anything_moves() -> None:
    dense, embedding = nn.Linear(2, 2), nn.Embedding(4, 2, sparse=True)
    torch.autograd.backward(dense(embedding(torch.tensor([1]))).sum())
    before = dense.weight.detach().clone()
    optimizer = AdamP([*dense.parameters(), *embedding.parameters()])
    with pytest.raises(UserError, match=r"^AdamP needs dense gradients, .*sparse=False$"):
        optimizer.step()
    assert torch.equal(dense.weight, before)


def test_capture_in_a_cuda_graph_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    param = nn.Parameter(torch.ones(3, 2))
    param.grad = torch.ones_like(param)
    optimizer = AdamP([param])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(UserError, match="AdamP counts its steps on the host"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3, 2))
