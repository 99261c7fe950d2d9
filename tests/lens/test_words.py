"""Words as maps: what is read is what attention computes, on the latent's grid, call by call, beside its control."""

import math

import pytest
import torch
from torch import nn

from lab import lens
from lab.core.training import seeded
from tests.hybridsd import small

TEXT = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


class Looking(nn.Module):
    """Attention of places to words as diffusers writes it, at the latent's size and at half of it."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = Attention(), Attention()

    def forward(self, latent, text):
        halved = nn.functional.avg_pool2d(latent, 2)
        for layer, x in ((self.fine, latent), (self.coarse, halved)):
            layer(x.flatten(2).transpose(1, 2), encoder_hidden_states=text)
        return latent


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.heads = nn.Linear(4, 8, bias=False), nn.Linear(16, 8, bias=False), 2

    def forward(self, x, encoder_hidden_states=None):
        return x


def test_maps_are_the_mean_of_heads_and_layers_on_the_latents_grid():
    with seeded(1):
        net, latents = Looking(), torch.randn(3, 2, 4, 4, 6)
    maps = lens.cross_attention(net, lambda model: [model(latent, TEXT) for latent in latents])
    assert maps.shape == (3, 2, 5, 4, 6)
    torch.testing.assert_close(maps.sum(2), torch.ones(3, 2, 4, 6))  # over the words
    sides = []
    for layer, x in ((net.fine, latents[1]), (net.coarse, nn.functional.avg_pool2d(latents[1], 2))):
        q, k = layer.to_q(x.flatten(2).transpose(1, 2)), layer.to_k(TEXT)  # (2, places, 8), (2, 5, 8)
        heads = [(q[..., h] @ k[..., h].transpose(1, 2) / math.sqrt(4)).softmax(-1) for h in (slice(0, 4), slice(4, 8))]
        sides.append((sum(heads) / 2).transpose(1, 2).unflatten(2, x.shape[2:]))
    coarse = nn.functional.interpolate(sides[1], (4, 6), mode="bilinear")
    torch.testing.assert_close(maps[1], (sides[0] + coarse) / 2)
    assert not net.fine._forward_pre_hooks and not net._forward_pre_hooks


def test_a_word_that_a_place_asks_for_is_found_there():
    """The left half of the latent asks for word 2, the right half for word 4."""
    net = Looking()
    text, latent = torch.zeros(1, 5, 16), torch.zeros(1, 4, 4, 4)
    text[0, 2, 0], text[0, 4, 1] = 9.0, 9.0
    latent[0, 0, :, :2], latent[0, 1, :, 2:] = 9.0, 9.0
    with torch.no_grad():
        for layer in (net.fine, net.coarse):
            for linear in (layer.to_q, layer.to_k):
                nn.init.eye_(linear.weight)
    (maps,) = lens.cross_attention(net, lambda model: model(latent, text))
    left, right = maps[0, 2], maps[0, 4]
    assert left[:, 0].min() > 0.45 > 0.3 > left[:, 3].max() and right[:, 3].min() > 0.45 > 0.3 > right[:, 0].max()


@pytest.mark.slow
def test_a_u_net_of_diffusers_is_read_as_it_attends():
    unet, x, text = small.unet(), torch.randn(1, 4, 8, 8), torch.randn(1, 3, 16)
    seen = []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            hook = module.register_forward_pre_hook(
                lambda m, args, named: seen.append(scores(m, args[0], named["encoder_hidden_states"])), with_kwargs=True
            )
            assert hook
    maps = lens.cross_attention(unet, lambda model: model(x, 7, encoder_hidden_states=text))

    def flat(weights):
        return weights.transpose(1, 2).unflatten(2, (math.isqrt(weights.shape[1]),) * 2)

    stretched = [nn.functional.interpolate(flat(w), (8, 8), mode="bilinear") for w in seen]
    torch.testing.assert_close(maps[0], torch.stack(stretched).mean(0))


def scores(module, x, text):
    """diffusers' own weights, the mean over heads."""
    q, k = (module.head_to_batch_dim(layer(y)) for layer, y in ((module.to_q, x), (module.to_k, text)))
    return module.get_attention_scores(q, k).unflatten(0, (-1, module.heads)).mean(1)


def test_words_are_clicked_beside_their_control():
    with seeded(1):
        net, latents = Looking(), torch.randn(3, 1, 4, 4, 4)
    run = lambda model: [model(latent, TEXT[:1]) for latent in latents]  # noqa: E731
    explorer = lens.words({"cloud": net, "edge": Looking()}, run, {"a": [1], "dog": [2, 3]}, torch.rand(3, 3, 8, 8))
    first = explorer.frame
    assert first.svg.count("fresh weights") >= 2 and "cloud, correlation with control" in first.facts
    assert explorer.set(word="dog", step=3).frame.svg != first.svg
    maps = lens.cross_attention(net, run)[2, 0, [2, 3]].sum(0)
    assert explorer.frame.facts["cloud, of the attention"] == f"{maps.mean():.1%}"


def test_what_shows_no_words_is_one_line():
    with pytest.raises(ValueError, match="Conv2d was asked 1 times and has shown no attention to a text"):
        lens.cross_attention(nn.Conv2d(4, 4, 1), lambda model: model(torch.zeros(1, 4, 4, 4)))
    net = Looking()
    with pytest.raises(ValueError, match="Looking was asked 0 times"):
        lens.cross_attention(net, lambda model: None)
    run = lambda model: model(torch.zeros(1, 4, 4, 4), TEXT[:1])  # noqa: E731
    with pytest.raises(ValueError, match="give a picture for each step"):
        lens.words({"cloud": net}, run, {"a": [1]}, torch.rand(3, 3, 8, 8))
    with pytest.raises(ValueError, match="give one model and one word, or more"):
        lens.words({}, run, {"a": [1]})
