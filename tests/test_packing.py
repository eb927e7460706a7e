from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from stapes.packing import join_zeros, pack, saves_space, split_zeros, stored_bytes, unpack

TYPES = ["f2", "f4", "f8", "i1", "u1", "i4", "i8", "?"]


def arrays(zeros: float) -> st.SearchStrategy[NDArray[Any]]:
    """Arrays of all types and shapes, about as many zeros as asked for."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)

    def thinned(array: NDArray[Any]) -> NDArray[Any]:
        keep = np.random.default_rng(array.size).random(array.shape) >= zeros
        return np.where(keep, array, np.zeros_like(array))

    return st.sampled_from(TYPES).flatmap(lambda t: hnp.arrays(t, shapes)).map(thinned)


def read_slowly(content: bytes, like: list[tuple[tuple[int, ...], str]]) -> list[list[Any]]:
    """The format as its description says, one bit and one number at a time."""

    def bits(start: int, count: int) -> list[int]:
        return [content[start + i // 8] >> (7 - i % 8) & 1 for i in range(count)]

    flags, place, lists = bits(0, len(like)), math.ceil(len(like) / 8), []
    for flag, (shape, code) in zip(flags, like, strict=True):
        count = math.prod(shape)
        present = [1] * count
        if flag:
            present = bits(place, count)
            place += math.ceil(count / 8)
        numbers: list[Any] = []
        for one in present:
            numbers.append(0)
            if one:
                size = struct.calcsize(f"<{code}")
                (numbers[-1],) = struct.unpack(f"<{code}", content[place : place + size])
                place += size
        lists.append(numbers)
    assert place == len(content)
    return lists


@settings(max_examples=150, deadline=None)
@given(st.lists(arrays(0.8) | arrays(0.0), max_size=12))
def test_unpacking_gives_back_every_array(before: list[NDArray[Any]]) -> None:
    after = unpack(pack(before), [(a.shape, a.dtype) for a in before])
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        assert other.dtype == one.dtype
        assert other.flags.writeable
        np.testing.assert_array_equal(other, one)


def test_the_bytes_are_those_of_the_description() -> None:
    rng = np.random.default_rng(3)
    codes = {"e": np.float16, "f": np.float32, "b": np.int8, "q": np.int64}
    before, like = [], []
    for number, (code, dtype) in enumerate(list(codes.items()) * 3):
        shape = (3, number + 1, 5)
        array = (rng.normal(size=shape) * 40).astype(dtype) * (rng.random(shape) < number / 8)
        before.append(array.astype(dtype))
        like.append((shape, code))
    content = pack(before)
    assert {saves_space(a) for a in before} == {True, False}
    for one, slow in zip(before, read_slowly(content, like), strict=True):
        assert one.ravel().tolist() == slow


def test_the_example_of_the_description() -> None:
    example = np.array([0, 0, 1.5, 0, 0, 0, -2, 0, 3], np.float32)
    values, positions = split_zeros(example)
    assert values.tolist() == [1.5, -2, 3]
    assert positions.tolist() == [0b00100010, 0b10000000]
    np.testing.assert_array_equal(join_zeros(values, positions, (3, 3)), example.reshape(3, 3))


@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("nonzeros", [0, 1, 499, 500, 750, 874, 875, 900, 938, 1000])
def test_the_smaller_form_is_chosen(itemsize: int, nonzeros: int) -> None:
    array = np.zeros(1000, {1: np.int8, 2: np.float16, 4: np.float32}[itemsize])
    array[:nonzeros] = 1
    size = min(1000 * itemsize, nonzeros * itemsize + 125)
    assert stored_bytes(1000, nonzeros, itemsize) == size
    assert len(pack([array])) == 1 + size


def test_numbers_that_are_no_ordinary_numbers_survive() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 1e-45, 0, 0, *[0] * 30], np.float32)
    (back,) = unpack(pack([odd]), [(odd.shape, odd.dtype)])
    assert saves_space(odd)
    assert back.tobytes() == odd.tobytes()


def test_a_negative_zero_takes_no_room() -> None:
    masked = np.full(100, -1.0, np.float32) * (np.arange(100) < 10)
    assert np.signbit(masked).all()
    assert len(pack([masked])) == 1 + 10 * 4 + 13


def test_what_is_too_short_or_too_long_or_not_canonical_is_refused() -> None:
    before = [np.eye(8, dtype=np.float32), np.arange(3, dtype=np.int8)]
    like = [(a.shape, a.dtype) for a in before]
    content = pack(before)
    assert len(unpack(content, like)) == 2
    for size in range(len(content)):
        with pytest.raises(ValueError, match="too early"):
            unpack(content[:size], like)
    with pytest.raises(ValueError, match="1 bytes too many"):
        unpack(content + b"\0", like)
    with pytest.raises(ValueError, match="beyond the last"):
        unpack(bytes([content[0] | 1]) + content[1:], like)
    with pytest.raises(ValueError, match="cannot be packed"):
        pack([np.array(["text"])])
    values, positions = split_zeros(before[0])
    with pytest.raises(ValueError, match="7 values at 8"):
        join_zeros(values[1:], positions, (8, 8))
    for shape in [(8, 9), (-8, -8), (2**40,)]:
        with pytest.raises(ValueError, match="positions"):
            join_zeros(values, positions, shape)


def test_a_shape_of_a_petabyte_allocates_nothing() -> None:
    for content in [b"\x00", b"\x80", b"\x80" + bytes(1000)]:
        with pytest.raises(ValueError, match="too early"):
            unpack(content, [((2**25, 2**25), np.float32)])
