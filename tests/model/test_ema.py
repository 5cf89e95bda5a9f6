"""The moving average against timm's ModelEmaV3 and against its formula."""

import io

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from raymlc.model.ema import EMA
from raymlc.optim.adamp import AdamP


def small_model() -> nn.Sequential:
    """Weights, floating buffers and an integer buffer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)
    )


def wander(model: nn.Module, generator: torch.Generator) -> None:
    """Every weight and buffer moves, as in a training step."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += torch.randn(tensor.shape, generator=generator)
        else:
            tensor += 1


def fill(model: nn.Module, value: float) -> None:
    for tensor in model.state_dict().values():
        tensor.fill_(value)


def assert_states_close(first: nn.Module, second: nn.Module, tolerance: float = 0.0) -> None:
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("decay", [0.5, 0.998, 0.9999])
def test_after_its_first_update_the_average_is_the_model(decay: float) -> None:
    model = small_model()
    ema = EMA(model, decay)
    wander(model, torch.Generator().manual_seed(0))
    ema.update()
    assert_states_close(ema.model, model)


@pytest.mark.parametrize("decay", [0.1, 0.9, 0.998, 0.9999])
def test_it_agrees_with_timms_average_given_the_step_numbers(decay: float) -> None:
    model = small_model()
    ours, timms = EMA(model, decay), ModelEmaV3(model, decay=decay, use_warmup=True)
    generator = torch.Generator().manual_seed(1)
    for update in range(40):
        wander(model, generator)
        ours.update()
        timms.update(model, step=update + 1)
        assert_states_close(ours.model, timms.module, 1e-6)


def test_it_follows_its_formula_from_the_second_update_on() -> None:
    model = small_model()
    ema = EMA(model, 0.8)
    average = 0.0
    for update, value in enumerate([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0, 5.0, 3.0, 5.0, 8.0]):
        fill(model, value)
        ema.update()
        decay = min(0.8, 1 - (1 + update) ** (-2 / 3))
        average = decay * average + (1 - decay) * value
        weight = ema.model.state_dict()["4.weight"]
        torch.testing.assert_close(weight, torch.full_like(weight, average))


@pytest.mark.parametrize("copied", [0, 1, 10])
def test_after_500_updates_less_than_a_hundredth_of_the_start_remains(copied: int) -> None:
    """copied: updates for which the model keeps its first weights."""
    model = small_model()
    fill(model, 1.0)
    ema = EMA(model, 0.9999)
    for update in range(500):
        if update == copied:
            fill(model, 0.0)
        ema.update()
    for tensor in ema.model.state_dict().values():
        assert tensor.abs().max() < 0.01


def test_whole_numbers_are_copied() -> None:
    model = small_model()
    ema = EMA(model, 0.998)
    for _ in range(7):
        model(torch.randn(2, 3, 8, 8))
        ema.update()
    counter = ema.model.state_dict()["1.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert int(counter) == 7


def test_it_goes_on_from_its_state_as_if_never_stopped() -> None:
    generator = torch.Generator().manual_seed(2)
    model = small_model()
    ema = EMA(model, 0.99)
    for _ in range(5):
        wander(model, generator)
        ema.update()
    file = io.BytesIO()
    torch.save({"ema": ema.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = small_model()
    wander(other, generator)
    resumed = EMA(other, 0.99)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["ema"])
    for seed in range(5):
        for network, average in ((model, ema), (other, resumed)):
            wander(network, torch.Generator().manual_seed(seed))
            average.update()
    assert_states_close(resumed.model, ema.model)
    assert resumed.updates == ema.updates == 10


def test_only_an_update_changes_it() -> None:
    model = small_model()
    ema = EMA(model, 0.9)
    before = {name: tensor.clone() for name, tensor in ema.model.state_dict().items()}
    wander(model, torch.Generator().manual_seed(3))
    model(torch.randn(2, 3, 8, 8))
    for name, tensor in ema.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_its_model_is_for_evaluation_and_takes_no_gradient() -> None:
    model = small_model()
    ema = EMA(model, 0.9)
    ema.update()
    assert not any(part.training for part in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_keeps_up_with_an_optimizer_and_with_loaded_weights(layout: torch.memory_format) -> None:
    model = small_model().to(memory_format=layout)
    optimizer = AdamP(model.parameters(), lr=0.1)
    ema = EMA(model, decay=0.0)  # no memory: a copy of the model at each update
    states: list[dict[str, Tensor]] = []
    for _ in range(4):
        torch.autograd.backward(model(torch.randn(4, 3, 8, 8)).square().sum())
        optimizer.step()
        ema.update()
        assert_states_close(ema.model, model)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    model.load_state_dict(states[0])
    ema.update()
    assert torch.equal(ema.model.state_dict()["0.weight"], states[0]["0.weight"])
    assert not torch.equal(states[0]["0.weight"], states[3]["0.weight"])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_device_that_is_the_models_own_changes_no_bit_of_the_average(
    layout: torch.memory_format,
) -> None:
    model = small_model().to(memory_format=layout)
    beside, placed = EMA(model, 0.99), EMA(model, 0.99, torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        wander(model, generator)
        beside.update()
        placed.update()
        assert_states_close(placed.model, beside.model)
    assert not torch.equal(placed.model.state_dict()["0.weight"], model.state_dict()["0.weight"])


def test_an_average_on_another_device_stays_there_and_the_model_where_it_is() -> None:
    """The meta device stands for any other: it takes no tensor of the CPU beside its own."""
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema = EMA(model, 0.99, torch.device("meta"))
    for _ in range(3):
        ema.update()
    assert {tensor.device.type for tensor in ema.model.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in ema.state_dict()["model"].values()} == {"meta"}
    assert not any(part.training for part in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_average_in_the_machines_memory_is_that_beside_the_model_on_the_gpu() -> None:
    model = small_model().to("cuda")
    beside, placed = EMA(model, 0.99), EMA(model, 0.99, torch.device("cpu"))
    for seed in range(20):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model(torch.randn(2, 3, 8, 8, device="cuda"))
        beside.update()
        placed.update()
    assert {tensor.device.type for tensor in placed.model.state_dict().values()} == {"cpu"}
    assert_states_close(placed.model, beside.model.to("cpu"), 1e-6)
    assert int(placed.model.state_dict()["1.num_batches_tracked"]) == 20
