"""Weights of few bits on disk: what is written comes back, is as small as the formula says, and damage is told."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lab
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.pams import equations as eq
from lab.pams import packed, sizes
from tests.pams.small import QUICK, edsr, quantised, task

X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(1, 70), st.integers(0, 2**31))
def test_codes_come_back(b, count, seed):
    n = eq.levels(b)
    codes = torch.randint(-n, n + 1, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    data = packed.pack(codes, b)
    assert data.dtype == torch.uint8 and len(data) == -(-count * b // 8)
    assert torch.equal(packed.unpack(data, b, codes.shape), codes)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("scales", ["tensor", "channel"])
def test_a_file_answers_as_the_network_did(tmp_path, bits, scales):
    outcome = lab.PAMS(**QUICK, weight_bits=bits, scales=scales).run(task(), progress=False)
    path = outcome.pack(tmp_path / "net.safetensors")
    again = lab.pams.unpack(path)
    with torch.no_grad():
        assert torch.equal(again(X), outcome.model(X))
    assert path.stat().st_size < 2 * outcome.report["bytes"].after


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_file_of_published_size_is_what_the_formula_says(bits):
    net = lab.nets.edsr(blocks=16, width=64, scale=4)
    graph, _ = quantised(net, X[:1, :, :4, :4], weight_bits=bits)
    counts = sizes.count(fold_batch_norms(net, X[:1, :, :4, :4]), graph, X[:1, :, :4, :4])
    written = len(packed.to_bytes(graph))
    assert written == pytest.approx(counts.bytes, rel=0.02) and written == pytest.approx(
        4 * counts.equivalent, rel=0.02
    )
    assert written < 4 * counts.parameters / 2  # the control: it is no file of floats


@pytest.mark.slow
def test_weights_of_one_s_own_network_need_it(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = edsr()

        def forward(self, x):
            return self.inner(x)

    outcome = lab.PAMS(**QUICK).run(task(Own()), progress=False)
    outcome.pack(tmp_path / "net.safetensors")
    outcome.save(tmp_path / "folder")
    with pytest.raises(ValueError, match="made from a network of your own: give base=net"):
        lab.pams.unpack(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="base=EDSR is not the network that was quantised: it holds "):
        lab.pams.unpack(tmp_path / "net.safetensors", edsr(width=6))
    with torch.no_grad():
        for again in (lab.pams.unpack(tmp_path / "net.safetensors", Own()), lab.load(tmp_path / "folder", Own()).model):
            assert torch.equal(again(X), outcome.model(X))


@pytest.mark.slow
def test_a_damaged_file_is_told_in_one_line(tmp_path):
    outcome = lab.PAMS(**QUICK).run(task(), progress=False)
    path = outcome.pack(tmp_path / "net.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is not a packed network") as caught:
        lab.pams.unpack(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="is not a packed network"):
        lab.pams.unpack(path)


@pytest.mark.slow
def test_every_altered_byte_is_refused(tmp_path):
    """Header, recipe, digest and weights: a flipped byte anywhere is told, none answers otherwise."""
    outcome = lab.PAMS(**QUICK).run(task(), progress=False)
    content = outcome.pack(tmp_path / "net.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "altered.safetensors"
    for at in [*range(header), *range(header, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(ValueError, match="is not a packed network") as caught:
            packed.read(path)
        assert "\n" not in str(caught.value)
    for part in (content + b"\0", content[:-1], content[:8], b""):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="is not a packed network"):
            packed.read(path)


def test_a_recipe_nested_without_end_is_one_line(tmp_path):
    from safetensors.torch import save

    deep = "[" * 200_000
    for meta in ({"lab": deep, "sha256": packed.UNSIGNED}, {"lab": "{}"}, {}):
        content = save({"codes": torch.zeros(1)}, meta)
        digest = hashlib.sha256(content).hexdigest().encode()
        (tmp_path / "net").write_bytes(content.replace(packed.UNSIGNED.encode(), digest, 1))
        with pytest.raises(ValueError, match=r"is not a packed network \((Recursion|Key)Error") as caught:
            lab.pams.unpack(tmp_path / "net")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"fields": {"no_such_field": 1}}, "no_such_field"),
        ({"fields": {"[" * 3000: 1}}, r"\[\[\[\.\.\."),
        ({"fields": {}, "example": [1, 3, 1 << 65, 4]}, "Overflow when unpacking"),
    ],
)
def test_a_file_of_another_version_is_one_line(tmp_path, other, words):
    graph, _ = quantised(edsr(), X)
    about = {"base": None, "example": [1, 3, 4, 4], **other}
    (tmp_path / "net").write_bytes(packed.to_bytes(graph, about))
    with pytest.raises(ValueError, match=rf"is of another version of the lab \(.*{words}.*write it again") as caught:
        lab.pams.unpack(tmp_path / "net")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_stored_outcome_holds_no_floats_for_rounded_weights(tmp_path):
    outcome = lab.PAMS(**QUICK, weight_bits=4).run(task(), progress=False)
    rounded = sum(outcome.model.get_submodule(name).weight.numel() for name in outcome.placement.layers)
    state = outcome.found()["packed"]
    assert len(state["codes"]) == rounded // 2 and state["codes"].dtype == torch.uint8
    others = outcome.report["parameters"].after - rounded
    assert state["rest"].numel() == others + len(outcome.alphas()) + 3  # and the mean colour
