"""Front ends in operators of ONNX: the numbers of :mod:`stapes.features.frontends`."""

from __future__ import annotations

import math

import numpy as np
import torch

from stapes.deploy.onnx.building import GraphBuilder
from stapes.deploy.onnx.spectra import Spectrum, add_power_spectrum
from stapes.errors import ConfigError
from stapes.features import BandNormalizer, FrontEnd, LogMel, PerceptualMel, ThreeWindowLogMel
from stapes.features.spectrum import BandMatrix

__all__ = ["add_frontend", "add_normalizer"]

_DECIBEL = 10.0 / math.log(10.0)  # natural logarithm of a power to decibels


def add_frontend(graph: GraphBuilder, frontend: FrontEnd, waveform: str) -> str:
    """Spectrogram of waveforms.

    Args:
        graph: gets the nodes.
        frontend: which.
        waveform: (B, C, N) float32, N at least 1.

    Returns:
        (B, C', F, T) float32.

    Raises:
        ConfigError: a front end that is not known here.
    """
    if isinstance(frontend, LogMel):
        return _log_mel(graph, frontend, waveform)
    if isinstance(frontend, PerceptualMel):
        return _perceptual_mel(graph, frontend, waveform)
    if isinstance(frontend, ThreeWindowLogMel):
        return _three_window_log_mel(graph, frontend, waveform)
    raise ConfigError(f"features.name = '{frontend.name}': this front end has no form in ONNX.")


def add_normalizer(graph: GraphBuilder, normalizer: BandNormalizer, spectrogram: str) -> str:
    """Each band less its mean, by its standard deviation: (B, C, F, T) to the same."""
    mean, std = (graph.constant(t.cpu().numpy(), np.float32)
                 for t in (normalizer.mean, normalizer.std))  # fmt: skip
    return graph.add("Div", graph.add("Sub", spectrogram, mean), std)


def _log_mel(graph: GraphBuilder, frontend: LogMel, waveform: str) -> str:
    power = add_power_spectrum(
        graph, waveform, frontend.win_length, frontend.n_fft, frontend.hop_length, double=True
    )
    mel = _bands(graph, frontend.mel, power)
    if frontend.scaling == "log":
        return _log_above(graph, mel, frontend.log_offset)
    levels = graph.add("Log", _floor(graph, mel, frontend.amin, frontend.top_db))
    return graph.add("Mul", levels, graph.constant(_DECIBEL, np.float32))


def _perceptual_mel(graph: GraphBuilder, frontend: PerceptualMel, waveform: str) -> str:
    power = add_power_spectrum(
        graph, waveform, frontend.win_length, frontend.n_fft, frontend.hop_length, double=False
    )
    floored = _floor(graph, power.value, frontend.AMIN, frontend.TOP_DB)
    levels = Spectrum(graph.add("Log", floored), power.rows)
    weighting = graph.constant(frontend.weighting.cpu().numpy()[:, None], np.float32)
    return graph.add("Add", _bands(graph, frontend.mel, levels), weighting)


def _three_window_log_mel(graph: GraphBuilder, frontend: ThreeWindowLogMel, waveform: str) -> str:
    n_frames = frontend.n_frames(1)
    parts = []
    for win_length, hop in zip(frontend.windows, frontend.hops, strict=True):
        power = add_power_spectrum(graph, waveform, win_length, frontend.n_fft, hop, double=True)
        levels = _log_above(graph, _bands(graph, frontend.mel, power), frontend.LOG_OFFSET)
        resized = graph.add("MatMul", levels, _resizing(graph, levels, n_frames))
        parts.append(graph.add("Unsqueeze", resized, graph.integers(2)))
    return graph.reshape(graph.join(*parts, axis=2), 0, -1, frontend.n_bins, n_frames)


def _resizing(graph: GraphBuilder, levels: str, size: int) -> str:
    """(T, size) matrix of bilinear interpolation with antialiasing, as torch's ``interpolate``.

    A triangle around each new frame's place among the old ones, one old frame wide to either side
    or, where frames get fewer, as many as there are to a new one; its weights add up to 1. (The
    Resize operator of ONNX Runtime 1.31 gives other numbers where frames get fewer.)
    """
    half, one = graph.constant(0.5, np.float32), graph.constant(1.0, np.float32)
    n_frames = graph.add("Shape", levels, start=3)
    ratio = graph.add("Div", graph.cast(n_frames, np.float32), graph.constant(size, np.float32))
    steps = graph.add("Range", graph.constant(0, np.int64), graph.add("Squeeze", n_frames),
                      graph.constant(1, np.int64))  # fmt: skip
    old = graph.add("Add", graph.cast(steps, np.float32), half)
    new = graph.cast(graph.counting(0, size), np.float32)
    new = graph.add("Mul", graph.add("Add", new, half), ratio)
    apart = graph.add("Sub", graph.add("Unsqueeze", old, graph.integers(1)), new)
    slope = graph.add("Div", graph.add("Abs", apart), graph.add("Max", ratio, one))
    triangle = graph.add("Relu", graph.add("Sub", one, slope))
    return graph.add("Div", triangle, graph.add("ReduceSum", triangle, graph.integers(0)))


def _bands(graph: GraphBuilder, mel: BandMatrix, spectrum: Spectrum) -> str:
    """(B, C, K, T) to (B, C, F, T), in the strips that leave the matrix's zeros out.

    The almost empty matrix is stored as what is in it, and filled when the file is loaded.
    """
    matrix = mel(torch.eye(len(spectrum.rows))).T.numpy()  # (F, bins)
    flat = matrix.reshape(-1)
    places = np.flatnonzero(flat)
    filled = graph.add(
        "ScatterElements",
        graph.add("ConstantOfShape", graph.integers(flat.size)),
        graph.cast(graph.constant(places, np.min_scalar_type(flat.size)), np.int64),
        graph.constant(flat[places], np.float32),
        axis=0,
    )
    filled = graph.reshape(filled, *matrix.shape)
    rows = graph.constant(spectrum.rows, np.min_scalar_type(spectrum.rows.max()))
    rows = graph.cast(rows, np.int64)
    parts, first = [], 0
    for (low, high), strip in zip(mel.ranges, mel.buffers(), strict=True):
        ends = first + strip.shape[1], high
        weight = graph.add("Slice", filled, graph.integers(first, low), graph.integers(*ends))
        used = graph.add("Slice", rows, graph.integers(low), graph.integers(high))
        bins = graph.add("Gather", spectrum.value, used, axis=2)
        parts.append(graph.add("MatMul", weight, bins))
        first = ends[0]
    return graph.join(*parts, axis=2)


def _floor(graph: GraphBuilder, power: str, amin: float, top_db: float | None) -> str:
    """Powers of at least ``amin`` and, per clip and channel, ``top_db`` below the loudest."""
    lowest = graph.constant(amin, np.float32)
    if top_db is not None:
        loudest = graph.add("ReduceMax", power, graph.integers(2, 3), keepdims=1)
        factor = graph.constant(10.0 ** (-top_db / 10.0), np.float32)
        lowest = graph.add("Max", graph.add("Mul", loudest, factor), lowest)
    return graph.add("Max", power, lowest)


def _log_above(graph: GraphBuilder, power: str, offset: float) -> str:
    return graph.add("Log", graph.add("Add", power, graph.constant(offset, np.float32)))
