"""The picture of a receptive field: what is drawn where, and how it is written."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from stapes.errors import StapesError
from stapes.explain import EffectiveField, FieldOnRecordings, draw_receptive_field
from stapes.models import AxisField, ReceptiveField


def found(damping: float | None = 0.1) -> FieldOnRecordings:
    """A bump of 3 x 5 around (10, 20) on 32 bins and 41 frames; 7 x 9 without damping."""
    theory = ReceptiveField(AxisField(21, 8, -8), AxisField(21, 8, -6))

    def bump(f: int, t: int) -> EffectiveField:
        energy = np.zeros((32, 41))
        energy[10 - f : 11 + f, 20 - t : 21 + t] = 1
        return EffectiveField(energy / energy.sum(), (1, 2), theory, 5)

    return FieldOnRecordings(
        field=bump(1, 2),
        undamped=None if damping is None else bump(3, 4),
        damping=damping,
        frequencies=np.geomspace(50, 8000, 32),
        frame_rate=50.0,
    )


@pytest.mark.parametrize(("damping", "n_maps"), [(None, 1), (0.1, 2)])
def test_svg_names_what_was_measured(tmp_path: Path, damping: float | None, n_maps: int) -> None:
    path = tmp_path / "field.svg"
    draw_receptive_field(found(damping), path, title="a <model> & more")
    root = ET.parse(path).getroot()
    words = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text") if e.text]
    images = list(root.iter("{http://www.w3.org/2000/svg}image"))
    text = " | ".join(words)
    assert "a <model> & more" in words
    assert text.count("theoretical") == n_maps
    # One for each map, one for the colours' scale.
    assert len(images) == n_maps + 1
    assert "95 % in 5 frames" in text
    assert "0.10 s" in text
    assert "95 % in 3 bins" in text
    if damping is None:
        assert "effective receptive field" in text
        assert "damping" not in text
    else:
        assert "with damping 0.1" in text
        assert "95 % in 7 bins" in text
        assert "95 % in 9 frames" in text
    low, high = found().hertz((9, 11))
    assert f"{low:.0f} to {high:.0f} Hz" in text


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    for suffix in ("png", "svg", "pdf"):
        first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        for path in (first, second):
            draw_receptive_field(found(), path)
        assert first.read_bytes() == second.read_bytes(), suffix
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_brightness_is_the_root_of_the_energy(tmp_path: Path) -> None:
    import io

    import matplotlib.image

    # A map with two levels: a quarter of the energy is half of the gradient.
    plain = found(None)
    energy = np.full((32, 41), 0.25)
    energy[10, 20] = 1
    field = EffectiveField(energy / energy.sum(), (1, 2), plain.field.theoretical, 1)
    picture = FieldOnRecordings(field, None, None, plain.frequencies, plain.frame_rate)
    path = tmp_path / "field.png"
    draw_receptive_field(picture, path)
    pixels = matplotlib.image.imread(io.BytesIO(path.read_bytes()), format="png")[..., :3]
    half = matplotlib.colormaps["magma"](0.5)[:3]
    near = np.abs(pixels - half).max(-1) < 0.01
    assert near.mean() > 0.25  # the map fills that much of the figure


def test_another_ending_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for name in ("field.jpg", "field"):
        with pytest.raises(StapesError, match=re.escape(name) + r".*\.png, \.svg or \.pdf"):
            draw_receptive_field(found(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_summary_is_in_bins_frames_hz_and_seconds() -> None:
    tree = found().summary()
    assert tree["n_clips"] == 5
    assert tree["damping"] == 0.1
    share = tree["effective"]["share_95"]
    assert (share["bins"], share["frames"]) == (3, 5)
    assert share["seconds"] == pytest.approx(0.1)
    f = found().frequencies
    assert share["hz"] == pytest.approx([(f[8] + f[9]) / 2, (f[11] + f[12]) / 2])
    assert tree["before_damping"]["share_95"]["bins"] == 7
    deviation = tree["effective"]["deviation"]
    assert deviation["bins"] == pytest.approx(np.sqrt(2 / 3))
    assert deviation["frames"] == pytest.approx(np.sqrt(2))
    assert tree["unit_hz"] == pytest.approx(f[10])
    assert tree["unit_seconds"] == pytest.approx(20.5 / 50)
    assert tree["theoretical"]["bins"] == 21
    assert found(None).summary()["before_damping"] is None
