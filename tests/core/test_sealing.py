"""A safetensors file that knows its own bytes: any reader reads it, and what was changed is told in a few words."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from lab.core import sealing

GOOD = sealing.sealed({"a": torch.arange(3.0)}, {"said": "x"})


def test_any_reader_of_safetensors_reads_it():
    assert torch.equal(load(GOOD)["a"], torch.arange(3.0))
    header = sealing.header(GOOD, 1 << 16)
    assert header["__metadata__"]["said"] == "x" and header["a"]["shape"] == [3]


@settings(deadline=None)
@given(place=st.integers(0, len(GOOD) - 1), change=st.integers(1, 255))
def test_no_byte_can_be_another(place, change):
    bad = bytearray(GOOD)
    bad[place] ^= change
    with pytest.raises(ValueError) as caught:
        sealing.header(bytes(bad), 1 << 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "a header of 0 bytes in 0"),
        (save({"a": torch.zeros(1)}), "carry no digest"),
        (save({"a": torch.zeros(1)}, {"sha256": "0" * 64}), "their digest is another"),
        (save({"a": torch.zeros(1)}, {"sha256": ""}), "their digest is another"),
        (GOOD[:-1], "their digest is another"),
    ],
)
def test_what_is_not_sealed_is_said(content, words):
    with pytest.raises(ValueError, match=words):
        sealing.header(content, 1 << 16)


@pytest.mark.parametrize("text", ["[1]", '{"__metadata__": 3}', '{"__metadata__": {"sha256": 3}}', '"x"', "[" * 9999])
def test_other_json_is_no_header(text):
    with pytest.raises(ValueError) as caught:
        sealing.header(len(text).to_bytes(8, "little") + text.encode(), 1 << 16)
    assert "\n" not in str(caught.value)


def test_a_long_header_is_refused_before_it_is_read():
    length = int.from_bytes(GOOD[:8], "little")
    assert json.loads(GOOD[8 : 8 + length])
    with pytest.raises(ValueError, match=f"a header of {length} bytes"):
        sealing.header(GOOD, length - 1)
