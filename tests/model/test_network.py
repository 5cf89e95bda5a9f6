"""The network, from its heads to the weights that it starts from. B images, F features."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath, convert_sync_batchnorm
from torch import Tensor, nn

from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.model.network import Network, build_network
from raymlc.trial import TrialConfig

LABELS = Labels.learn({"color": ["red", "green", "blue"], "tags": ["a|b", "c|"]})
SMALL = TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=32)

ODD_NAMES = ["type", "keys", "forward", "a.b", "", "0", "heads", "Farbe (größte)", "a\nb"]
TINY_BACKBONES = [name for name in timm.list_models("test_*") if name]
FAMILIES = [
    "convnext_atto",
    "edgenext_xx_small",
    "efficientnet_b0",
    "ghostnet_050",
    "mobilenetv3_small_050",
    "mobilevit_xxs",
    "poolformer_s12",
    "regnetx_002",
    "resnet10t",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights from the hub, nor from what this machine fetched before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


class Ones(nn.Module):
    """A backbone whose features are all 1."""

    head_hidden_size = 1000

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return torch.ones(len(images_BCHW), self.head_hidden_size)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def trained_weights(backbone: str) -> dict[str, Tensor]:
    """A state of the backbone, classifier included, as its maker would publish it."""
    torch.manual_seed(7)
    model = timm.create_model(backbone)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.02)
    state: dict[str, Tensor] = model.state_dict()
    return state


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_head_may_have_any_name(name: str) -> None:
    labels = Labels.learn({name: ["x", "y", "z"], "other": ["p", "q"]})
    network = build_network(SMALL, labels)
    logits = network(torch.randn(2, 3, 32, 32))
    assert {head: tuple(part.shape) for head, part in logits.items()} == {
        name: (2, 3),
        "other": (2, 2),
    }
    copy = build_network(SMALL, labels)
    copy.load_state_dict(network.state_dict())
    images_BCHW = torch.randn(2, 3, 32, 32)
    expected, given = network.eval()(images_BCHW), copy.eval()(images_BCHW)
    assert all(torch.equal(given[head], expected[head]) for head in labels.names)


@pytest.mark.parametrize("drop_rate", [0.0, 0.35, 0.9])
def test_drop_rate_is_read_back_from_every_head(drop_rate: float) -> None:
    network = build_network(SMALL.replace({"drop_rate": drop_rate}), LABELS)
    dropouts = [part for head in network.heads for part in head.modules() if _is_dropout(part)]
    assert [dropout.p for dropout in dropouts] == [drop_rate] * len(LABELS.heads)


def test_every_head_drops_its_own_share_of_the_features() -> None:
    network = Network(Ones(), LABELS, drop_rate=0.9).train()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 1.0 if parameter.dim() > 1 else 0.0)
    torch.manual_seed(0)
    logits = network(torch.zeros(500, 3, 1, 1))
    # Each logit is a sum of 1000 features, of which a tenth is kept and counts tenfold.
    for logits_BK in logits.values():
        kept_B = logits_BK[:, 0].detach() / 10
        assert float(kept_B.mean()) == pytest.approx(100, rel=0.02)
        assert float(kept_B.var()) == pytest.approx(90, rel=0.3)
    assert not torch.equal(logits["color"][:, 0], logits["tags"][:, 0])


def test_drop_path_rate_rises_to_its_value_over_the_backbones_blocks() -> None:
    network = build_network(SMALL.replace({"backbone": "test_vit", "drop_path_rate": 0.3}), LABELS)
    depth = len(network.backbone.blocks)  # type: ignore[arg-type]
    rates = {part.drop_prob for part in network.modules() if isinstance(part, DropPath)}
    expected = [0.3 * (block + 1) / (depth - 1) for block in range(depth - 1)]
    assert sorted(rates) == pytest.approx(expected)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_convnext", "test_nfnet"])
def test_drop_path_is_in_the_backbone_only_where_it_is_asked_for(backbone: str) -> None:
    config = SMALL.replace({"backbone": backbone})
    for rate in (0.0, 0.5):
        network = build_network(config.replace({"drop_path_rate": rate}), LABELS)
        rates = [part.drop_prob for part in network.modules() if isinstance(part, DropPath)]
        assert any(rates) == (rate > 0)
        assert all(0 <= drop_prob <= rate for drop_prob in rates)


WITH_BATCH_NORM = ["test_byobnet", "test_efficientnet", "test_maxvit", "test_resnet"]
WITHOUT_BATCH_NORM = ["test_convnext", "test_efficientnet_ln", "test_nfnet", "test_vit"]


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]  # type: ignore[misc]


@pytest.mark.parametrize("backbone", WITH_BATCH_NORM)
@pytest.mark.parametrize("fetch", [False, True])
def test_every_batch_norm_has_the_trials_momentum_and_eps_or_else_the_backbones_own(
    backbone: str, fetch: bool
) -> None:
    config = SMALL.replace({"backbone": backbone})
    own = batch_norms(build_network(config, LABELS, fetch))
    assert len(own) > 5
    assert {(norm.momentum, norm.eps) for norm in own} == {(0.1, 1e-5)}
    for values, expected in (
        ({"bn_momentum": 0.01}, (0.01, 1e-5)),
        ({"bn_eps": 1e-3}, (0.1, 1e-3)),
        ({"bn_momentum": 1.0, "bn_eps": 0.5}, (1.0, 0.5)),
    ):
        norms = batch_norms(build_network(config.replace(values), LABELS, fetch))
        assert len(norms) == len(own)
        assert {(norm.momentum, norm.eps) for norm in norms} == {expected}


def test_bn_momentum_is_the_share_of_a_batch_in_the_running_statistics() -> None:
    images_BCHW = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    means = []
    for momentum in (1.0, 0.25):
        torch.manual_seed(0)
        network = build_network(SMALL.replace({"bn_momentum": momentum}), LABELS)
        network.train()(images_BCHW)
        means.append(batch_norms(network)[0].running_mean)
    assert means[0] is not None
    assert means[1] is not None
    torch.testing.assert_close(means[1], 0.25 * means[0])
    assert means[0].abs().max() > 1e-3


@pytest.mark.parametrize("backbone", WITHOUT_BATCH_NORM)
@pytest.mark.parametrize("setting", [{"bn_momentum": 0.1}, {"bn_eps": 1e-5}, {"sync_bn": True}])
def test_a_batch_norm_that_is_not_there_cannot_be_set(
    backbone: str, setting: dict[str, float]
) -> None:
    config = SMALL.replace({"backbone": backbone})
    with pytest.raises(UserError, match="bn_momentum, bn_eps and sync_bn are of batch norm") as e:
        build_network(config.replace(setting), LABELS)
    assert f"{backbone!r} has none; leave them as they are" in one_line(e)
    build_network(config, LABELS)


@pytest.mark.parametrize("backbone", WITH_BATCH_NORM)
def test_batch_norm_over_workers_keeps_names_settings_and_results(backbone: str) -> None:
    values = {"backbone": backbone, "sync_bn": True, "bn_momentum": 0.3, "bn_eps": 1e-3}
    network = build_network(SMALL.replace(values), LABELS)
    images_BCHW = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network.train()(images_BCHW)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = network.eval()(images_BCHW)
    synced = convert_sync_batchnorm(network)
    assert isinstance(synced, Network)
    norms = batch_norms(synced)
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.3, 1e-3)}
    assert list(synced.state_dict()) == list(state)
    assert all(torch.equal(synced.state_dict()[name], state[name]) for name in state)
    for head, logits_BK in synced.eval()(images_BCHW).items():
        torch.testing.assert_close(logits_BK, expected[head])


def _is_dropout(part: nn.Module) -> bool:
    return isinstance(part, nn.Dropout)


@pytest.mark.parametrize("backbone", TINY_BACKBONES)
def test_a_step_through_any_backbone_reaches_every_parameter(backbone: str) -> None:
    assert_a_step_reaches_every_parameter(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_step_through_a_backbone_of_full_depth_reaches_every_parameter(backbone: str) -> None:
    assert_a_step_reaches_every_parameter(backbone)


def assert_a_step_reaches_every_parameter(backbone: str) -> None:
    config = SMALL.replace({"backbone": backbone, "image_size": 64})
    network = build_network(config, LABELS).train()
    logits = network(torch.randn(2, 3, 64, 64))
    assert [logits[head.name].shape for head in LABELS.heads] == [(2, 3), (2, 3)]
    torch.autograd.backward([part.square().sum() for part in logits.values()])
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert set(network.backbone.pretrained_cfg) >= {"mean", "std"}  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", ["test_efficientnet", "mobilenetv3_small_050"])
def test_a_step_computes_what_timms_does_to_the_bit_without_copying_activations(
    backbone: str,
) -> None:
    network = build_network(SMALL.replace({"backbone": backbone, "image_size": 64}), LABELS)
    theirs = timm.create_model(backbone, num_classes=0)
    theirs.load_state_dict(network.backbone.state_dict())
    images_BCHW = torch.rand(4, 3, 64, 64)
    copies = {}
    for model in (network.backbone, theirs):
        with torch.profiler.profile() as profile:
            features_BF = model(images_BCHW)
        features_BF.square().sum().backward()
        copies[model] = sum(event.name == "aten::clone" for event in profile.events())
    assert copies[network.backbone] == 0 < copies[theirs]
    for ours, other in zip(network.backbone.parameters(), theirs.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.equal(ours.grad, other.grad)


@pytest.mark.parametrize(
    ("backbone", "near"),
    [
        ("efficentnet_b0", "efficientnet_b0"),
        ("test_effcientnet", "test_efficientnet"),
        ("resnet_50", "resnet50"),
        ("test_efficientnet.r160_in1", "test_efficientnet.r160_in1k"),
        ("efficientnet_b0.ra_in1", "efficientnet_b0.ra_in1k"),
    ],
)
def test_a_backbone_or_tag_that_timm_lacks_is_refused_with_near_names(
    backbone: str, near: str
) -> None:
    with pytest.raises(UserError, match="backbone must be a model of timm") as error:
        build_network(SMALL.replace({"backbone": backbone}), LABELS)
    assert f"'{near}'" in one_line(error)


def test_a_backbone_like_none_of_timms_is_refused_with_the_way_to_their_list() -> None:
    with pytest.raises(UserError, match=r"timm\.list_models\(\)") as error:
        build_network(SMALL.replace({"backbone": "qqqqqqqq"}), LABELS)
    one_line(error)


def test_a_backbone_without_drop_path_is_refused_only_if_drop_path_is_asked_for() -> None:
    config = SMALL.replace({"backbone": "vgg11", "drop_path_rate": 0.1})
    with pytest.raises(UserError, match=r"no drop path, but drop_path_rate is 0\.1") as error:
        build_network(config, LABELS)
    one_line(error)
    with torch.device("meta"):  # its weights would take seconds to draw
        build_network(config.replace({"drop_path_rate": 0.0}), LABELS)


def test_a_backbone_of_one_size_is_built_for_the_trials_image_size() -> None:
    config = SMALL.replace({"backbone": "vit_tiny_patch16_224", "image_size": 48})
    logits = build_network(config, LABELS)(torch.randn(1, 3, 48, 48))
    assert logits["color"].shape == (1, 3)


@pytest.mark.parametrize(
    ("backbone", "image_size"),
    [("vit_tiny_patch16_224", 8), ("test_maxvit", 60), ("inception_v3", 64), ("nest_tiny", 24)],
)
def test_an_image_size_that_the_backbone_cannot_take_is_refused(
    backbone: str, image_size: int
) -> None:
    config = SMALL.replace({"backbone": backbone, "image_size": image_size})
    with pytest.raises(UserError, match=f"image_size pixels, but fails for {image_size}") as error:
        build_network(config, LABELS)
    assert repr(backbone) in one_line(error)


def test_a_network_is_built_ready_to_train_and_leaves_the_random_numbers_to_its_weights() -> None:
    torch.manual_seed(0)
    network = build_network(SMALL, LABELS)
    assert all(part.training for part in network.modules())
    after = torch.rand(1)
    torch.manual_seed(0)
    build_network(SMALL, LABELS, fetch=False)
    assert torch.equal(torch.rand(1), after)
    assert int(network.backbone.bn1.num_batches_tracked) == 0  # type: ignore[union-attr,arg-type]


@pytest.fixture(params=["safetensors", "pth"])
def weights_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A published file of the weights of test_efficientnet."""
    path = tmp_path / f"weights.{request.param}"
    state = trained_weights("test_efficientnet")
    if request.param == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def test_the_backbone_starts_from_the_weights_in_the_file(weights_file: Path) -> None:
    network = build_network(SMALL.replace({"weights": str(weights_file)}), LABELS)
    published = trained_weights("test_efficientnet")
    loaded = network.backbone.state_dict()
    assert set(published) - set(loaded) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(loaded[name], published[name]) for name in loaded)


def test_the_same_seed_draws_the_same_heads_beside_loaded_weights(weights_file: Path) -> None:
    config = SMALL.replace({"weights": str(weights_file)})
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        network = build_network(config, LABELS)
        drawn.append(torch.cat([part.flatten() for part in network.heads.parameters()]).detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("other", ["test_resnet", "test_vit", "test_convnext", "test_nfnet"])
def test_a_file_of_another_backbones_weights_is_refused(other: str, tmp_path: Path) -> None:
    save_file(trained_weights(other), tmp_path / "other.safetensors")
    config = SMALL.replace({"weights": str(tmp_path / "other.safetensors")})
    with pytest.raises(UserError, match="must be a file of test_efficientnet's weights") as error:
        build_network(config, LABELS)
    assert "other.safetensors" in one_line(error)


def test_a_file_whose_norms_and_biases_are_still_ones_and_zeros_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = timm.create_model("test_efficientnet").state_dict()
    save_file(state, tmp_path / "young.safetensors")
    network = build_network(SMALL.replace({"weights": str(tmp_path / "young.safetensors")}), LABELS)
    assert torch.equal(network.backbone.state_dict()["conv_stem.weight"], state["conv_stem.weight"])


def test_a_file_that_lacks_some_of_the_weights_is_refused(tmp_path: Path) -> None:
    state = trained_weights("test_efficientnet")
    del state["conv_head.weight"]
    save_file(state, tmp_path / "part.safetensors")
    config = SMALL.replace({"weights": str(tmp_path / "part.safetensors")})
    with pytest.raises(UserError, match=r"lacks 1 of them, conv_head\.weight for one") as error:
        build_network(config, LABELS)
    one_line(error)


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_that_holds_no_weights_is_refused(
    content: bytes | None, name: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="could not be loaded") as error:
        build_network(SMALL.replace({"weights": str(tmp_path / name)}), LABELS)
    assert name in one_line(error)


def test_an_unreachable_hub_is_said_in_one_line_with_both_ways_out() -> None:
    with pytest.raises(UserError, match="could not be fetched from the model hub") as error:
        build_network(SMALL.replace({"pretrained": True}), LABELS)
    text = one_line(error)
    assert "--weights" in text
    assert "pretrained=false" in text


def test_a_checkpoints_network_is_built_without_hub_and_file() -> None:
    config = SMALL.replace({"pretrained": True, "weights": "/nowhere/weights.pth"})
    assert isinstance(build_network(config, LABELS, fetch=False), Network)
