"""Attributions against captum's and against networks whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from captum.attr import IntegratedGradients as CaptumGradients
from captum.attr import LayerGradCam
from torch import Tensor, nn

from stapes.bundle import Bundle
from stapes.config import Recipe
from stapes.data import Clip
from stapes.errors import AudioError, StapesError, UnknownNameError
from stapes.explain.attribution import (
    grad_cam,
    integrated_gradients,
    label_probabilities,
    upsample,
)
from stapes.explain.explanation import (
    choose_baseline,
    explain_recording,
    explain_windows,
    frame_times,
)
from stapes.features import BandNormalizer, create_frontend
from stapes.models import create_model

RATE, BANDS, HOP = 8000, 40, 128


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_network(name: str) -> nn.Module:
    options = {
        "cp_resnet": {"rho": 3, "width": 4, "blocks": [2, 1, 0]},
        "timm": {"architecture": "test_resnet"},
    }[name]
    network = create_model(
        name, n_classes=3, in_channels=2, generator=generator(), **options
    )  # fmt: skip
    # Batch norms that do something, as after training.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator(1))
            module.running_var.uniform_(0.5, 2, generator=generator(2))
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator(3))
    return network.eval()


@pytest.fixture(params=["cp_resnet", "timm"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    return small_network(request.param)


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 2, BANDS, 48, generator=generator(seed))
    return x[0], 0.3 * x[1] - 0.5


# --- Integrated Gradients ---------------------------------------------------------------------


def test_of_a_linear_network_they_are_weights_times_difference() -> None:
    layer = nn.Linear(6, 2)
    x, baseline = torch.randn(2, 1, 2, 3, generator=generator())
    found = integrated_gradients(nn.Sequential(nn.Flatten(), layer), x, baseline, 1)
    wanted = layer.weight[1].detach().view(1, 2, 3) * (x - baseline)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5, atol=1e-7)
    assert found.steps == 16
    assert found.completeness_error < 1e-5
    assert found.difference == pytest.approx(float(wanted.sum()), rel=1e-5)


@pytest.mark.parametrize(("steps", "most"), [(48, 48), (16, 143)])
def test_equal_to_captum(network: nn.Module, steps: int, most: int) -> None:
    """Also where the second round adds two thirds of the midpoints to the first."""
    x, baseline = inputs()
    wanted = CaptumGradients(network).attribute(
        x[None], baseline[None], target=2, n_steps=48, method="riemann_middle"
    )[0]
    found = integrated_gradients(
        network, x, baseline, 2, steps=steps, max_steps=most, tolerance=1e-12, batch=5
    )
    assert found.steps == 48
    largest = float(wanted.abs().max())
    np.testing.assert_allclose(found.values, wanted, rtol=1e-3, atol=1e-5 * largest)


def test_complete_to_one_percent(network: nn.Module) -> None:
    for seed in range(3):
        x, baseline = inputs(seed)
        with torch.no_grad():
            low, high = network(torch.stack([baseline, x]))[:, seed]
        found = integrated_gradients(network, x, baseline, seed)
        assert found.difference == pytest.approx(float(high - low), rel=1e-4)
        assert abs(found.values.sum() - float(high - low)) < 0.01 * abs(float(high - low))
        assert found.completeness_error < 0.01


class Kink(nn.Module):
    """Nothing until nearly all of the way, then steep: few steps miss the slope."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).mean(1, keepdim=True) - 0.98).relu()


def test_steps_are_raised_until_the_sum_is_right() -> None:
    ones = torch.ones(1, 2, 2)
    rounds: list[tuple[int, int]] = []
    found = integrated_gradients(
        Kink(), ones, 0 * ones, 0, progress=lambda done, n: rounds.append((done, n))
    )
    assert found.completeness_error < 0.01
    assert found.steps > 16
    assert found.values.sum() == pytest.approx(0.02, rel=0.01)
    np.testing.assert_allclose(found.values, 0.005, rtol=0.01)
    # Every step of a round is computed once: those of the rounds before count.
    assert [pair for pair in rounds if pair[0] == pair[1]] == [
        (n, n) for n in (16, 48, 144, 432, 1296) if n <= found.steps
    ]
    few = integrated_gradients(Kink(), ones, 0 * ones, 0, max_steps=16)
    assert few.steps == 16
    assert few.completeness_error > 0.01


def test_where_nothing_changes_nothing_is_attributed() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 2)

    found = integrated_gradients(Constant(), torch.ones(1, 2, 2), torch.zeros(1, 2, 2), 0)
    assert not found.values.any()
    assert found.completeness_error == 0


def test_memory_is_bounded_and_nothing_is_left_behind(network: nn.Module) -> None:
    x, baseline = inputs()
    network.train()
    seen: list[int] = []
    handle = network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with torch.inference_mode():
        x, baseline = x + 0, baseline + 0
    integrated_gradients(network, x, baseline, 0, batch=3)
    handle.remove()
    assert max(seen) == 3
    assert all(module.training for module in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_normalising_inside_or_before_is_the_same() -> None:
    network = small_network("cp_resnet")
    rng = np.random.default_rng(0)
    normalizer = BandNormalizer(2, BANDS)
    normalizer.fit(rng.normal(-40, rng.uniform(1, 30, (BANDS, 1)), (8, 2, BANDS, 48)))
    x, baseline = (20 * part - 40 for part in inputs())
    inside = integrated_gradients(
        nn.Sequential(normalizer, network), x, baseline, 1, steps=8, tolerance=float("inf")
    )
    before = integrated_gradients(
        network, normalizer(x[None])[0], normalizer(baseline[None])[0], 1, steps=8,
        tolerance=float("inf"),
    )  # fmt: skip
    largest = np.abs(before.values).max()
    np.testing.assert_allclose(inside.values, before.values, rtol=1e-3, atol=1e-5 * largest)


def test_wrong_arguments() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="both the same"):
        integrated_gradients(network, x, x[:, :1], 0)
    with pytest.raises(ValueError, match="both the same"):
        integrated_gradients(network, x[None], x[None], 0)
    with pytest.raises(ValueError, match="label = 2"):
        integrated_gradients(network, x, x, 2)
    with pytest.raises(ValueError, match="steps = 0"):
        integrated_gradients(network, x, x, 0, steps=0)
    with pytest.raises(ValueError, match="tolerance"):
        integrated_gradients(network, x, x, 0, tolerance=0)


# --- Grad-CAM ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, -2, -1])
def test_grad_cam_equal_to_captum(network: nn.Module, number: int) -> None:
    x, _ = inputs()
    block = network.blocks()[number]
    captum = LayerGradCam(network, network.get_submodule(block))
    largest = 0.0
    for label in range(3):
        wanted = captum.attribute(x[None], target=label, relu_attributions=True)[0, 0].detach()
        found = grad_cam(network, x, label, block)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.max()))
        largest = max(largest, found.max())
    assert largest > 0


def test_grad_cam_at_the_feature_map(network: nn.Module) -> None:
    x, _ = inputs()
    last = network.blocks()[-1]
    np.testing.assert_allclose(grad_cam(network, x, 0), grad_cam(network, x, 0, last), rtol=1e-4)


class Planted(nn.Module):
    """Two channels of features: what is above 1, and what is below -1; the label is the first."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.split = nn.Conv2d(1, 2, 1)
        self.relu = nn.ReLU(inplace=inplace)
        with torch.no_grad():
            self.split.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.split.bias.fill_(-1)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.relu(self.split(x))

    def forward_head(self, x: Tensor) -> Tensor:
        first, second = x.mean((2, 3)).unbind(1)
        return torch.stack([first - second, second], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_grad_cam_of_a_network_that_is_known() -> None:
    x = torch.zeros(1, 3, 4)
    x[0, 1, 2], x[0, 0, 0] = 5.0, -3.0
    wanted = np.zeros((3, 4))
    wanted[1, 2] = 4.0 / 12  # feature 4, gradient of the mean 1/12; the other channel counts -1/12
    np.testing.assert_allclose(grad_cam(Planted(False), x, 0), wanted, rtol=1e-6)
    wanted[:] = 0
    wanted[0, 0] = 2.0 / 12
    np.testing.assert_allclose(grad_cam(Planted(False), x, 1), wanted, rtol=1e-6)


def test_what_works_in_place_behind_a_block_does_not_change_it() -> None:
    x, _ = torch.randn(2, 1, 3, 4, generator=generator())
    np.testing.assert_array_equal(
        grad_cam(Planted(True), x, 0, "split"), grad_cam(Planted(False), x, 0, "split")
    )


def test_grad_cam_says_what_it_cannot_look_at() -> None:
    x, _ = inputs()
    network = small_network("cp_resnet")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'stage1.block2'"):
        grad_cam(network, x, 0, "stage1.blok2")
    with pytest.raises(ValueError, match="label = 3"):
        grad_cam(network, x, 3)
    network.spare = nn.Conv2d(2, 2, 1)
    with pytest.raises(StapesError, match="does not use"):
        grad_cam(network, x, 0, "spare")
    tokens = create_model("timm", n_classes=2, in_channels=2, architecture="test_vit")
    with pytest.raises(StapesError, match="row of tokens"):
        grad_cam(tokens, x, 0)
    with pytest.raises(StapesError, match="no places"):
        grad_cam(tokens, x, 0, tokens.blocks()[0])
    member = {"name": "cp_resnet", "rho": 3, "width": 4, "blocks": [1, 0, 0]}
    ensemble = create_model("ensemble", n_classes=2, in_channels=2, n_bins=BANDS, members=[member])
    with pytest.raises(StapesError, match=r"inside members\.0"):
        grad_cam(ensemble, x, 0)
    assert grad_cam(ensemble, x, 0, "members.0.network.stage1.block1").ndim == 2
    assert not any(module._forward_hooks for module in [*network.modules(), *ensemble.modules()])


def test_upsampled_cells_cover_the_spectrogram_evenly() -> None:
    found = upsample(np.array([[0.0, 1.0], [2.0, 3.0]]), (4, 4))
    row = np.array([0, 0.25, 0.75, 1])
    np.testing.assert_allclose(found, row + 2 * row[:, None])


# --- recordings -------------------------------------------------------------------------------


def recipe(**audio: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "audio": {"sample_rate": RATE, "channels": 1, "window_seconds": 1.0, **audio},
            "features": {"name": "log_mel", "n_fft": 512, "hop_length": HOP, "n_mels": BANDS},
        }
    )


def sound(
    seed: int,
    seconds: float = 1.0,
    tones: tuple[tuple[float, float], ...] = (),
    clicks: tuple[float, ...] = (),
) -> Tensor:
    """Noise (1, N) with tones of 0.2 s, each of a frequency and from a second on, and clicks."""
    noise = torch.randn(1, round(seconds * RATE), generator=generator(seed))
    x = 0.01 * noise
    time = torch.arange(round(0.2 * RATE)) / RATE
    for hertz, begin in tones:
        first = round(begin * RATE)
        x[:, first : first + len(time)] += 0.1 * torch.sin(2 * torch.pi * hertz * time)
    for begin in clicks:
        first = round(begin * RATE)
        x[:, first : first + RATE // 200] *= 50
    return x


def write(path: Path, waveform: Tensor) -> Path:
    soundfile.write(path, waveform.T.numpy(), RATE, subtype="FLOAT")
    return path


class Finder(nn.Module):
    """Two convolutions and the largest answer anywhere: what it says depends on one place."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.ReLU()
        )
        self.head = nn.Linear(8, 2)
        for number, parameter in enumerate(self.parameters()):
            nn.init.uniform_(parameter, -0.15, 0.15, generator=generator(number))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.convolutions(x)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x.amax((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.fixture(scope="module")
def trained() -> Bundle:
    """A little network that has learnt to tell clicks from tones, wherever they are."""
    settings = recipe()
    frontend = create_frontend(sample_rate=RATE, **settings.features.model_dump())
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 96)
    waveforms = torch.stack(
        [
            sound(100 + i, tones=((rng.uniform(500, 3500), rng.uniform(0, 0.8)),))
            if label
            else sound(100 + i, clicks=(rng.uniform(0.05, 0.95),))
            for i, label in enumerate(labels)
        ]
    )
    with torch.no_grad():
        x = frontend(waveforms)
    normalizer = BandNormalizer(1, BANDS).fit(x.numpy())
    network = Finder()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    x, y = normalizer(x), torch.from_numpy(labels)
    for step in range(90):
        batch = slice(16 * (step % 6), 16 * (step % 6) + 16)
        loss = nn.functional.cross_entropy(network(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Bundle(frontend, normalizer, network.eval(), ("click", "tone"), settings)


@pytest.mark.parametrize(("method", "share"), [("integrated_gradients", 0.9), ("grad_cam", 0.55)])
@pytest.mark.parametrize("hertz", [1000.0, 3000.0])
def test_attributions_of_a_trained_network_fall_on_a_planted_tone(
    trained: Bundle, tmp_path: Path, method: str, share: float, hertz: float
) -> None:
    path = write(tmp_path / "tone.wav", sound(7, tones=((hertz, 0.5),)))
    found = explain_recording(trained, path, method)
    assert found.predicted == found.label == "tone"
    assert found.probability > 0.9
    # What the analysis smears the tone over.
    band = np.abs(np.arange(BANDS) - np.abs(found.frequencies - hertz).argmin()) <= 2
    while_it_sounds = np.abs(found.times - 0.6) < 0.1 + 2 * HOP / RATE
    there = band[:, None] & while_it_sounds
    assert there.mean() < 0.04
    positive = np.maximum(found.values, 0)
    assert positive[there].sum() > share * positive.sum()
    assert there[np.unravel_index(found.values.argmax(), found.values.shape)]
    if found.gradients is not None:
        assert found.gradients.completeness_error < 0.01
        assert found.values.sum() == pytest.approx(found.gradients.difference, rel=0.01)


def test_attributions_of_a_click_fall_on_its_time(trained: Bundle, tmp_path: Path) -> None:
    found = explain_recording(trained, write(tmp_path / "click.wav", sound(7, clicks=(0.3,))))
    assert found.label == "click"
    positive = np.maximum(found.values, 0)
    assert positive[:, np.abs(found.times - 0.3) < 0.05].sum() > 0.9 * positive.sum()


def test_the_window_where_the_label_is_most_probable(trained: Bundle, tmp_path: Path) -> None:
    waveform = sound(1, 4.5, ((2000, 2.4),), clicks=(0.3, 1.4, 3.3, 3.9))
    path = write(tmp_path / "long.wav", waveform)
    assert explain_recording(trained, path).label == "click"
    tone = explain_recording(trained, path, "grad_cam", label="tone")
    assert (tone.start, tone.end, tone.predicted) == (2.0, 3.0, "click")
    assert tone.summary()["label"] == "tone"
    every = list(explain_windows(trained, path, "grad_cam", label="tone"))
    assert [one.start for one in every] == [0.0, 1.0, 2.0, 3.0, 3.5]
    assert max(every, key=lambda one: one.probability).start == 2.0
    np.testing.assert_array_equal(every[2].values, tone.values)
    x = trained.frontend(torch.from_numpy(every[1].waveform)[None])
    chain = nn.Sequential(trained.normalizer, trained.network)
    assert every[1].probability == pytest.approx(label_probabilities(chain, x)[0, 1], rel=1e-5)
    # A segment is cut as when it was trained on; its times are those of the recording.
    cut = list(explain_windows(trained, Clip(path, "", start=2.0, end=3.0), "grad_cam"))
    assert [(one.start, one.label) for one in cut] == [(2.0, "tone")]


def test_a_short_recording_fills_one_window(trained: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path / "short.wav", sound(2, 0.3, ((3000, 0.05),)))
    (found,) = explain_windows(trained, path)
    assert found.waveform.shape == (1, RATE)
    assert found.values.shape == (BANDS, 63)
    assert found.values[:, found.times < 0.35].max() == found.values.max()


def test_what_cannot_be_explained(trained: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path / "tone.wav", sound(3, tones=((1000, 0.2),)))
    with pytest.raises(UnknownNameError, match="Did you mean 'tone'"):
        explain_recording(trained, path, label="toen")
    with pytest.raises(ValueError, match="method"):
        explain_recording(trained, path, "lime")
    with pytest.raises(AudioError, match="missing"):
        explain_recording(trained, tmp_path / "missing.wav")


# --- baselines --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log_mel", "perceptual_mel", "three_window_log_mel"])
def test_quiet_is_one_level_that_nothing_is_below(name: str) -> None:
    options = {} if name == "three_window_log_mel" else {"n_fft": 512, "hop_length": HOP}
    frontend = create_frontend(name, sample_rate=RATE, n_mels=20, **options)
    channels = frontend.out_channels(1)
    bundle = Bundle(frontend, BandNormalizer(channels, 20), nn.Identity(), (), recipe())
    hum = 0.1 * torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)[None]
    x = frontend((hum + sound(0))[None])[0]
    silence = choose_baseline(bundle, x, RATE, "silence")
    torch.testing.assert_close(silence, frontend(torch.zeros(1, 1, RATE))[0], rtol=0, atol=0)
    quiet = choose_baseline(bundle, x, RATE)
    assert quiet.shape == x.shape
    decibel = frontend.decibel()[:, None]
    heard = (decibel > 0).flatten()
    assert ((x - quiet)[:, heard] > -1e-3).all()
    above = ((quiet - silence) / decibel)[:, heard]
    for level in above:  # one level in all places of a channel
        assert float(level.max() - level.min()) < 1e-3
    # A steady tone is not taken for the background.
    band = int((frontend.band_frequencies() - 1000).abs().argmin())
    assert float(((x - quiet) / decibel)[0, band].min()) > 15


def test_mean_is_the_normalisations(trained: Bundle) -> None:
    x = trained.frontend(sound(0)[None])[0]
    mean = choose_baseline(trained, x, RATE, "mean")
    torch.testing.assert_close(trained.normalizer(mean[None]), torch.zeros(1, *x.shape))
    without = Bundle(trained.frontend, BandNormalizer(1, BANDS), nn.Identity(), (), recipe())
    with pytest.raises(StapesError, match="quiet or silence"):
        choose_baseline(without, x, RATE, "mean")
    with pytest.raises(ValueError, match="one of quiet, silence, mean"):
        choose_baseline(trained, x, RATE, "loud")


def test_middles_of_frames() -> None:
    frontend = create_frontend("log_mel", sample_rate=RATE, n_fft=512, hop_length=HOP)
    times = frame_times(frontend, RATE)
    np.testing.assert_allclose(times, np.arange(63) * HOP / RATE, atol=HOP / RATE / 2)
    np.testing.assert_allclose(np.diff(times), HOP / RATE)
    frontend = create_frontend("three_window_log_mel", sample_rate=RATE, n_frames=50)
    np.testing.assert_allclose(frame_times(frontend, 2 * RATE), 0.02 + 0.04 * np.arange(50))
