"""The impulse responses that a recipe names, read from a folder or a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from stapes.audio import convert, find_audio, probe, read
from stapes.augment.impulse import ImpulseResponse, impulse_response
from stapes.config import AugmentConfig, Recipe
from stapes.errors import AudioError, ConfigError

__all__ = ["ImpulseResponses", "pin_impulse_responses", "read_impulse_responses"]

_OPTION = "augment.impulse_responses"
# Of rooms those of cathedrals last longer. What is as long as a recording mostly is one, given by
# mistake.
_LONGEST = 5.0  # seconds


@dataclass(frozen=True)
class ImpulseResponses:
    """Impulse responses to choose from.

    Attributes:
        responses: one or more, in an order that follows from how they sound, and from neither
            their names nor their place; of equal ones one.
        sha256: of rates and decoded samples.
    """

    responses: tuple[ImpulseResponse, ...]
    sha256: str


def read_impulse_responses(
    augment: AugmentConfig, sample_rate: int | None = None
) -> ImpulseResponses:
    """Read what ``augment.impulse_responses`` names: an audio file, or all under a folder.

    Args:
        augment: with impulse responses.
        sample_rate: Hz that they are resampled to; none: each as it is. Channels are mixed.

    Raises:
        ConfigError: there is no file, or one that is unreadable, silent or longer than 5 seconds;
            or they are others than ``augment.impulse_responses_sha256`` says.
    """
    assert augment.impulse_responses is not None
    place = Path(augment.impulse_responses)
    try:
        paths = find_audio(place)
        if not paths:
            raise AudioError(place, "this folder holds no audio file; give one that does.")
        by_digest = dict(_read(path, sample_rate) for path in paths)
        digests = sorted(by_digest)
        found = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        expected = augment.impulse_responses_sha256
        if expected is not None and found != expected:
            raise AudioError(
                place,
                f"not the impulse responses that {_OPTION}_sha256 names ({found[:12]}... instead "
                f"of {expected[:12]}...); give the right ones, or take that line out.",
            )
    except AudioError as error:
        raise ConfigError(f"{_OPTION}: {error}") from None
    return ImpulseResponses(tuple(by_digest[digest] for digest in digests), found)


def pin_impulse_responses(recipe: Recipe) -> Recipe:
    """The recipe with the digest of its impulse responses; without any, as it is.

    Raises:
        ConfigError: as :func:`read_impulse_responses`.
    """
    if recipe.augment.impulse_responses is None:
        return recipe
    found = read_impulse_responses(recipe.augment).sha256
    pinned = recipe.augment.model_copy(update={"impulse_responses_sha256": found})
    return recipe.model_copy(update={"augment": pinned})


def _read(path: Path, sample_rate: int | None) -> tuple[str, ImpulseResponse]:
    """The digest of a response at its own rate, and the response at the wanted one."""
    own_rate = probe(path).sample_rate
    # A little more than allowed, so that what is longer shows, and no more of a long recording.
    samples = read(path, channels=1, end=_LONGEST + 0.1)
    if samples.shape[1] > (_LONGEST + 0.05) * own_rate:
        raise AudioError(
            path,
            f"is longer than {_LONGEST:g} seconds; cut the response out of it, or take it away.",
        )
    # Not of the file, in which a tag or a time stamp may change and nothing that is heard.
    digest = hashlib.sha256(f"{own_rate} Hz ".encode() + samples.astype("<f4").tobytes())
    rate = sample_rate or own_rate
    try:
        return digest.hexdigest(), impulse_response(convert(samples, own_rate, rate)[0])
    except ValueError:
        raise AudioError(
            path, f"is silent at {rate} Hz; replace it by a response with sound, or take it away."
        ) from None
