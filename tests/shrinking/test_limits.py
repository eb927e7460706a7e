"""Budgets as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapes.errors import StapesError
from stapes.shrinking.limits import Limits, format_macs, format_size, parse_macs, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("32kB", 32_000), ("32KB", 32_000), ("32kb", 32_000), ("32k", 32_000), ("32 kB", 32_000),
        ("32KiB", 32_768), ("32kib", 32_768), ("32Ki", 32_768), ("0.5MB", 500_000),
        (".5mb", 500_000), ("1.MiB", 2**20), ("2GiB", 2**31), ("1 G", 10**9), ("128000", 128_000),
        ("128_000", 128_000), ("128000 bytes", 128_000), ("1B", 1), ("0.1kB", 100),
        ("1.0005kB", 1000), (4096, 4096),
    ],
)  # fmt: skip
def test_sizes(text: str | int, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "kB", "0", "0.4B", "-32kB", "32 kilos", "32,000", "1e5", "nan", "32kBB", "32TB", "3 2kB",
     "9" * 30, -5],
)  # fmt: skip
def test_nonsense_sizes_get_a_sentence(text: str) -> None:
    with pytest.raises(StapesError, match=r"^--size .*128kB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("30M", 30_000_000), ("30m", 30_000_000), ("30 MMACs/s", 30_000_000),
        ("30MMAC", 30_000_000),
        ("1.5G", 1_500_000_000), ("500k", 500_000), ("500 kMACs", 500_000), ("7 macs", 7),
        (250_000, 250_000), ("0.25M", 250_000),
    ],
)  # fmt: skip
def test_macs(text: str | int, macs: int) -> None:
    assert parse_macs(text) == macs


@pytest.mark.parametrize("text", ["", "M", "0", "30 Mi", "30MB", "-1M", "30M/s", "inf"])
def test_nonsense_macs_get_a_sentence(text: str) -> None:
    with pytest.raises(StapesError, match=r"^--macs .*30M"):
        parse_macs(text)


@given(st.integers(1, 10**12))
def test_what_is_printed_can_be_read_back_exactly(value: int) -> None:
    assert parse_size(format_size(value)) == value
    assert parse_macs(format_macs(value)) == value


def test_both_limits_count_and_one_is_needed() -> None:
    both = Limits(1000, 50)
    assert both.allow(1000, 50)
    assert not both.allow(1001, 50)
    assert not both.allow(1000, 51)
    assert Limits(file_bytes=1000).allow(1000, 10**12)
    assert Limits(macs_per_second=50).allow(10**12, 50)
    assert both.load(500, 100) == 2
    assert str(both) == "1kB and 50 MACs/s"
    with pytest.raises(StapesError, match=r"--size .* or both"):
        Limits()
