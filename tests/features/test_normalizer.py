"""Statistics against numpy over everything at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from stapes.errors import DataError
from stapes.features import BandNormalizer
from stapes.features.normalizer import NormalizationMethod


def test_learns_mean_and_deviation_of_all_frames() -> None:
    rng = np.random.default_rng(3)
    # Spread of a thousandth of the mean: a difference of sums would lose it in single precision.
    arrays = [rng.normal(1000, 1, (2, 5, n)).astype(np.float32) for n in (7, 1, 0, 40, 300)]
    arrays[0] = arrays[0].astype(np.float16).astype(np.float32)
    whole = np.concatenate(arrays, axis=2).astype(np.float64)
    normalizer = BandNormalizer(2, 5).fit(iter(arrays))
    np.testing.assert_allclose(normalizer.mean[..., 0], whole.mean(2), rtol=1e-6)
    np.testing.assert_allclose(normalizer.std[..., 0], whole.std(2), rtol=1e-5)
    result = normalizer(torch.from_numpy(whole[None])).numpy()
    np.testing.assert_allclose(result[0].mean(2), 0, atol=1e-3)
    np.testing.assert_allclose(result[0].std(2), 1, rtol=1e-5)


def test_is_the_identity_until_it_learns() -> None:
    x = torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(BandNormalizer(1, 3)(x), x)


def test_a_constant_band_becomes_zero() -> None:
    x = np.zeros((1, 2, 10), dtype=np.float32)
    x[0, 0] = -100.0
    x[0, 1] = np.arange(10)
    normalizer = BandNormalizer(1, 2).fit([x])
    result = normalizer(torch.from_numpy(x[None]))
    assert torch.equal(result[0, 0, 0], torch.zeros(10))
    assert torch.isfinite(result).all()


def test_statistics_are_stored() -> None:
    fitted = BandNormalizer(1, 2).fit([np.arange(8.0).reshape(1, 2, 4)])
    again = BandNormalizer(1, 2)
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again.mean, fitted.mean)
    assert torch.equal(again.std, fitted.std)


def test_refuses_what_it_cannot_learn_from() -> None:
    with pytest.raises(DataError, match="no training recording"):
        BandNormalizer(1, 2).fit([])
    with pytest.raises(DataError, match="not finite"):
        BandNormalizer(1, 2).fit([np.full((1, 2, 3), np.nan)])
    with pytest.raises(ValueError, match="Expected"):
        BandNormalizer(1, 2).fit([np.zeros((1, 3, 3))])


def _planted(channels: int) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(5)
    arrays = [rng.normal(-40, 12, (channels, 6, n)) for n in (30, 9, 100)]
    for array in arrays:
        array += 10.0 * np.arange(6)[:, None] + 100.0 * np.arange(channels)[:, None, None]
    return arrays, np.concatenate(arrays, axis=2)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_one_mean_and_deviation_for_all_bands_of_a_channel(channels: int) -> None:
    arrays, whole = _planted(channels)
    normalizer = BandNormalizer(channels, 6).fit(arrays, "channel")
    expected = whole - whole.mean((1, 2), keepdims=True)
    expected /= whole.std((1, 2), keepdims=True)
    found = normalizer(torch.from_numpy(whole[None]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "means", "deviations"),
    [
        (1, [(0.485 + 0.456 + 0.406) / 3], [(0.229 + 0.224 + 0.225) / 3]),
        (2, [0.485, 0.456], [0.229, 0.224]),
        (3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        (4, [0.485, 0.456, 0.406, 0.485], [0.229, 0.224, 0.225, 0.229]),
    ],
)
def test_a_channel_becomes_a_colour_of_an_image(
    channels: int, means: list[float], deviations: list[float]
) -> None:
    arrays, whole = _planted(channels)
    normalizer = BandNormalizer(channels, 6).fit(arrays, "imagenet")
    found = normalizer(torch.from_numpy(whole[None]))[0].numpy()
    for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        x = whole[channel]
        image = (x - x.min()) / (x.max() - x.min())  # 0 to 1, as torchvision's ToTensor
        np.testing.assert_allclose(found[channel], (image - mean) / deviation, atol=1e-4)


def test_none_leaves_features_as_they_are_and_reads_no_recording() -> None:
    def recordings() -> Iterator[np.ndarray]:
        raise AssertionError("was read")
        yield np.zeros((1, 2, 3))

    normalizer = BandNormalizer(1, 2).fit(recordings(), "none")
    x = torch.randn(1, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalizer(x), x)


@pytest.mark.parametrize("method", ["band", "channel", "imagenet"])
def test_silence_stays_finite(method: NormalizationMethod) -> None:
    silence = np.full((3, 2, 10), -100.0)
    normalizer = BandNormalizer(3, 2).fit([silence], method)
    assert torch.equal(normalizer(torch.from_numpy(silence[None])), torch.zeros(1, 3, 2, 10))
