"""Networks of tokens in the lens: units as maps of patches, and where attention looks."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab import lens
from lab.core import nets
from lab.core.training import seeded
from lab.lens.activations import left_out, maps
from tests.lens.models import Functional, Tokens

X = torch.randn(5, 1, 8, 12, generator=torch.Generator().manual_seed(0))


class Patches(nn.Module):
    """A transformer of one block, not square: `extra` tokens in front of 4 x 6 patches, softmax or torch's function."""

    def __init__(self, extra: int = 1, written: bool = False):
        super().__init__()
        self.written, self.extra = written, extra
        self.embed, self.front = nn.Conv2d(1, 8, 2, stride=2), nn.Parameter(torch.randn(1, extra, 8))
        self.q, self.k, self.v, self.proj = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.fc1, self.act, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.front.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = (layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.written:
            y = torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        x = x + self.fc2(self.act(self.fc1(self.norm(x))))
        return self.head(x[:, 0] if self.extra else x.mean(1))


class ChannelsLast(nn.Module):
    """A block as in ConvNeXt and Swin: filters on the last axis between two turns."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.fc, self.act, self.head = (
            nn.Conv2d(1, 6, 2, stride=2), nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 3)
        )  # fmt: skip

    def forward(self, x):
        x = self.act(self.fc(self.norm(self.stem(x).permute(0, 2, 3, 1))))
        return self.head(x.mean((1, 2)))


def made(kind=Patches, *arguments):
    with seeded(0):
        return kind(*arguments).eval()


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_a_units_map_is_its_tokens_on_the_grid_of_the_patches(extra):
    net = made(Patches, extra)
    tokens = lens.activations(net, X, "act")["act"]  # (N, tokens, units)
    folded = maps(net, X, "act")["act"]
    assert folded.shape == (5, 16, 4, 6)
    assert torch.equal(folded[:, :, 2, 5], tokens[:, extra + 2 * 6 + 5])
    assert left_out(net, X[:1], "act") == {"act": extra}
    facts = lens.atlas(net, X).set(layer="act").frame.facts
    assert facts.get("tokens without a patch, left out", 0) == extra and facts["map"] == "4 x 6"


def test_a_pixel_is_seen_by_the_token_of_its_patch():
    net, x = made(), X.clone()
    x[:, :, 5, 9] += 1
    embedded = "embed"
    change = (maps(net, x, embedded)[embedded] - maps(net, X, embedded)[embedded]).abs().sum(1)
    assert (change > 0).nonzero()[:, 1:].unique(dim=0).tolist() == [[2, 4]]
    tokens = (maps(net, x, "q")["q"] - maps(net, X, "q")["q"]).abs().sum(1)
    assert (tokens > 0).nonzero()[:, 1:].unique(dim=0).tolist() == [[2, 4]]
    assert lens.receptive_fields(net, "q", X[:1])["q"].box(2, 4) == (4, 8, 6, 10)
    assert lens.receptive_fields(net, "fc1", X[:1])["fc1"].box(2, 4) == (0, 0, 8, 12)  # behind attention


def test_filters_of_channels_last_blocks_are_the_last_axis():
    net = made(ChannelsLast)
    outputs = lens.activations(net, X)
    for name in ("norm", "fc", "act"):
        assert torch.equal(maps(net, X, name)[name], outputs[name].permute(0, 3, 1, 2))
    assert maps(net, X, "stem")["stem"].shape == (5, 6, 4, 6)


@pytest.mark.parametrize("net", [made(), made(ChannelsLast)])
def test_a_unit_that_is_off_is_off_for_all_tokens(net):
    layer = "act"
    with lens.without(net, layer, [2, 7]):
        off = lens.activations(net, X, [layer, "head"])
    before = lens.activations(net, X, layer)[layer]
    assert not off[layer][..., [2, 7]].any()
    others = [k for k in range(before.shape[-1]) if k not in (2, 7)]
    assert torch.equal(off[layer][..., others], before[..., others])
    with pytest.raises(ValueError, match=r"filter 16 is not in 'act'"), lens.without(net, layer, 16):
        net(X)


def test_strongest_patches_and_tables_of_units():
    net, y = made(), torch.arange(5) % 3
    top = lens.strongest(net, "q", [X], k=2, progress=False)
    values = maps(net, X, "q")["q"].amax((2, 3))  # (N, units)
    assert torch.allclose(top.values[3], values[:, 3].sort(descending=True).values[:2])
    assert top.crops(3)[0].shape == (1, 2, 2)
    frame = lens.switched_off(net, "act", [(X, y)], [[0, 1]], controls=2, progress=False)
    assert len(frame) == 3
    masks = torch.rand(5, 2, 8, 12) > 0.5
    assert len(lens.unit_concepts(net, "act", [(X, masks)], "ab", progress=False)) == 16
    assert lens.filters(net, "act", [(X, y)], progress=False).frame.svg


def test_two_networks_of_tokens_are_compared_and_dissected():
    net, other = made(), made()
    with torch.no_grad():
        other.fc1.bias[3] += 1
    explorer = lens.compare_maps(net, other, X, ["fc1"])
    assert dict(explorer.frame.facts)["filters after"] == 16
    assert not dict(explorer.frame.facts)["relative change"].startswith("0.0%")
    masks = torch.rand(5, 2, 8, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    assert lens.dissect(net, "act", [(X, masks)], "ab", progress=False).frame.svg
    assert len(lens.concept_sets(net, "act", [(X, masks)], "ab", progress=False)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, "v", "embed"])
def test_grad_cam_of_tokens_lies_on_the_patches(layer):
    pytest.importorskip("captum")
    net = made()
    marks = lens.attribution(net, X, 1, "gradcam", layer=layer)
    assert marks.shape == X.shape and marks.any()
    if layer is None:  # behind the attention the class token reads no patch: the last that it reads is taken
        assert torch.equal(marks, lens.attribution(net, X, 1, "gradcam", layer="v"))
        assert not lens.attribution(net, X, 1, "gradcam", layer="act").any()
        return
    with torch.enable_grad():  # by hand: gradients' mean over the patches, times the maps
        kept = []
        hook = net.get_submodule(layer).register_forward_hook(lambda _, __, out: kept.append(out) or out.retain_grad())
        net(X)[:, 1].sum().backward()
        hook.remove()
    output, gradient = kept[0].detach(), kept[0].grad
    if layer != "embed":
        output, gradient = (part[:, 1:].transpose(1, 2).unflatten(2, (4, 6)) for part in (output, gradient))
    small = (output * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    large = F.interpolate(small, size=X.shape[2:], mode="bilinear", align_corners=False)
    assert torch.allclose(marks, large, atol=1e-5)


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1])
def test_attention_written_out_is_read_as_torchs_own(extra):
    ours, written = made(Patches, extra), made(Patches, extra, True)
    (a,), (b,) = lens.attention(ours, X), lens.attention(written, X)
    assert a.shape == (5, 2, 24 + extra, 24 + extra)
    assert torch.allclose(a, b, atol=1e-6) and torch.allclose(a.sum(-1), torch.ones(()))


class Torchs(nn.Module):
    """A class token and patches in torch's own layers."""

    def __init__(self):
        super().__init__()
        self.embed, self.front = nn.Conv2d(1, 8, 2, stride=2), nn.Parameter(torch.randn(1, 1, 8))
        self.mix, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.front.expand(x.shape[0], -1, -1), x], 1)
        return self.head((x + self.mix(x, x, x, need_weights=False)[0])[:, 0])


@torch.no_grad()
def test_torchs_attention_is_read_as_it_says_itself():
    net = made(Torchs)
    x = net.embed(X).flatten(2).transpose(1, 2)
    x = torch.cat([net.front.expand(5, -1, -1), x], 1)
    weights = net.mix(x, x, x, average_attn_weights=False)[1]
    (A,) = lens.attention(net, X)
    assert A.shape == (5, 2, 25, 25) and torch.allclose(A, weights, atol=1e-6)
    assert maps(net, X, "mix")["mix"].shape == (5, 8, 4, 6)


@pytest.mark.slow
def test_rollout_by_hand():
    net = nets.vit(size=8, patch=2, width=8, depth=3, heads=2, ratio=2).eval()
    with torch.no_grad():
        for weight in net.parameters():  # attention that is not the same everywhere
            weight.mul_(8)
    x = torch.randn(2, 1, 8, 8)
    rolled = np.eye(17)[None]
    for layer in lens.attention(net, x):
        rolled = (0.5 * layer.mean(1).numpy() + 0.5 * np.eye(17)) @ rolled
    assert np.allclose(lens.rollout(net, x), rolled[:, 0, 1:].reshape(2, 4, 4), atol=1e-6)
    assert np.allclose(lens.rollout(net, x, token=6), rolled[:, 6, 1:].reshape(2, 4, 4), atol=1e-6)
    assert not np.allclose(rolled[:, 0], rolled[:, 6], atol=1e-3)
    net = made(Patches, 0)
    (A,) = lens.attention(net, X)
    assert np.allclose(lens.rollout(net, X).flatten(1), (0.5 * A.mean(1) + 0.5 * torch.eye(24)).mean(1), atol=1e-6)
    assert np.allclose(lens.rollout(net, X).sum((1, 2)), 1, atol=1e-5)


def test_attention_stands_beside_fresh_weights():
    explorer = lens.attend(made(), X)
    assert explorer.state == {"layer": "rollout", "image": 0}
    facts = dict(explorer.frame.facts)
    assert facts["read"] == "the first token (class)" and facts["tokens without a patch"] == 1
    share = float(lens.rollout(made(), X)[0].sum())
    assert facts["on patches"] == f"{share:.0%} of the attention"
    assert "control: fresh weights" in explorer.frame.svg
    second = explorer.set(layer="layer 0", image=2).frame
    assert "layer 0: this network" in second.svg and "picture 2" in second.svg


class Windows(Patches):
    """Attention of every row of patches by itself."""

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1).flatten(0, 1)  # (N 4, 6, 8)
        return self.head(
            F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)).unflatten(0, (-1, 4)).mean((1, 2))
        )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lens.rollout(made(Windows), X), "for 5 pictures"),
        (lambda: lens.rollout(made(), X, token=25), "token=25: give the number of a token, 0 to 24"),
        (lambda: lens.rollout(made(), X, grid=(5, 6)), r"25 tokens do not fit patches of \(5, 6\)"),
        (lambda: lens.rollout(Functional(), torch.randn(1, 3, 8, 8)), "has no attention between tokens"),
        (lambda: lens.atlas(Tokens(), torch.randn(1, 3, 8, 8)), "gives feature maps"),
        (lambda: lens.unit_concepts(Tokens(), "embed", [(torch.randn(2, 3, 8, 8), torch.ones(2, 1, 8, 8))], "a",
                                    progress=False), r"'embed' gives \(2, 8, 16\)"),
    ],
)  # fmt: skip
def test_what_has_no_places_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
