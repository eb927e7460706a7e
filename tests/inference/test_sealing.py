"""The digest inside an ONNX file: every altered byte is found."""

from __future__ import annotations

import hashlib

import onnx
import pytest
from onnx import TensorProto, helper

from stapes.inference.sealing import DIGEST_KEY, UNSEALED, is_intact, is_sealed, seal


def unsealed(**metadata: str) -> bytes:
    """A small ONNX file, serialised by the onnx package."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph)
    helper.set_model_props(model, metadata)
    content: bytes = model.SerializeToString()
    return content


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place() -> None:
    content = unsealed(stapes='{"a": 1}', **{DIGEST_KEY: UNSEALED})
    sealed = seal(content)

    # Read back by the onnx package, which knows nothing of our search for the place.
    stated = {p.key: p.value for p in onnx.load_model_from_string(sealed).metadata_props}
    assert stated == {"stapes": '{"a": 1}', DIGEST_KEY: hashlib.sha256(content).hexdigest()}
    assert is_sealed(sealed)
    assert is_intact(sealed)
    assert not is_intact(content)


def test_any_altered_byte_is_found() -> None:
    sealed = seal(unsealed(**{DIGEST_KEY: UNSEALED}))
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1
        assert not is_intact(bytes(altered)), f"byte {place}"
    for length in range(len(sealed)):
        assert not is_intact(sealed[:length]), f"the first {length} bytes"
    assert not is_intact(sealed + b"\0")


def test_sealing_again_gives_the_same_bytes() -> None:
    sealed = seal(unsealed(**{DIGEST_KEY: UNSEALED}))
    assert seal(sealed) == sealed


def test_a_file_without_a_place_for_the_digest() -> None:
    for content in (unsealed(), unsealed(stapes="{}"), b"", b"stapes_digest"):
        assert not is_sealed(content)
        assert not is_intact(content)
        with pytest.raises(ValueError, match="0 places"):
            seal(content)


def test_two_places_are_refused() -> None:
    twice = unsealed(**{DIGEST_KEY: UNSEALED}) * 2
    with pytest.raises(ValueError, match="2 places"):
        seal(twice)
    assert not is_intact(twice)
