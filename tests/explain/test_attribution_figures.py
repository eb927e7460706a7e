"""Pictures of attributions: what is on their axes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stapes.errors import StapesError
from stapes.explain.attribution import IntegratedGradients
from stapes.explain.attribution_figures import draw_attribution
from stapes.explain.explanation import Explanation
from stapes.explain.faithfulness import Curve, Faithfulness


@pytest.fixture
def explained() -> Explanation:
    values = np.random.default_rng(0).normal(size=(20, 30))
    return Explanation(
        source="dog.wav", start=60.0, label="dog", index=0, probability=0.9, predicted="dog",
        method="integrated_gradients", block=None, waveform=np.zeros((1, 24000), np.float32),
        sample_rate=8000, spectrogram=torch.randn(1, 20, 30), baseline=torch.zeros(1, 20, 30),
        values=values, frequencies=np.geomspace(50, 4000, 20), times=0.05 + 0.1 * np.arange(30),
        gradients=IntegratedGradients(values[None], 1.0, 0.0, 16),
    )  # fmt: skip


def test_axes_are_those_of_the_recording(explained: Explanation, tmp_path: Path) -> None:
    falling = Curve(np.array([0.0, 1.0]), np.array([1.0, 0.5]))
    measured = Faithfulness(*[falling] * 6)
    mask = explained.values > 1
    draw_attribution(explained, tmp_path / "a.svg", faithfulness=measured, mask=mask)
    text = (tmp_path / "a.svg").read_text()
    for word in ("dog.wav: dog", "seconds in the recording", ">61.0<", ">62.0<", "Hz", ">4k<",
                 ">500<", "red for dog", "outlined", "deletion", "area 0.75"):  # fmt: skip
        assert word in text, word
    draw_attribution(explained, tmp_path / "b.svg", faithfulness=measured, mask=mask)
    assert (tmp_path / "b.svg").read_text() == text


def test_without_curves_and_with_nothing_found(explained: Explanation, tmp_path: Path) -> None:
    flat = replace(explained, values=np.zeros((20, 30)), gradients=None, method="grad_cam",
                   block="layer2")  # fmt: skip
    draw_attribution(flat, tmp_path / "a.svg", title="two words")
    text = (tmp_path / "a.svg").read_text()
    assert "Grad-CAM at layer2 for dog" in text
    assert "two words" in text
    assert "deletion" not in text
    with pytest.raises(StapesError, match=r"a\.gif"):
        draw_attribution(flat, tmp_path / "a.gif")
