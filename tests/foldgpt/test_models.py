"""Real `transformers` families: removal, sharing, the cache, storage and what is refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import lab
from lab.core import cost
from lab.core.modeling_folded import LowRank, blocks
from lab.foldgpt import measures
from lab.foldgpt.folding import Fold, Sizes, folded, gates, recorded, removed, uniform, unrolled
from lab.foldgpt.ranking import loss
from lab.foldgpt.sharing import pairs, put, shared, weights

from .small import FAMILIES, model, tokens

FOLD = Fold((0, 2, 3, 4), ((2, 3),), rank=2)
every_family = pytest.mark.parametrize("family", FAMILIES)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def logits(net, x):
    with torch.no_grad():
        return net(x).logits


def moved(net):
    """The model with adapters that do something."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for module in net.modules():
            if isinstance(module, LowRank):
                module.B.normal_(std=0.1)
    return net


@pytest.mark.slow
@every_family
@both_dtypes
def test_hard_removal_is_gates_of_0_and_1_bit_for_bit(family, dtype):
    net, x = model(family, dtype), tokens()
    g = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    with gates(net, g):
        gated = logits(net, x)
    assert torch.equal(gated, logits(removed(net, (0, 2, 3, 5)), x))
    assert not torch.equal(gated, logits(net, x))


@every_family
def test_open_gates_change_nothing_and_leave_nothing(family):
    net, x = model(family), tokens()
    with gates(net, torch.ones(6)):
        assert torch.equal(logits(net, x), logits(model(family), x))
    assert all(not block._forward_hooks for block in blocks(net))


@every_family
def test_sharing_equal_blocks_is_the_original(family):
    net, x = model(family), tokens()
    put(blocks(net)[3], weights(blocks(net)[2]))
    assert torch.equal(logits(folded(net, Fold(tuple(range(6)), ((2, 3),))), x), logits(net, x))


@pytest.mark.slow
@every_family
def test_parameters_are_what_the_formula_says(family):
    net = model(family)
    for fold in (FOLD, Fold((0, 1, 2, 3, 4, 5), ((0, 1), (3, 4, 5))), Fold((1, 4))):
        assert cost.parameters(folded(net, fold)) == Sizes.of(net).folded(fold)


@pytest.mark.slow
@every_family
def test_the_cache_changes_no_token(family):
    net = moved(folded(model(family), FOLD))
    x = tokens()
    assert torch.equal(measures.generated(net, x, 12), measures.generated(net, x, 12, cache=False))
    assert [m.layer_idx for block in blocks(net) for m in block.modules() if hasattr(m, "layer_idx")] == [0, 1, 2, 3]


@pytest.mark.slow
@every_family
def test_in_bfloat16_the_cache_changes_ties_at_most(family):
    net = moved(folded(model(family, torch.bfloat16), FOLD))
    pairs = [measures.generated(net, tokens(), 12, cache=cache) for cache in (True, False)]
    for a, b in zip(*pairs, strict=True):
        for t in (a != b).nonzero()[:1, 0].tolist():  # the first token that differs: its rival is within one rounding
            found = logits(net, b[None, :t])[0, -1].float()
            assert float((found[a[t]] - found[b[t]]).abs()) <= 2**-7 * float(found.abs().max())


@every_family
def test_norms_stay_with_each_layer(family):
    net = folded(model(family), FOLD)
    first, second = blocks(net)[1], blocks(net)[2]
    common = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    own = [name for name, p in second.named_parameters() if id(p) not in common]
    assert common and all("norm" in name or "ln_" in name or name.endswith((".A", ".B")) for name in own)


@pytest.mark.slow
@every_family
@both_dtypes
def test_saved_with_its_sharing_and_loaded_three_ways(family, dtype, tmp_path):
    net = moved(shared(model(family, dtype), FOLD, "first", "zero", ()))
    made = outcome(net)
    made.save(tmp_path)
    x, expected = tokens(), logits(net, tokens())
    loaded = lab.load(tmp_path).model
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(logits(loaded, x), expected) and torch.equal(logits(plain, x), expected)
    assert cost.parameters(plain) == cost.parameters(net)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size - cost.bytes_stored(net) < 16_000  # the file's header
    if dtype == torch.float32:
        assert torch.allclose(logits(unrolled(net), x), expected, atol=2e-4, rtol=1e-3)


def test_unrolled_needs_no_code(tmp_path):
    net = moved(folded(model("llama"), FOLD))
    unrolled(net).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(plain, tokens()), logits(net, tokens()), atol=2e-4, rtol=1e-3)
    assert cost.parameters(plain) > cost.parameters(net)


def outcome(net):
    from lab.core.report import Report
    from lab.foldgpt import FoldGPTOutcome

    return FoldGPTOutcome(
        recipe=lab.FoldGPT(), report=Report("a", ()), trace=(), model=net, ranking=(5, 1, 0, 2, 3, 4), fold=FOLD,
        gates=torch.zeros(0, 6), similarity=torch.eye(7),
    )  # fmt: skip


def test_the_states_recorded_are_those_of_transformers():
    net, x = model("llama"), tokens()
    with torch.no_grad(), recorded(net) as states:
        wanted = net(x, output_hidden_states=True).hidden_states
    assert len(states) == 7 and all(torch.equal(a, b) for a, b in zip(states[:6], wanted[:6], strict=True))


def test_pairs_are_disjoint_neighbours_of_the_highest_sum():
    alike = torch.zeros(6, 6)
    for i, value in enumerate((0.9, 1.0, 0.9, 0.2)):  # blocks 0-1, 1-2, 2-3, 3-4
        alike[i + 1, i + 2] = value
    assert pairs((0, 1, 2, 3, 4), alike, 2) == ((0, 1), (2, 3))  # greedy would take 1-2 first and lose
    assert pairs((0, 1, 2, 3, 4), alike, 1) == ((1, 2),)
    assert pairs((0, 1), alike, 0) == ()
    with pytest.raises(ValueError, match="lower sharing or removal"):
        pairs((0, 1, 2), alike, 2)


def test_representatives():
    net = model("llama")
    own = [weights(blocks(net)[block])["mlp.up_proj"]["weight"] for block in (2, 3)]
    for kind, wanted in (("first", own[0]), ("mean", (own[0] + own[1]) / 2)):
        made = blocks(shared(net, FOLD, kind, "zero", ()))[1].mlp.up_proj.base.weight
        assert torch.allclose(made, wanted, atol=1e-6)


def test_the_representative_of_least_loss_is_the_better_of_both():
    net = model("llama")
    own = [weights(blocks(net)[block]) for block in (2, 3)]
    tried = []
    for values in own:  # what the pair would be on the weights of either, without `shared`
        tried.append(removed(net, FOLD.kept))
        for layer in (1, 2):
            put(blocks(tried[-1])[layer], values)
    chosen = set()
    for seed in range(4):
        x = (torch.randint(1, 80, (2, 12), generator=torch.Generator().manual_seed(seed)),)
        losses = [loss(one, x) for one in tried]
        better = losses.index(min(losses))
        made = blocks(shared(net, FOLD, "least-loss", "zero", x))[1].mlp.up_proj.base.weight
        assert torch.equal(made, own[better]["mlp.up_proj"]["weight"])
        chosen.add(better)
    assert chosen == {0, 1}  # neither the first nor the second is right by itself


def test_adapters_by_svd_are_nearer_to_what_was():
    net, x = model("llama"), tokens()
    whole = logits(removed(net, FOLD.kept), x)
    full_rank = Fold(FOLD.kept, FOLD.groups, rank=32)
    gap = [float((logits(shared(net, fold, "first", start, ()), x) - whole).abs().max())
           for fold, start in ((FOLD, "zero"), (full_rank, "svd"))]  # fmt: skip
    assert gap[1] < 1e-3 < gap[0]


def test_blocks_of_other_shapes_are_refused():
    net = model("llama")
    net.model.layers[4].mlp.up_proj = torch.nn.Linear(32, 50, bias=False)
    with pytest.raises(ValueError, match=r"block 4 differs in shape from block 0.*give a model of repeated"):
        uniform(net)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="holds no list of blocks"):
        blocks(torch.nn.Linear(2, 2))


def test_a_prompt_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="context is 64: shorten"):
        measures.generated(model("llama"), tokens(1, 60), 10)
