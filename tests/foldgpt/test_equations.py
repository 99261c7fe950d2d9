"""The equations against numbers worked out by hand, loops, and the sizes of the public models."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import optimize
from transformers import AutoConfig, AutoModelForCausalLM

from lab.foldgpt import equations as eq
from lab.foldgpt.folding import Fold, Sizes

LLAMA2 = ("llama", {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                    "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False})  # fmt: skip
GEMMA = ("gemma", {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
                   "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000})  # fmt: skip
TINY = ("llama", {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                  "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False})  # fmt: skip
LLAMA3 = ("llama", {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                    "tie_word_embeddings": False})  # fmt: skip
TABLE = {  # P0, N, p, n, rest, cache bytes a token
    "llama-2-7b": (LLAMA2, 6_738_415_616, 32, 202_383_360, 8_192, 262_148_096, 524_288),
    "gemma-2b": (GEMMA, 2_506_172_416, 18, 110_104_576, 4_096, 524_290_048, 18_432),
    "tinyllama": (TINY, 1_100_048_384, 22, 44_044_288, 4_096, 131_074_048, 22_528),
    "llama-3-8b": (LLAMA3, 8_030_261_248, 32, 218_112_000, 8_192, 1_050_677_248, 131_072),
}


@pytest.fixture(scope="module", params=TABLE)
def sized(request):
    (family, config), *expected = TABLE[request.param]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    return request.param, Sizes.of(model), expected


def test_sizes_of_the_public_models_to_the_digit(sized):
    _, sizes, expected = sized
    assert [sizes.P0, sizes.N, sizes.p, sizes.n, sizes.rest, sizes.cache] == expected


POINTS = [
    ("llama-2-7b", 5, 0, 5.726, 15.0), ("llama-2-7b", 9, 0, 4.917, 27.0), ("llama-2-7b", 6, 6, 4.310, 36.0),
    ("llama-2-7b", 9, 6, 3.703, 45.1), ("gemma-2b", 3, 0, 2.176, 13.2), ("gemma-2b", 3, 4, 1.735, 30.8),
    ("gemma-2b", 4, 6, 1.405, 43.9), ("tinyllama", 3, 0, 0.968, 12.0), ("tinyllama", 4, 4, 0.748, 32.0),
    ("tinyllama", 6, 4, 0.660, 40.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "R", "S", "billions", "percent"), POINTS)
def test_parameters_at_the_sample_points(name, R, S, billions, percent):
    _, P0, _, p, n, _, _ = TABLE[name]
    P = eq.parameters(P0, p, n, R, (2,) * S)
    assert round(P / 1e9, 3) == billions and round(100 * (1 - P / P0), 1) == percent


def test_a_group_of_three_saves_twice_what_a_pair_does():
    assert eq.parameters(1000, 100, 4, 0, (3,)) == 1000 - 2 * 96
    assert eq.parameters(1000, 100, 4, 1, (2,), extras=7) == 1000 - 100 - 96 + 7


def test_adapters_are_counted_by_rows_and_columns(sized):
    name, sizes, _ = sized
    fold = Fold(tuple(range(sizes.N)), ((0, 1),), rank=8)
    extras = sum(2 * 8 * (rows + columns) for rows, columns in sizes.shapes)
    assert sizes.folded(fold) == sizes.P0 - (sizes.p - sizes.n) + extras, name


def test_gate_is_0_at_0_and_half_at_the_root_of_eps_and_steepens():
    a = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    for eps in (0.1, 1e-2, 1e-4):
        g = eq.gate(a, eps)
        assert g[0] == 0 and float(g[2]) == pytest.approx(1 / (1 + eps))
        assert float(eq.gate(torch.tensor(eps).sqrt(), eps)) == pytest.approx(0.5)
    assert eq.gate(a, 1e-4)[1] > eq.gate(a, 0.1)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shut_and_open_gates_are_exact(dtype):
    h, out = torch.randn(2, 5, 8).to(dtype), torch.randn(2, 5, 8).to(dtype) * 1e3
    assert torch.equal(eq.gated(h, out, torch.tensor(0.0)), h)
    assert torch.equal(eq.gated(h, out, torch.tensor(1.0)), out)


def test_a_gate_between_mixes():
    h, out = torch.zeros(1, 1, 2), torch.tensor([[[2.0, 4.0]]])
    assert torch.allclose(eq.gated(h, out, torch.tensor(0.25)), torch.tensor([[[0.5, 1.0]]]))


def test_annealing_waits_and_then_has_equal_ratios():
    assert {eq.annealed(t) for t in (0.0, 0.3, 0.8)} == {1e3}
    values = [eq.annealed(0.8 + t / 20) for t in range(5)]
    assert values[0] == pytest.approx(1e3) and values[-1] == pytest.approx(1e-4)
    assert len({round(b / a, 9) for a, b in pairwise(values)}) == 1


@pytest.mark.parametrize("eps", [10.0, 0.1, 1e-4])
@pytest.mark.parametrize("removal", [0.0, 0.25, 0.5])
def test_gates_keep_the_budget_and_the_order(eps, removal):
    b = torch.tensor([0.5, -1.0, 2.0, 0.1, 0.2, -0.4, 1.1, 0.9])
    g = eq.within_budget(b, eps, removal)
    assert float(eq.budget(g, removal)) == pytest.approx(0, abs=0.02)
    order = g[b.argsort()]
    assert bool((order.diff() >= 0).all()) and float(g.min()) >= 0 and float(g.max()) <= 1


def test_a_small_eps_polarises():
    g = eq.within_budget(torch.linspace(-1, 1, 8), 1e-4, 0.25)
    assert int(((g > 0.1) & (g < 0.9)).sum()) <= 1 and int((g > 0.9).sum()) >= 5


def test_equal_signals_give_equal_gates():
    g = eq.within_budget(torch.zeros(5), 1.0, 0.4)
    assert torch.allclose(g, torch.full((5,), 0.6), atol=1e-3)


def test_similarity_and_influence_against_loops():
    states = torch.randn(4, 7, 5)
    found = eq.similarity(states)
    for i in range(4):
        for j in range(4):
            cosines = [torch.cosine_similarity(states[i, t], states[j, t], dim=0) for t in range(7)]
            assert float(found[i, j]) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-6)
    assert torch.allclose(eq.influence(states), 1 - found.diagonal(1), atol=1e-6)


def test_taylor_by_hand():
    assert float(eq.taylor([torch.tensor([1.0, 2.0]), torch.tensor([3.0])],
                           [torch.tensor([2.0, -2.0]), torch.tensor([-1.0])])) == 5  # fmt: skip


def test_low_rank_is_the_best_of_its_rank():
    W = torch.randn(6, 4)
    B, A = eq.low_rank(W, 2)
    rest = torch.linalg.svdvals(W)[2:]
    assert B.shape == (6, 2) and A.shape == (2, 4)
    assert float((W - B @ A).norm()) == pytest.approx(float(rest.norm()), rel=1e-5)


def test_tail_and_logits_vanish_for_the_teacher_itself():
    h, z = torch.randn(2, 3, 4), torch.randn(2, 3, 9)
    assert float(eq.tail(h, h)) == 0 and float(eq.logit_distillation(z, z)) == pytest.approx(0, abs=1e-7)
    assert float(eq.tail(torch.zeros_like(h), h)) == pytest.approx(1)
    p, q = z.softmax(-1), (2 * z).softmax(-1)
    by_hand = sum(float(p[i, j, k] * math.log(p[i, j, k] / q[i, j, k])) for i in range(2) for j in range(3)
                  for k in range(9)) / 6  # fmt: skip
    assert float(eq.logit_distillation(2 * z, z)) == pytest.approx(by_hand, rel=1e-4)


def test_cache_bytes_of_llama_2():
    assert eq.cache_bytes(32, 32, 128) == 524_288


def test_the_budget_is_solved_in_units_of_the_signals_own_spread():
    """By a root finder of scipy, for signals of another middle and another size."""
    b = 1e-3 * torch.tensor([0.5, -1.0, 2.0, 0.1, 0.2, -0.4, 1.1], dtype=torch.float64) + 7
    u = (b - b.median()) / (b - b.median()).abs().median()

    def over(c: float) -> float:
        return float(eq.budget(eq.gate((u - c).clamp(min=0), 0.3), 0.4))

    c = optimize.brentq(over, -1e3, float(u.max()), xtol=1e-13)
    by_scipy = eq.gate((u - c).clamp(min=0), 0.3)
    torch.testing.assert_close(eq.within_budget(b, 0.3, 0.4), by_scipy, atol=1e-6, rtol=0)
    assert (
        float(by_scipy.min()) == 0 and 0.1 < float(by_scipy[by_scipy > 0].min()) < 0.9
    )  # neither all open nor all shut


def test_a_gate_takes_the_precision_of_what_it_scales():
    h, out = torch.zeros(1, 1, 2, dtype=torch.bfloat16), torch.ones(1, 1, 2, dtype=torch.bfloat16)
    for g in (torch.tensor(0.25), torch.full((1, 1, 1), 0.25)):  # one gate, or one for each of a batch
        assert eq.gated(h, out, g).dtype == torch.bfloat16


def test_weights_without_their_gradients_are_refused():
    with pytest.raises(ValueError, match="zip"):
        eq.taylor([torch.ones(2)], [torch.ones(2), torch.ones(1)])


def test_a_low_rank_has_no_more_columns_than_the_matrix():
    B, A = eq.low_rank(torch.randn(3, 5), 5)
    assert B.shape == (3, 3) and A.shape == (3, 5)


def reads(seed: int, count: int = 40, size: int = 4) -> torch.Tensor:
    """Inputs (size, count) of which some directions are strong and some weak."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, count, generator=draw) * torch.tensor([3.0, 1.0, 0.5, 2.0])[:, None]


def test_the_mean_by_regression_answers_nearest_to_all_members():
    W = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    X = [reads(seed) for seed in (1, 2, 3)]

    def apart(shared: torch.Tensor) -> float:
        return float(sum(((shared - W[k]) @ X[k]).square().sum() for k in range(3)))

    found = eq.regression_mean(W, torch.stack([x @ x.T for x in X]))
    stacked = torch.cat(X, 1).T
    by_hand = torch.linalg.lstsq(stacked, torch.cat([W[k] @ X[k] for k in range(3)], 1).T).solution.T
    assert apart(by_hand) <= apart(found) < 1.01 * apart(by_hand)  # but for what keeps it invertible
    assert apart(found) < 0.97 * apart(W.mean(0))


def test_the_mean_of_equal_members_is_each_whatever_they_read():
    W = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    C = torch.stack([reads(1) @ reads(1).T, torch.zeros(4, 4)])  # the second has read nothing
    assert torch.allclose(eq.regression_mean(torch.stack([W, W]), C), W, atol=1e-5)


def test_a_low_rank_of_inputs_answers_nearest_for_what_is_read():
    W, x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), reads(1)
    B, A = eq.low_rank_of_inputs(W, x @ x.T, 2)
    assert B.shape == (6, 2) and A.shape == (2, 4)
    plain, best = eq.low_rank(W, 2), torch.linalg.svdvals(W @ x)[2:].square().sum()
    missed = [float(((W - b @ a) @ x).square().sum()) for b, a in ((B, A), plain)]
    assert missed[0] < 1.02 * float(best) < 0.9 * missed[1]
    whole = eq.low_rank_of_inputs(W, x @ x.T, 4)
    assert torch.allclose(whole[0] @ whole[1], W, atol=1e-4)


def test_hard_concrete_gates_are_often_exact_and_open_as_often_as_said():
    u = torch.linspace(5e-4, 1 - 5e-4, 1000, dtype=torch.float64)
    for b in (-2.0, 0.0, 1.5):
        g = eq.hard_concrete(torch.full_like(u, b), u)
        assert float((g > 0).double().mean()) == pytest.approx(float(eq.open_share(torch.tensor([b]))), abs=2e-3)
        assert bool((g.diff() >= 0).all()) and float(g.min()) == 0 and float(g.max()) == 1
    assert float(eq.hard_concrete(torch.tensor(0.0), torch.tensor(0.5))) == pytest.approx(0.5)
    assert float(eq.open_share(torch.tensor([-9.0, 9.0]))) == pytest.approx(0.5, abs=1e-3)
