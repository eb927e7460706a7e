"""The effective receptive field: hand-set networks, whole Jacobians, and what damping does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stapes.compression import WeightMask
from stapes.errors import StapesError
from stapes.explain import EffectiveField, effective_receptive_field, without_damping
from stapes.models import AxisField, ReceptiveField, create_model, damp, receptive_field


class Plain(nn.Sequential):
    """Layers whose output is the feature map."""

    def forward_features(self, x: Tensor) -> Tensor:
        result: Tensor = self(x)
        return result


def conv(weight: Tensor, stride: int = 1) -> nn.Conv2d:
    """A convolution with a given kernel (C_out, C_in, K_F, K_T) and as many zeros around."""
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    layer = nn.Conv2d(
        weight.shape[1], weight.shape[0], weight.shape[2:], stride, padding, bias=False
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def randomised(**options: object) -> nn.Module:
    """A small network whose batch norms are not the identity, so that ReLUs cut."""
    torch.manual_seed(3)
    network = create_model("cp_resnet", n_classes=3, width=4, blocks=[2, 1, 0], **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.5)
    return network


def test_of_one_convolution_the_energy_is_the_squared_kernel() -> None:
    kernel = torch.tensor([[1.0, -2.0, 0.5], [3.0, 4.0, 0.0], [0.0, -1.0, 2.0]])
    field = effective_receptive_field(Plain(conv(kernel[None, None])), torch.randn(2, 1, 7, 9))
    expected = np.zeros((7, 9))
    expected[2:5, 3:6] = kernel.square() / kernel.square().sum()
    assert field.unit == (3, 4)
    assert field.n_clips == 2
    assert (field.centre("frequency"), field.centre("time")) == (3, 4)
    np.testing.assert_allclose(field.energy, expected, atol=1e-12)


def test_channels_that_pull_against_each_other_do_not_cancel() -> None:
    # The sum of the channels ignores the input; the unit does not.
    kernel = torch.tensor([1.0, -1.0])[:, None, None, None]
    field = effective_receptive_field(Plain(conv(kernel)), torch.randn(1, 1, 5, 5))
    assert field.energy[2, 2] == 1
    # Gradients of -2 and 2 where the signs agree and 0 where they do not: 2 in the mean of squares
    # against channels that never meet, with 2 as well.
    apart = torch.zeros(4, 1, 1, 3)
    apart[0, 0, 0, 0], apart[1, 0, 0, 0] = 1.0, -1.0
    apart[2, 0, 0, 2], apart[3, 0, 0, 2] = 1.0, 1.0
    energy = effective_receptive_field(Plain(conv(apart)), torch.randn(8, 1, 5, 5), probes=400)
    np.testing.assert_allclose(energy.profile("time"), [0, 0.5, 0, 0.5, 0], atol=0.03)


def test_signs_give_the_squared_jacobian_of_a_real_network() -> None:
    network = randomised(in_channels=2, rho=3, damping=0.3)
    spectrograms = torch.randn(3, 2, 40, 44)
    field = effective_receptive_field(network, spectrograms, probes=600)
    network.eval()

    def unit(x: Tensor) -> Tensor:
        return network.forward_features(x[None])[0, :, field.unit[0], field.unit[1]]

    expected = torch.zeros(40, 44)
    for clip in spectrograms:
        jacobian = torch.autograd.functional.jacobian(unit, clip)  # (K, C, F, T)
        expected += jacobian.square().sum(dim=(0, 1))
    expected /= expected.sum()
    # The spread over 600 probes of a position's energy is some 4 %, of the total below 1 %.
    assert np.abs(field.energy - expected.numpy()).sum() < 0.05
    for axis, profile in (("frequency", expected.sum(1)), ("time", expected.sum(0))):
        np.testing.assert_allclose(field.profile(axis), profile, atol=0.006)


@pytest.mark.parametrize("rho", [0, 3, 5])
def test_energy_lies_inside_the_theoretical_field(rho: int) -> None:
    network = randomised(rho=rho)
    field = effective_receptive_field(network, torch.randn(16, 1, 80, 90))
    (low, high), (start, end) = field.bounds("frequency"), field.bounds("time")
    size = receptive_field(network).frequency.size
    assert high - low + 1 == end - start + 1 == size
    assert field.energy[low : high + 1, start : end + 1].sum() == pytest.approx(1, abs=1e-12)
    assert field.energy.sum() == pytest.approx(1, abs=1e-12)
    # Over 16 clips the poolings take every position at some time: it reaches every row
    # and column of it.
    assert (field.profile("frequency")[low : high + 1] > 0).all()
    assert (field.profile("time")[start : end + 1] > 0).all()


def test_the_middle_unit_is_taken_and_its_field_cut_at_the_edges() -> None:
    network = Plain(conv(torch.ones(1, 1, 9, 3), stride=2))
    field = effective_receptive_field(network, torch.randn(1, 1, 6, 12))
    # Units look at 0, 2, 4 in frequency and 0, 2, ..., 10 in time; the middles are 2.5 and 5.5.
    assert field.unit == (1, 3)
    assert (field.centre("frequency"), field.centre("time")) == (2, 6)
    assert field.bounds("frequency") == (0, 5)
    assert field.bounds("time") == (5, 7)
    np.testing.assert_allclose(field.profile("frequency"), 1 / 6)


def test_the_middle_is_that_of_the_spectrogram_not_of_the_map() -> None:
    # Eight zeros behind the last frame: 20 units, of which the tenth looks at frame 10 of 12.
    network = Plain(nn.ZeroPad2d((0, 8, 0, 0)), conv(torch.ones(1, 1, 1, 1)))
    field = effective_receptive_field(network, torch.randn(1, 1, 3, 12))
    assert field.unit == (1, 5)
    assert field.energy[1, 5] == 1


def test_a_stack_of_equal_kernels_spreads_like_the_root_of_its_depth() -> None:
    # Luo et al., section 2.2: n box filters of 3 taps make a bell with variance n * 2 / 3; the
    # square of a bell curve is one of half that variance.
    depth = 40
    network = Plain(*(conv(torch.ones(1, 1, 3, 3)) for _ in range(depth)))
    field = effective_receptive_field(network, torch.randn(1, 1, 101, 101), probes=1)
    assert field.deviation("time") == pytest.approx(math.sqrt(depth * 2 / 3 / 2), rel=0.01)
    first, last = field.interval("time", 0.95)
    assert last - first + 1 == pytest.approx(2 * 1.96 * field.deviation("time"), abs=1)
    assert field.theoretical.time.size == 2 * depth + 1


def field_of(profile: np.ndarray) -> EffectiveField:
    one = AxisField(1, 1, 0)
    return EffectiveField(profile[:, None], (0, 0), ReceptiveField(one, one), 1)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 0.95, 1.0])
def test_interval_is_the_shortest_of_all(share: float) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 30):
        profile = rng.random(size) ** 4 * (rng.random(size) > 0.2) + 1e-6
        profile /= profile.sum()
        first, last = field_of(profile).interval("frequency", share)
        fitting = [
            (b - a, -profile[a : b + 1].sum())
            for a in range(size)
            for b in range(a, size)
            if profile[a : b + 1].sum() >= share - 1e-9
        ]
        best = min(fitting)
        assert last - first == best[0]
        assert profile[first : last + 1].sum() == pytest.approx(-best[1])


def test_interval_leaves_out_the_empty_ends() -> None:
    field = field_of(np.array([0, 0, 0.2, 0.6, 0.2, 0]))
    assert field.interval("frequency", 1) == (2, 4)
    assert field.interval("frequency", 0.6) == (3, 3)
    assert field.deviation("frequency") == pytest.approx(math.sqrt(0.4))
    for share in (0, 1.1, -1):
        with pytest.raises(ValueError, match="share"):
            field.interval("frequency", share)


def test_damping_narrows_the_field_along_frequency_only() -> None:
    # Damped to 0.1, a box of 3 taps is (0.1, 1, 0.1): its variance falls from 2/3 to 0.2 / 1.2, a
    # quarter. In time the window is one constant.
    network = damp(Plain(*(conv(torch.ones(1, 1, 3, 3)) for _ in range(40))), 0.1)
    x = torch.randn(1, 1, 101, 101)
    after = effective_receptive_field(network, x)
    before = effective_receptive_field(without_damping(network), x)
    halved = before.deviation("frequency") / 2
    assert after.deviation("frequency") == pytest.approx(halved, rel=0.02)
    np.testing.assert_allclose(after.profile("time"), before.profile("time"), atol=1e-6)
    assert after.theoretical == before.theoretical


def test_without_damping_is_the_network_of_the_raw_weights_and_changes_no_other() -> None:
    network = randomised(rho=4, damping=0.2).eval()
    x = torch.randn(2, 1, 60, 60)
    damped = network(x)
    plain = create_model("cp_resnet", n_classes=3, width=4, blocks=[2, 1, 0], rho=4).eval()
    plain.load_state_dict(
        {
            name.replace("parametrizations.weight.original", "weight"): tensor
            for name, tensor in network.state_dict().items()
        }
    )
    copy = without_damping(network)
    torch.testing.assert_close(copy(x), plain(x))
    assert not torch.allclose(copy(x), damped, rtol=0.01)
    torch.testing.assert_close(network(x), damped, rtol=0, atol=0)
    assert copy.settings()["damping"] == 1


def test_without_damping_masks_stay() -> None:
    layer = conv(torch.ones(1, 1, 3, 3))
    network = damp(Plain(layer), 0.5)
    mask = WeightMask(layer.weight)
    mask.mask[..., 0] = False
    parametrize.register_parametrization(layer, "weight", mask)
    expected = torch.tensor([[0.0, 1.0, 1.0]] * 3)
    assert torch.equal(without_damping(network)[0].weight[0, 0], expected)
    assert torch.equal(network[0].weight[0, 0, 0], torch.tensor([0.0, 0.5, 0.5]))


def test_nothing_is_left_behind() -> None:
    network = randomised(rho=3, damping=0.2).train()
    network.stage1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    x = torch.randn(2, 1, 60, 60, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        frozen = x + 0  # a tensor of inference mode
    field = effective_receptive_field(network, [frozen[:1], frozen[1:]])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training
    assert not network.stage1.training
    assert all(p.grad is None for p in network.parameters())
    assert x.grad is None
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    again = effective_receptive_field(network, [x[:1], x[1:]])
    np.testing.assert_array_equal(field.energy, again.energy)


def test_batches_do_not_matter() -> None:
    network = Plain(conv(torch.randn(1, 2, 3, 3)), nn.ReLU(), conv(torch.randn(1, 1, 3, 3)))
    x = torch.randn(6, 2, 9, 9)
    whole = effective_receptive_field(network, x)
    parts = effective_receptive_field(network, x.split(4))
    # One channel: signs change nothing.
    np.testing.assert_allclose(whole.energy, parts.energy, rtol=1e-6, atol=1e-12)
    assert whole.n_clips == parts.n_clips == 6


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


class Detached(Plain):
    def forward_features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = self(x)
        return result


def test_a_network_without_gradients_is_refused_in_a_sentence() -> None:
    kernel = torch.ones(1, 1, 3, 3)
    for network in (Plain(conv(kernel), Rounded()), Detached(conv(kernel))):
        with pytest.raises(StapesError, match="No gradient reaches"):
            effective_receptive_field(network, torch.randn(1, 1, 8, 8))


def test_wrong_arguments() -> None:
    network = Plain(conv(torch.ones(1, 1, 3, 3)))
    with pytest.raises(ValueError, match="no spectrograms"):
        effective_receptive_field(network, [])
    with pytest.raises(ValueError, match="no spectrograms"):
        effective_receptive_field(network, torch.zeros(0, 1, 8, 8))
    with pytest.raises(ValueError, match="probes"):
        effective_receptive_field(network, torch.zeros(1, 1, 8, 8), probes=0)
    with pytest.raises(ValueError, match="one size"):
        effective_receptive_field(network, [torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 9)])
