"""The stream of tasks: resumable, deterministic, better with every task; rivals, ablations, bad input."""

from dataclasses import replace

import pytest
import torch

import lab
from lab.core.data.faces import FaceTask
from lab.core.spaces import streams
from lab.core.spaces.streams import Stream, coded
from lab.core.training import seeded
from lab.hyperfd import baselines, learning, live, privacy, recipe, space
from lab.hyperfd.client import DataOwner
from lab.hyperfd.features import samples
from lab.hyperfd.learning import (
    DECAY,
    EXTRACTOR_LR,
    FRESH_EVERY,
    MOST_ERROR_SUM,
    Record,
    RoundConfig,
    RoundData,
    Synapses,
    map_records,
    train_round,
    vectors,
)
from lab.hyperfd.platform import Platform

from . import small

FAST = dict(K=2, trials=6, R=4, m=16, steps=30)


def run(seed=0, task=None, **fields):
    return lab.HyperFD(**{**FAST, **fields}).run(task or small.stream(), seed=seed, progress=False)


@pytest.fixture(scope="module")
def outcome():
    return run()


def test_every_task_is_served_once_and_what_was_tried_is_noted(outcome):
    assert sorted(one.name for one in outcome.served) == [f"set {k}" for k in range(6)]
    for one in outcome.served:
        assert len(one.rows) == 2 and one.tried[:2] == one.rows and len(set(one.tried)) == 6
        truth = small.stream().scores[one.task]
        assert one.tried_results == tuple(truth[list(one.tried)].tolist())
        assert one.regret == pytest.approx(float(truth.max() - truth[list(one.rows)].max()))
    assert outcome.report["bytes as numbers, as sent"].before == 6 * 40 * 3 * 4
    assert any("the default is one configuration, not 2" in note for note in outcome.report.notes)
    assert outcome.report["trials"].after == 36 and outcome.report["trials"].before == 108
    assert 0 < outcome.served[0].sent < 500_000


@pytest.mark.slow
def test_it_gets_better_with_the_tasks_it_has_served():
    """On a stream whose rule can be learned; controls: chance, and one that does not learn."""
    many = small.stream(tasks=10)
    outcomes = [run(seed, many, steps=40, trials=8) for seed in range(2)]
    later = sum(one.regret for o in outcomes for one in o.served[5:]) / 10
    chance = sum(one.random for o in outcomes for one in o.served[5:]) / 10
    untrained = [run(seed, many, steps=1, trials=8, lr=1e-9) for seed in range(2)]
    blind = sum(one.regret for o in untrained for one in o.served[5:]) / 10
    assert later < 0.5 * chance and later < 0.5 * blind


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path, outcome, monkeypatch):
    served = recipe._StreamRun._serve_task

    def killed(self, position, progress):
        if position == 3:
            raise KeyboardInterrupt
        return served(self, position, progress)

    monkeypatch.setattr(recipe._StreamRun, "_serve_task", killed)
    settings, stream = lab.HyperFD(**FAST), small.stream()
    with pytest.raises(KeyboardInterrupt):
        settings.run(stream, progress=False, checkpoint=tmp_path)
    monkeypatch.setattr(recipe._StreamRun, "_serve_task", served)
    again = settings.run(stream, progress=False, checkpoint=tmp_path)
    assert again.trace == outcome.trace and again.report == outcome.report
    with pytest.raises(ValueError, match="belongs to HyperFD"):
        replace(settings, steps=7).run(stream, progress=False, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to HyperFD"):  # the same names, another table
        settings.run(replace(stream, scores=stream.scores + 1), progress=False, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to HyperFD"):  # the same table, other data
        settings.run(replace(stream, data=lambda name: stream.data(name) + 1), progress=False, checkpoint=tmp_path)


def test_live_mode_trains_and_keeps_what_it_trained(tmp_path):
    table, tried = small.stream(), []

    def train(item):
        tried.append(item)
        name, choice = item
        return float(table.scores[table.names.index(name), table.choices.index(choice)])

    live = Stream(names=table.names, choices=table.choices, data=table.data, train=train)
    settings = lab.HyperFD(**{**FAST, "steps": 2})
    first = settings.run(live, progress=False, checkpoint=tmp_path / "run")
    assert len(tried) == 36 and first.served[0].regret is None and "forgetting" not in first.report
    assert (tmp_path / "run" / "trained" / "journal.jsonl").exists()
    settings.run(live, progress=False, checkpoint=tmp_path / "run")
    assert len(tried) == 36


@pytest.mark.slow
def test_detectors_are_really_trained_in_live_mode(tmp_path):
    names = ("portraits", "groups", "small", "rotated")
    tasks = {name: few(lab.tasks.faces(name), 32, 6) for name in names}
    stream = live.stream(tasks, count=6, budget=12, journal=tmp_path)
    found = lab.HyperFD(K=1, trials=2, R=2, m=16, steps=2).run(stream, progress=False)
    assert sorted(one.name for one in found.served) == sorted(names)
    assert all(0 <= value <= 100 for one in found.served for value in one.tried_results)
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 8 and "composed" in repr(found)
    brighter = replace(tasks["small"].learn, images=[image // 2 for image in tasks["small"].learn.images])
    other = {**tasks, "small": replace(tasks["small"], learn=brighter)}
    with pytest.MonkeyPatch.context() as patched:  # pictures that look alike by name and number are trained anew
        patched.setattr(live, "evaluated", lambda *_: {"ap50": 7.0})
        rows = [found.served[[one.name for one in found.served].index("small")].tried]
        again = live.stream(other, count=6, budget=12, journal=tmp_path)
        assert again.evaluate(list(other).index("small"), rows[0]) == [7.0, 7.0]
    sizes = found.report["bytes as JPEG, as sent"]
    assert 4 * 32 * 1000 < sizes.before < 4 * 32 * 160 * 160 and sizes.after == sum(one.sent for one in found.served)
    assert "stayed, as JPEG" in lab.view(found).frame.svg
    assert set(found.recommend(tasks["small"], 1)[0]) == {"width", "side", "iou", "ratio", "weight", "optimiser"}
    owner = live.client(tasks["small"], RoundConfig(R=2, m=16, steps=2), budget=3)
    platform = Platform(tuple(owner.x.shape[1:]), owner.codes, owner.config)
    with seeded(0):
        best, results, size = owner.run_round(platform, 1)
    assert len(best.rows) == len(results) == 1 and size > 0 and platform.version == 1


def few(task, learn, held_out):
    return FaceTask(
        learn=task.learn[range(learn)], held_out=task.held_out[range(held_out)], name=task.name, note=task.note
    )


@pytest.mark.parametrize("by", baselines.BASELINES)
def test_baselines_serve_the_same_stream(by):
    found = run(by=by)
    assert all(one.regret >= 0 and one.sent == 0 for one in found.served) and not found.state
    assert [one.name for one in found.served] == [one.name for one in run(by="random").served]
    with pytest.raises(ValueError, match="has no model"):
        found.recommend(torch.zeros(10, 3))
    if by == "default":
        assert all(one.rows == (8,) for one in found.served)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"stale": "reuse"},
        {"stale": "drop"},
        {"stale": "pooled"},
        {"features": "frozen"},
        {"features": "mean"},
        {"features": "handmade"},
        {"triplet": 0.0},
        {"si": 0.0},
        {"by": "offline"},
        {"noise": (8.0, 1e-5)},
    ],
    ids=str,
)
def test_every_ablation_runs(fields):
    found = run(steps=3, **fields)
    assert len(found.served) == 6 and found.recommend(small.stream().data("set 1"), 3)
    if fields.get("stale") == "drop":
        assert len(found.state["memory"]) == 1
    if fields.get("by") == "offline":
        assert [one.sent > 0 for one in found.served] == [True] * 5 + [False]
        assert list(found.meta_vectors()) == [one.name for one in found.served[:5]]


def test_only_with_all_pictures_at_hand_do_old_lists_teach_the_extractor():
    """The present list says nothing here, so that what moves the extractor is the old one, through its pictures."""
    tasks, how = small.stream(), replace(small.HOW, steps=8, si=0.0, triplet=0.0, lr=0.1)
    with seeded(0):
        old = how.ranker(torch.Size((3,)), tasks.codes().shape[1])
    x, before = tasks.data("set 0"), tasks.data("set 1")
    memory = [Record("old", vectors(old, before, how), (0, 4, 9), (1.0, 3.0, 2.0))]
    record, found = Record("own", torch.zeros(4, 128), (0, 1), (1.0, 1.0)), []
    for memory_samples in ((), (before,)):
        data = RoundData(x, record, memory, tasks.codes(), memory_samples)
        with seeded(1):
            learned = train_round(old, Synapses.of(list(old.parameters())), data, how)
        fresh = len(range(0, how.steps, FRESH_EVERY))
        decayed = (1 - EXTRACTOR_LR * how.lr * DECAY) ** fresh  # what AdamW does to a weight whose gradient is 0
        weights = zip(learned.ranker.extractor.parameters(), old.extractor.parameters(), strict=True)
        found.append(max(float((new - decayed * was).detach().abs().max()) for new, was in weights))
    assert found[0] < 1e-6 < 1e-3 < found[1]


def test_all_recommenders_of_an_order_are_taught_by_the_same_trials_and_other_orders_by_others():
    random, default = (run(by=by, steps=1) for by in ("random", "default"))
    for one, other in zip(random.served, default.served, strict=True):
        both = [
            [row for row in each.tried[len(each.rows) :] if row not in {*one.rows, *other.rows}]
            for each in (one, other)
        ]
        shared = min(map(len, both))
        assert shared >= 2 and both[0][:shared] == both[1][:shared]
    assert len({tuple(one.tried) for one in random.served}) == 6
    far = run(seed=2**32 - 1, by="random", steps=1)  # the largest seed, and another one at every place
    assert far.served[1].tried != random.served[1].tried


@pytest.mark.slow
def test_what_a_table_does_not_know_is_never_chosen():
    holed = small.stream(hole=True)
    for by in ("hyperfd", *baselines.BASELINES):
        found = run(task=holed, by=by, steps=2)
        assert all(5 not in one.tried for one in found.served)


def test_a_saved_platform_recommends_alike(outcome, tmp_path):
    outcome.save(tmp_path)
    data = small.stream().data("set 4")
    choices = outcome.recommend(data, 3)
    assert lab.load(tmp_path).recommend(data, 3) == choices
    platform = outcome.platform()
    assert platform.version == 6 and len(platform.memory) == 6
    with seeded(0):
        small.client(3, platform.config).run_round(platform, 2, 4)
    assert platform.version == 7
    assert set(choices[0]) == {"width", "side", "kind"} and set(outcome.meta_vectors()) == set(small.stream().names)


@pytest.mark.slow
def test_the_same_table_in_another_order_gives_the_same_recommendations():
    """Configurations are known by their decisions here; nothing but the row numbers may differ."""
    table = small.stream(hole=True)
    order = torch.randperm(len(table.choices), generator=torch.Generator().manual_seed(0)).tolist()
    other = replace(
        table,
        choices=[table.choices[row] for row in order],
        scores=table.scores[:, order],
        default=order.index(table.default),
    )
    for by in ("hyperfd", "offline", *baselines.BASELINES):
        tried = [
            [
                [(stream.choices[row], y) for row, y in zip(one.tried, one.tried_results, strict=True)]
                for one in run(task=stream, by=by, steps=3).served
            ]
            for stream in (table, other)
        ]
        assert tried[0] == tried[1], by


def test_which_of_equal_scores_is_recommended_hangs_on_the_seed_and_not_on_the_table():
    tasks, found = small.stream(), []
    codes = tasks.codes()
    ranker = small.HOW.ranker(torch.Size([3]), codes.shape[1])
    with torch.no_grad():
        ranker.common.weight.zero_()  # untrained, it is all that tells configurations apart
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0)).tolist()
    for seed in range(4):
        client, other = (DataOwner(tasks.data("set 0"), c, len, small.HOW, seed=seed) for c in (codes, codes[order]))
        rows = client.ranked(ranker, 3).rows
        assert tuple(order[row] for row in other.ranked(ranker, 3).rows) == rows
        found.append(rows)
    assert len(set(found)) == 4 and (0, 1, 2) not in found


def test_what_maps_lose_of_old_records_is_measured_by_their_clients_at_home(outcome):
    """The present client's own subsets hardly feel a map's error; those of earlier ones do."""
    steps = [step.terms for step in outcome.trace if step.stage == "drift"]
    assert len(steps) == len(outcome.served) - 1 and all(0 <= s["mean"] <= s["largest"] for s in steps)
    errors = [record["error"] for record in outcome.state["memory"]]
    assert max(errors) == steps[-1]["largest"] and errors[-1] == 0
    row = outcome.report["error of the maps"]
    assert (row.before, row.after) == (steps[-1]["own error"], steps[-1]["mean"])
    assert not any(step.stage == "drift" for step in run(stale="reuse").trace)


@pytest.mark.slow
def test_what_fails_after_the_last_task_loses_nothing(outcome, monkeypatch):
    def gone(data):
        raise OSError("the disk is gone")

    monkeypatch.setattr(recipe, "raw_bytes", gone)
    found = run()
    assert [one.tried for one in found.served] == [one.tried for one in outcome.served]
    assert "bytes of the data: OSError: the disk is gone" in found.report.notes
    assert found.report["regret"] == outcome.report["regret"] and "stayed, as" not in lab.view(found).frame.svg
    monkeypatch.setattr(recipe, "forgetting", lambda *_: 1 / 0)
    assert any("no report: ZeroDivisionError" in note for note in run().report.notes)


# -- the parts of a round ----------------------------------------------------------------------------------------------


def test_an_update_that_changes_nothing_leaves_scores_and_memory():
    """Learning at rate 0: the transformation is the identity, stored vectors and scores stay."""
    client, platform = small.client(), small.platform(RoundConfig(R=4, m=16, steps=3, lr=1e-12))
    client.config = platform.config
    with seeded(0):
        client.run_round(platform, 2, 4)
        before = platform.ranker.scores(platform.memory[0].vectors, client.codes).detach().clone()
        other = small.client(1)
        other.config = platform.config
        other.run_round(platform, 2, 4)
    after = platform.ranker.scores(platform.memory[0].vectors, client.codes).detach()
    assert torch.allclose(before, after, atol=1e-4) and platform.memory[0].error < 1e-4


def test_lists_never_mix_tasks(monkeypatch):
    seen = []
    real = learning.eq.ranking_loss
    monkeypatch.setattr(learning.eq, "ranking_loss", lambda s, r: (seen.append(s.shape[-1]), real(s, r))[1])
    platform = small.platform()
    with seeded(0):
        small.client(0).run_round(platform, 2, 4)
        small.client(1).run_round(platform, 2, 5)
        seen.clear()
        small.client(2).run_round(platform, 2, 7)
    assert set(seen) == {4, 5, 7}


def test_records_whose_error_grew_are_given_up():
    v = torch.nn.functional.normalize(torch.randn(4, 6), dim=1)
    memory = [Record("a", v, (0, 1), (1.0, 2.0), error=MOST_ERROR_SUM - 0.01)]
    older = map_records(memory, torch.zeros(6, 6), 0.1, RoundConfig())
    assert older[0].error > MOST_ERROR_SUM and torch.allclose(older[0].vectors, v, atol=1e-6)
    assert map_records(memory, torch.eye(6), 0.1, RoundConfig(stale="reuse")) == memory
    assert map_records(memory, torch.eye(6), 0.1, RoundConfig(stale="drop")) == []


@pytest.mark.slow
def test_synapses_hold_weights_that_mattered():
    """The same round twice from the same state: with a strong penalty important weights move less, others as before."""
    platform, how = small.platform(), RoundConfig(R=4, m=8, steps=30, si=0.0)
    client = small.client()
    with seeded(0):
        record = Record("a", torch.zeros(4, 128), (0, 3, 5, 9), (1.0, 2.0, 3.0, 4.0))
        synapses = Synapses.of(list(platform.ranker.parameters()))
        first = train_round(platform.ranker, synapses, RoundData(client.x, record, [], client.codes), how)
    important = [o > o.quantile(0.9) for o in map(torch.flatten, first.synapses.Omega)]
    moved = {}
    for si in (0.0, 10.0):
        with seeded(1):
            data = RoundData(small.client(5).x, record, [], client.codes)
            second = train_round(first.ranker, first.synapses, data, replace(how, si=si))
        pairs = zip(first.ranker.parameters(), second.ranker.parameters(), important, strict=True)
        moved[si] = sum(float((a - b).detach().flatten()[which].abs().sum()) for a, b, which in pairs)
    assert moved[10.0] < 0.5 * moved[0.0]


# -- privacy -----------------------------------------------------------------------------------------------------------


def test_auc_by_hand():
    assert privacy.auc(torch.tensor([2.0, 3]), torch.tensor([0.0, 1])) == 1
    assert privacy.auc(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5


def test_membership_shows_without_noise_and_drowns_in_it(outcome):
    """One picture a subset gives all away, the upload being its own vector; noise takes that."""
    ranker, _ = outcome.ranker()
    with seeded(0):
        members, others = torch.randn(8, 3), torch.randn(40, 3)
        with torch.no_grad():
            uploaded = ranker.extractor(members[:, None])
        open_ = privacy.membership(ranker, uploaded, members, others)
        drowned = privacy.membership(ranker, uploaded + 3 * torch.randn_like(uploaded), members, others)
    assert open_ > 0.95 and drowned < 0.75


@pytest.mark.slow
def test_tracing_finds_pictures_of_small_uploads_and_no_others():
    """Four pictures in subsets of two; the control are pictures of another seed, which the client does not have."""
    how, found = RoundConfig(R=4, m=2), {"members": [], "strangers": []}
    with seeded(0):
        ranker = how.ranker(torch.Size([4, 64, 64]), 10).eval()
        for domain in ("portraits", "low light"):
            mine, others, known, more = (samples(lab.tasks.faces(domain, seed=seed)) for seed in range(4))
            uploaded = vectors(ranker, mine[:4], how)
            found["members"].append(privacy.traced(ranker, uploaded, mine[:4], others, known))
            found["strangers"].append(privacy.traced(ranker, uploaded, more, others, known))
    assert min(found["members"]) > 0.8 and abs(sum(found["strangers"]) / 2 - 0.5) < 0.12


# -- streams and bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": ["a"]}, "give at least two different data sets"),
        ({"choices": [(1,), (1,)]}, "give two or more, all different"),
        ({"default": 99}, "default=99: give a number in 0..17"),
        ({"scores": torch.zeros(3, 3)}, r"scores \(3, 3\): give finite \(6, 18\)"),
        ({"train": len}, "one of them"),
        ({"scores": torch.full((6, 18), torch.nan)}, "scores know 0 choices of 'set 0': at least 2"),
    ],
)
def test_a_stream_that_does_not_fit_is_one_line(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        replace(small.stream(), **change)
    assert "\n" not in str(caught.value)


def test_codes_are_one_hot_and_log_scaled():
    codes = small.stream().codes()
    assert codes.shape == (18, 3 + 1 + 3 + 1 + 2)
    assert codes[:, 3].unique().tolist() == [-1, 0, 1] and bool((codes[:, :3].sum(1) == 1).all())


def test_what_cannot_run_is_told_in_one_line():
    with pytest.raises(TypeError, match="HyperFD runs on a Stream, not on a str"):
        lab.HyperFD().run("faces")
    with pytest.raises(ValueError, match="device='cuda'"):
        lab.HyperFD(**FAST).run(small.stream(), device="cuda")
    with pytest.raises(ValueError, match=r"m=15 is not allowed: give an integer >= 16"):
        lab.HyperFD(m=15)
    with pytest.raises(ValueError, match=r"trials=3 is not allowed: give an integer >= 5"):
        lab.HyperFD(trials=3)
    with pytest.raises(ValueError, match="settings could not be read"):
        lab.HyperFD.paper("faces")
    bad = Stream(names="ab", choices=[(1,), (2,)], data=lambda name: torch.randn(32, 2), train=lambda item: None)
    with pytest.raises(ValueError, match="train gave None: give a number"):
        lab.HyperFD(K=1, trials=2, steps=1).run(bad, progress=False)


def test_a_table_of_detectors_is_read_and_a_partial_one_says_so(tmp_path):
    lines = ["domain,width,side,iou,ratio,weight,optimiser,seed,ap50,ap,seconds"]
    for domain in ("small", "grey"):
        lines += [f"{domain},0.5,128,0.35,3,1.0,sgd,0,30.0,9.0,5.0", f"{domain},1.0,96,0.35,7,2.0,adamw,1,40.5,9.0,5.0"]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([*lines, "small,0.25,96,0.35,7,2.0,adamw,1,10.0,9.0,5.0"]) + "\n")
    stream = streams.detectors(path)
    assert stream.names == ("small", "grey") and len(stream.choices) == 216 and len(stream.pool(1)) == 2
    assert stream.choices[stream.default] == (0.5, 128, 0.35, 3, 1.0, "sgd") and "5 of 2 x 216" in stream.note
    path.write_text("\n".join([*lines, "small,0.3,96,0.35,7,2.0,adamw,1,10.0,9.0,5.0"]) + "\n")
    streams.detectors.cache_clear()
    with pytest.raises(ValueError, match=r"'width': 0.3.* is none of the 216 detectors: leave its line out"):
        streams.detectors(path)
    path.write_text("domain,width\nsmall,0.5\n")
    streams.detectors.cache_clear()
    with pytest.raises(ValueError, match="column 'side' is missing"):
        streams.detectors(path)


def test_there_is_one_list_of_detectors():
    choices = streams.detector_choices()
    assert choices == sorted(one.choice for one in space.configurations())
    assert streams.DEFAULT_DETECTOR == space.DEFAULT.choice
    tasks = dict.fromkeys("ab", lab.tasks.faces("small"))
    assert tuple(streams.DETECTORS) == space.NAMES and list(live.stream(tasks).choices) == choices


@pytest.mark.slow
def test_a_platform_of_the_table_and_a_live_client_mean_the_same_by_a_row(tmp_path, monkeypatch):
    """Both optimisers are in the table, whose order was once another."""
    lines = ["domain,width,side,iou,ratio,weight,optimiser,seed,ap50,ap,seconds"]
    for place, domain in enumerate(("small", "grey")):
        lines += [
            f"{domain},{w},96,0.35,3,1.0,{o},0,{10 * w + len(o) + place},9.0,5.0"
            for w in (0.25, 0.5)
            for o in ("sgd", "adamw")
        ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    stream = streams.detectors(tmp_path / "t.csv")
    outcome = lab.HyperFD(K=1, trials=2, R=2, m=16, steps=1).run(stream, progress=False)
    trained = []
    monkeypatch.setattr(live, "evaluated", lambda task, c, budget: trained.append(c) or {"ap50": float(len(trained))})
    platform, owner = outcome.platform(), live.client(few(lab.tasks.faces("small"), 32, 4), outcome.recipe.learning())
    with seeded(0):
        found, _, _ = owner.run_round(platform, 2, 4)
    assert [stream.choices[row] for row in platform.memory[-1].rows] == [one.choice for one in trained]
    assert platform.run_id == serving_platform(outcome.recipe.learning()).run_id and len(found.rows) == 2


def serving_platform(how):
    return Platform((4, 64, 64), coded(streams.detector_choices()), how)


@pytest.mark.slow
def test_the_graph_networks_of_nine_data_sets():
    pytest.importorskip("nas_bench_graph")
    stream = lab.tasks.graphs(40)
    assert len(stream) == 9 and stream.scores.shape == (9, 40) and not stream.scores.isnan().any()
    assert stream.data("cora").shape == (40, 2)
