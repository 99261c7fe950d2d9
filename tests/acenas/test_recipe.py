"""Searches: their budget, their twins and rivals, limits, crashes, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import lab
from lab.acenas import search, view
from lab.acenas.recipe import SCORERS
from lab.acenas.scorers import SETTINGS, BoostedScorer, FitConfig, GraphScorer, Settings, is_collapsed
from lab.core import ranking_metrics

from .spaces import chains, worth

QUICK = lab.AceNAS(budget=20, rounds=2, top=3, epochs=60, pretrain_epochs=10, pretrain_batch=20)


def run(recipe=QUICK, space=None, **others):
    return recipe.run(space if space is not None else chains(), progress=False, **others)


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["gcn", "lightgbm"])
def test_what_is_found_is_better_than_chance(scorer):
    gaps = [run(replace(QUICK, scorer=scorer), seed=seed).report["regret"] for seed in range(3)]
    assert sum(row.after for row in gaps) < sum(row.before for row in gaps)
    assert min(row.after for row in gaps) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ranknet", "mse", "kl"])
def test_twins_run_and_rank(loss):
    outcome = run(replace(QUICK, loss=loss))
    assert outcome.report["kendall tau"].after > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["brp", "vanilla"])
def test_predictors_of_others_run(scorer):
    assert not is_collapsed(run(replace(QUICK, scorer=scorer, epochs=3)).scores[-1])


@pytest.mark.parametrize("scorer", sorted(search.BASELINES))
def test_rivals_train_as_many_and_none_twice(scorer):
    outcome = run(replace(QUICK, scorer=scorer))
    assert len(outcome.rows) == len(set(outcome.rows.tolist())) == 23


@pytest.mark.slow
def test_rounds_keep_to_the_budget_and_exploit_half():
    outcome = run()
    assert outcome.learned == [10, 20] and len(outcome.rows) <= 23
    second = outcome.rows[10:15].tolist()  # half of the first round's share: the best that it predicted
    unseen = [row for row in range(81) if row not in outcome.rows[:10].tolist()]
    assert second == search.best(outcome.scores[0], unseen, 5)
    top = search.best(outcome.scores[-1], range(81), 3)
    assert set(top) <= set(outcome.rows.tolist())  # the top predicted ones are trained at the end


@pytest.mark.slow
def test_the_pick_is_the_best_that_was_trained():
    outcome = run()
    best = int(outcome.rows[outcome.labels.argmax()])
    assert outcome.pick == f"architecture {best}"
    assert outcome.regret() == outcome.report["regret"].after


def test_labels_are_of_one_training_each():
    space = chains(labels=torch.stack([torch.zeros(81), torch.ones(81)], 1), truth=torch.rand(81))
    labels = space.evaluate(range(81), seed=0)
    assert set(labels) == {0.0, 1.0} and labels == space.evaluate(range(81), seed=0) != space.evaluate(
        range(81), seed=1
    )


@pytest.mark.slow
def test_a_limit_leaves_out_what_costs_more():
    outcome = run(replace(QUICK, budget=12, limit=("blocks", 3)))
    costs = outcome.context["costs"]["blocks"]
    assert costs[outcome.rows].max() <= 3
    within = [worth(c) for c, cost in zip(chains().choices, costs, strict=True) if cost <= 3]
    assert outcome.report["regret"].after == pytest.approx(max(within) - worth_of(outcome), abs=1e-9)


def worth_of(outcome) -> float:
    return worth(chains().choices[outcome.context["names"].index(outcome.pick)])


@pytest.mark.slow
def test_the_front_is_beaten_by_none():
    outcome = run()
    front = outcome.front("blocks")
    assert [c for _, c, _ in front] == sorted({c for _, c, _ in front})
    for row, label in zip(outcome.rows.tolist(), outcome.labels.tolist(), strict=True):
        cost = float(outcome.context["costs"]["blocks"][row])
        assert any(c <= cost and y >= label for _, c, y in front)


def test_a_collapsed_scorer_is_begun_again():
    class Dies(GraphScorer):
        deaths = 0

        def _descend(self, *known):
            if self.deaths < 1:
                self.deaths += 1
                with torch.no_grad():
                    for weight in self.net.parameters():
                        weight.zero_()
            else:
                super()._descend(*known)

    torch.manual_seed(0)
    scorer = Dies(chains(), Settings(), FitConfig("lambdarank", "score", 20.0, 0.2, 3))
    scorer.fit(list(range(20)), chains().truth[:20].tolist(), 0)
    assert scorer.restarts == 1 and not is_collapsed(scorer.scores())


@pytest.mark.slow
def test_pretraining_keeps_encoder_and_first_head():
    torch.manual_seed(0)
    space = chains()
    scorer = GraphScorer(space, Settings(), FitConfig("lambdarank", "score", 20.0, 0.2, 3))
    scorer.pretrain(dict(space.weak), 60, 20, None, "", progress=False)
    found = torch.corrcoef(torch.stack([scorer.scores(), space.weak["supernet"]]))[0, 1]
    assert found > 0.6 and len(scorer.net.heads) == 1


@pytest.mark.slow
def test_weak_labels_help_where_labels_are_few():
    taus = {}
    for pretrain in ("all", "none"):
        recipe = replace(QUICK, budget=8, rounds=2, pretrain=pretrain, pretrain_epochs=60, scorer="lightgbm")
        taus[pretrain] = sum(run(recipe, seed=seed).report["kendall tau"].after for seed in range(4))
    assert taus["all"] > taus["none"]


def test_trees_look_at_weak_labels():
    space = chains()
    scorer = BoostedScorer(space, FitConfig("lambdarank", "score", 20.0, 0.2, 3))
    before = scorer.features.shape[1]
    scorer.pretrain(dict(space.weak))
    assert scorer.features.shape[1] == before + 2


def test_what_fails_after_the_trainings_loses_nothing(monkeypatch):
    recipe = replace(QUICK, scorer="lightgbm")
    whole = run(recipe)
    monkeypatch.setattr(ranking_metrics, "kendall_tau", lambda *_: 1 / 0)
    found = run(recipe)
    assert torch.equal(found.rows, whole.rows) and found.pick == whole.pick and found.ranking == whole.ranking
    assert [note.partition(":")[0] for note in found.report.notes] == ["no report", "rounds"]


# -- a space of one's own ----------------------------------------------------------------------------------------------


class Train:
    """Counts its trainings on disk, and stops after some of them."""

    def __init__(self, folder, stop: int = 10**6) -> None:
        self.log, self.stop = folder / "log.jsonl", stop

    def __call__(self, graph: lab.Graph) -> float:
        done = self.seen()
        if len(done) >= self.stop:
            raise KeyboardInterrupt
        torch.rand(3)  # a training draws random numbers, which must not move the search
        self.log.write_text("\n".join(map(json.dumps, [*done, graph.operators])))
        return worth(graph.operators)

    def __repr__(self) -> str:
        return "Train"

    def seen(self) -> list:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


def own(train) -> lab.Space:
    return chains(labels=None, truth=None, train=train, n_jobs=1)


@pytest.mark.slow
def test_a_space_is_trained_as_it_is_asked_for(tmp_path):
    train = Train(tmp_path)
    outcome = run(space=own(train))
    assert len(train.seen()) == len(outcome.rows) <= 23
    assert outcome.report["accuracy"].after == outcome.labels.max() and "regret" not in outcome.report
    with pytest.raises(ValueError, match="known for tables only"):
        outcome.regret()


@pytest.mark.slow
def test_after_a_crash_nothing_is_trained_twice(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = run(space=own(Train(tmp_path / "a")))
    with pytest.raises(KeyboardInterrupt):
        run(space=own(Train(tmp_path / "b", stop=13)), checkpoint=tmp_path / "kept")
    train = Train(tmp_path / "b")
    again = run(space=own(train), checkpoint=tmp_path / "kept")
    assert len(train.seen()) == len(whole.rows) == len({tuple(operators) for operators in train.seen()})
    assert torch.equal(again.rows, whole.rows) and torch.equal(again.scores, whole.scores)
    others = (own(train), {"seed": 1}), (replace(own(train), graphs=own(train).graphs[::-1]), {})
    for space, changed in others:  # what was trained there is another seed's, another space's
        with pytest.raises(ValueError, match=r"belongs to (AceNAS with seed 0 on chains|chain, 10 passes .* seed 0)"):
            run(space=space, checkpoint=tmp_path / "kept", **changed)


@pytest.mark.parametrize("value", [np.float32(2.5), torch.tensor(2.5), torch.tensor([2.5])], ids=repr)
def test_a_training_gives_its_number_as_libraries_do(value):
    space = lab.Space(graphs=chains().graphs[:3], train=lambda graph: value, n_jobs=1)
    assert space.evaluate([0, 2], 0) == space.evaluate([0, 2], 0) == [2.5, 2.5]


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), "good", "2.5", None, torch.ones(2)], ids=str)
def test_a_training_must_give_a_number(value):
    with pytest.raises(ValueError, match=r"row \d+ \(architecture \d+\): train gave .*: give a number"):
        run(space=own(lambda graph: value))


@pytest.mark.slow
def test_lists_of_graphs_are_enough():
    space = lab.Space(graphs=[graphs[0] for graphs in chains().graphs], labels=chains().truth)
    outcome = run(space=space)
    assert "no such weak labels" in " ".join(outcome.report.notes)
    with pytest.raises(ValueError, match="give choices"):
        run(replace(QUICK, scorer="evolution"), space)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe, message",
    [
        (
            replace(QUICK, budget=90),
            "budget=90 with top=3 is more than the 81 architectures of the space: lower budget",
        ),
        (replace(QUICK, limit=("blocks", 1.0)), r"is more than the 5 architectures of the space within limit="),
        (replace(QUICK, limit=("latency_ms", 1.0)), "limit=.*: this space knows blocks"),
        (replace(QUICK, scorer="lightgbm", loss="kl"), "loss='kl' is not for scorer='lightgbm'"),
    ],
)
def test_what_does_not_fit_the_space_is_one_line(recipe, message):
    with pytest.raises(ValueError, match=message) as caught:
        run(recipe)
    assert "\n" not in str(caught.value)


def test_a_task_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="AceNAS runs on a Space, not on a Task"):
        lab.AceNAS().run(lab.tasks.digits())


def test_more_rounds_than_labels_are_refused():
    with pytest.raises(ValueError, match=r"rounds=6 is not allowed: give an integer in 1\.\.5"):
        lab.AceNAS(budget=10, rounds=6)


@pytest.mark.parametrize("name", ["benchmarks", "brp-nas", "neural-predictor"])
def test_released_settings(name):
    assert isinstance(lab.AceNAS.paper(name), lab.AceNAS)
    with pytest.raises(ValueError, match="kept for benchmarks"):
        lab.AceNAS.paper("imagenet")


# -- where an architecture stands in its table says nothing ------------------------------------------------------------


def permuted(space: lab.Space, by: int = 0) -> lab.Space:
    return space[torch.randperm(len(space), generator=torch.Generator().manual_seed(by)).tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("scorer", SCORERS)
def test_the_same_table_in_another_order_gives_the_same_search(scorer):
    """Architectures are known by their names here, and nothing but the row numbers may differ."""
    both = ("accuracy", "blocks") if scorer == "nsga2" else None
    recipe = replace(QUICK, scorer=scorer, epochs=5, pretrain_epochs=2, limit=("blocks", 7.0), objectives=both)
    space = chains(names=["".join(choice) for choice in chains().choices])
    first, other = run(recipe, space, seed=3), run(recipe, permuted(space), seed=3)
    names = [[one.context["names"][row] for row in one.rows.tolist()] for one in (first, other)]
    assert names[0] == names[1] and torch.equal(first.labels, other.labels) and first.learned == other.learned
    assert (first.pick, first.ranking, first.report) == (other.pick, other.ranking, other.report)
    assert first.trace == other.trace
    place = [other.context["names"].index(name) for name in first.context["names"]]
    assert torch.equal(first.scores, other.scores[:, place]) and torch.equal(space.truth, other.context["truth"][place])
    assert all(picture(first, index) == picture(other, index) for index in range(len(first.learned)))


def picture(outcome, index):
    points = {name: sorted(found) for name, found in view.numbers(outcome, index).items() if name != "others"}
    return points, view._best(outcome, index), view._facts(outcome, index)


def test_what_a_constant_score_exploits_hangs_on_the_seed_and_not_on_the_table(monkeypatch):
    monkeypatch.setattr(BoostedScorer, "scores", lambda self: torch.zeros(len(self.features)))
    recipe = replace(QUICK, scorer="lightgbm")
    exploited = [run(recipe, seed=seed).rows[10:15].tolist() for seed in range(4)]
    assert len({tuple(rows) for rows in exploited}) == 4 and not any(rows == sorted(rows) for rows in exploited)


@pytest.mark.parametrize("count", [3, 5, 6, 7])
def test_trees_of_few_labels_tell_architectures_apart(count):
    space = chains()
    for seed in range(4):
        scorer = BoostedScorer(space, FitConfig("lambdarank", "score", 20.0, 0.2, 3))
        scorer.pretrain(dict(space.weak))
        rows = space.mixed(seed)[:count]
        scorer.fit(rows, space.evaluate(rows, seed), seed)
        assert not is_collapsed(scorer.scores())


def test_the_draw_of_a_training_is_the_architectures_own():
    space = chains(labels=torch.rand(81, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    order = torch.randperm(81, generator=torch.Generator().manual_seed(2)).tolist()
    drawn = space.evaluate(range(81), 5)
    assert space[order].evaluate(range(81), 5) == [drawn[row] for row in order] != space[order].evaluate(range(81), 6)
    assert len({tuple(space.labels[row].tolist()).index(value) for row, value in enumerate(drawn)}) == 3


# -- what a scorer leaves when it collapses, and what it begins with ---------------------------------------------------


@pytest.mark.parametrize("pretrain", ["all", "none"])
def test_a_collapsed_scorer_gives_way_to_weak_labels_or_to_a_draw_and_the_trace_says_so(monkeypatch, pretrain):
    space = chains(labels=torch.full((81,), 70.0), truth=chains().truth)  # nothing to learn from
    outcome = run(replace(QUICK, scorer="lightgbm", pretrain=pretrain), space)
    assert all(step.terms["collapsed"] == 1 for step in outcome.trace)
    weak = space.weak["supernet"]
    expected = (weak - weak.mean()) / weak.std(correction=0) if pretrain == "all" else torch.zeros(81)
    assert torch.allclose(outcome.scores[-1].float(), expected.float(), atol=1e-4)


def test_a_graph_scorer_that_stays_collapsed_gives_its_first_weak_label():
    class Dead(GraphScorer):
        def _descend(self, *known):
            with torch.no_grad():
                for weight in self.net.parameters():
                    weight.zero_()

    space = chains()
    scorer = Dead(space, Settings(), FitConfig("lambdarank", "score", 20.0, 0.2, 3))
    scorer.pretrain(dict(space.weak), 1, 20, None, "", progress=False)
    scorer.fit(list(range(20)), space.truth[:20].tolist(), 0)
    assert scorer.collapsed and torch.equal(scorer.scores().argsort(), space.weak["supernet"].argsort())


def test_weak_labels_go_by_their_names_too():
    assert set(lab.AceNAS(pretrain=["blocks"])._weak(chains())) == {"blocks"}
    with pytest.raises(ValueError, match=r"'macs' is not a weak label of this space, which knows supernet, blocks"):
        run(replace(QUICK, pretrain=("macs",), scorer="lightgbm"))
    with pytest.raises(ValueError, match="pretrain="):
        lab.AceNAS(pretrain="cost")


def test_brp_is_pretrained_on_flops_alone_by_adamw():
    recipe = lab.AceNAS.paper("brp-nas")
    assert recipe.pretrain == ("macs",) and SETTINGS["brp"].optimiser is torch.optim.AdamW


@pytest.mark.slow
def test_trainings_run_in_workers_and_each_is_kept_as_it_comes(tmp_path, capsys):
    space = replace(chains(labels=None, truth=None, train=in_a_process), n_jobs=2)
    scores = space.evaluate([3, 5, 7], 0, tmp_path, progress=True)
    assert scores == [worth(space.choices[row]) for row in (3, 5, 7)]
    kept = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert len(kept) == 3 and "lab.map" in capsys.readouterr().err


def in_a_process(graph):
    return worth(graph.operators)
