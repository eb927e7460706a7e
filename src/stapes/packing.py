"""Arrays as bytes, where a zero costs one bit.

A pruned network is mostly zeros. An array that is smaller that way is stored as its *values* (the
elements that are not zero, in order) and its *positions* (one bit an element)::

    [0 0 1.5 0 0 0 -2 0 3]   values 1.5 -2 3   positions 00100010 1·······

    dense    elements * itemsize
    sparse   nonzeros * itemsize + ceil(elements / 8)

:func:`pack` writes many arrays one after the other. Nothing is aligned, and no name, shape or type
is written: the reader knows them::

    flags       one bit an array: 1 where it is sparse
    each array  its elements; or, sparse, its positions and then its values

Bits fill a byte from the highest down, unused ones are 0; numbers are little-endian; arrays are
row-major. A negative zero of a sparse array becomes a plain one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["join_zeros", "pack", "saves_space", "split_zeros", "stored_bytes", "unpack"]

Array = NDArray[Any]


def stored_bytes(elements: int, nonzeros: int, itemsize: int) -> int:
    """Bytes of an array in the smaller of its two forms.

    >>> stored_bytes(1000, 250, 2)  # 250 values and 125 bytes of positions
    625

    Args:
        elements: of the array.
        nonzeros: of them that are not zero.
        itemsize: bytes of an element.
    """
    return min(elements * itemsize, nonzeros * itemsize + _bytes_of_bits(elements))


def saves_space(array: Array) -> bool:
    """Whether the sparse form of an array is the smaller one."""
    nonzeros = int(np.count_nonzero(array))
    return stored_bytes(array.size, nonzeros, array.itemsize) < array.nbytes


def split_zeros(array: Array) -> tuple[Array, NDArray[np.uint8]]:
    """The sparse form of an array.

    Returns:
        values: (nonzeros,), in the array's type.
        positions: (ceil(elements / 8),).
    """
    flat = array.reshape(-1)
    present = flat != 0
    return flat[present], np.packbits(present)


def join_zeros(values: Array, positions: NDArray[np.uint8], shape: Sequence[int]) -> Array:
    """The array whose sparse form this is: undoes :func:`split_zeros`.

    Raises:
        ValueError: values, positions and shape do not belong together.
    """
    elements = math.prod(shape)
    if min(shape, default=1) < 0 or positions.shape != (_bytes_of_bits(elements),):
        raise ValueError(f"positions of other than {elements} elements")
    # The positions are there, so what is allocated now is in proportion to what was read.
    present = _bits(positions, elements)
    if values.shape != (np.count_nonzero(present),):
        raise ValueError(f"{values.size} values at {np.count_nonzero(present)} positions")
    flat = np.zeros(elements, values.dtype)
    flat[present] = values
    return flat.reshape(shape)


def pack(arrays: Sequence[Array]) -> bytes:
    """Write arrays one after the other, each in its smaller form.

    >>> pack([np.zeros(64, np.float32), np.ones(2, np.int8)]).hex()
    '8000000000000000000101'

    Args:
        arrays: numbers of any shape.

    Raises:
        ValueError: an array of something else than numbers.
    """
    sparse = [saves_space(array) for array in arrays]
    parts = [np.packbits(sparse).tobytes()] if sparse else []
    for array, is_sparse in zip(arrays, sparse, strict=True):
        array = array.astype(_stored_type(array.dtype), copy=False)
        if is_sparse:
            values, positions = split_zeros(array)
            parts += [positions.tobytes(), values.tobytes()]
        else:
            parts.append(array.tobytes())
    return b"".join(parts)


def unpack(content: bytes, like: Sequence[tuple[Sequence[int], DTypeLike]]) -> list[Array]:
    """Read what :func:`pack` wrote.

    Memory is in proportion to ``content``, whatever ``like`` says.

    Args:
        content: all of it.
        like: shape and type of each array, in order.

    Raises:
        ValueError: not the arrays of these shapes and types; or not numbers.
    """
    rest = memoryview(content)

    def take(count: int, dtype: np.dtype[Any]) -> Array:
        nonlocal rest
        size = count * dtype.itemsize
        if size > len(rest):
            raise ValueError("the packed tensors end too early")
        part, rest = rest[:size], rest[size:]
        return np.frombuffer(part, dtype)

    byte = np.dtype(np.uint8)
    sparse = _bits(take(_bytes_of_bits(len(like)), byte), len(like))
    arrays = []
    for (shape, dtype), is_sparse in zip(like, sparse, strict=True):
        stored, elements = _stored_type(dtype), math.prod(shape)
        if is_sparse:
            positions = take(_bytes_of_bits(elements), byte)
            values = take(int(np.count_nonzero(_bits(positions, elements))), stored)
            array = join_zeros(values, positions, shape)
        else:
            array = take(elements, stored).reshape(shape)
        # A copy: what was read may be read-only, and at an odd address.
        arrays.append(array.astype(np.dtype(dtype)))
    if rest:
        raise ValueError(f"{len(rest)} bytes too many after the packed tensors")
    return arrays


def _bytes_of_bits(bits: int) -> int:
    return -(-bits // 8)


def _bits(packed: NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(packed)
    if bits[count:].any():
        raise ValueError("a position or flag beyond the last")
    return bits[:count].astype(np.bool_)


def _stored_type(dtype: DTypeLike) -> np.dtype[Any]:
    little = np.dtype(dtype).newbyteorder("<")
    if little.kind not in "biuf":
        raise ValueError(f"arrays of {little.name} cannot be packed")
    return little
