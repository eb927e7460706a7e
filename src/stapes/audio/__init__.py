"""Recordings in, waveforms out: decoding, resampling and windows. Needs no torch."""

from stapes.audio.cutting import cut_recording, in_batches
from stapes.audio.decode import (
    AUDIO_SUFFIXES,
    AudioInfo,
    NotFiniteError,
    convert,
    find_audio,
    is_audio_name,
    probe,
    read,
    stream,
    walk_audio,
)
from stapes.audio.quiet import quiet_decoders
from stapes.audio.windows import WindowCutter, fit_length, iter_windows, split_windows

__all__ = [
    "AUDIO_SUFFIXES",
    "AudioInfo",
    "NotFiniteError",
    "WindowCutter",
    "convert",
    "cut_recording",
    "find_audio",
    "fit_length",
    "in_batches",
    "is_audio_name",
    "iter_windows",
    "probe",
    "quiet_decoders",
    "read",
    "split_windows",
    "stream",
    "walk_audio",
]
