"""The frequency axis of a spectrogram."""

from __future__ import annotations

import numpy as np

from stapes.features.axis import bin_edges, frequency_label, frequency_ticks


def test_edges_of_bins() -> None:
    np.testing.assert_allclose(bin_edges(np.array([10.0, 20, 40])), [5, 15, 30, 50])
    np.testing.assert_allclose(bin_edges(np.array([3.0, 20, 40])), [0, 11.5, 30, 50])
    np.testing.assert_allclose(bin_edges(np.array([50.0])), [0, 100])


def test_frequencies_as_an_axis_names_them() -> None:
    assert [frequency_label(f) for f in (31.5, 500.0, 1000.0, 16000.0)] == [
        "31.5", "500", "1k", "16k"
    ]  # fmt: skip
    assert frequency_ticks(np.linspace(0, 8000, 65)) == [8000.0, 4000.0, 2000.0, 500.0]
    assert frequency_ticks(np.geomspace(760, 3400, 55)) == [3000.0, 2000.0, 1500.0, 1000.0, 800.0]
    assert frequency_ticks(np.linspace(310, 390, 5)) == [310.0, 390.0]
    for low, high in ((50, 60), (20, 20_000), (700, 3000), (4000, 11_025)):
        axis = np.geomspace(low, high, 100)
        ticks = frequency_ticks(axis)
        assert len(ticks) > 1
        places = np.interp(sorted(ticks), axis, np.linspace(0, 1, 100))
        assert np.diff(places).min() >= 1 / 7 - 1e-9
