"""Paths: packed, the same however pictures are batched, and read so that what was planted is found and noise is not."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lab.decoupling import paths
from lab.decoupling.layers import recording
from lab.decoupling.paths import (
    UNKNOWN,
    Paths,
    class_paths,
    class_similarity,
    probe,
    record,
    separation,
)
from tests.decoupling.families import gated

SIZES = (9, 6, 17)


def made(bits: np.ndarray, labels, predicted=None, sizes=SIZES) -> Paths:
    """Paths of given bits."""
    labels = np.asarray(labels)
    names = tuple("abcdef"[: len(sizes)])
    return Paths(
        names, sizes, np.packbits(bits.astype(bool), axis=1), labels, labels if predicted is None else predicted
    )


def planted(count: int = 200, classes: int = 4, sizes=SIZES, seed: int = 0) -> Paths:
    """Layer a is noise, layer b has a filter for each class (with errors), layer c is always or never on."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    a = rng.random((count, sizes[0])) < 0.5
    b = (labels[:, None] == np.arange(sizes[1])) ^ (rng.random((count, sizes[1])) < 0.05)
    c = np.broadcast_to(np.arange(sizes[2]) % 2 == 0, (count, sizes[2]))
    return made(np.concatenate([a, b, c], 1), labels)


def noise(count: int = 120, classes: int = 4, seed: int = 0) -> Paths:
    rng = np.random.default_rng(seed)
    return made(rng.random((count, sum(SIZES))) < 0.5, rng.integers(classes, size=count))


# -- recording -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    decoupled, _ = gated("resnet")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(75, 3, 16, 16, generator=generator) + torch.randn(75, 3, 1, 1, generator=generator)
    return decoupled, x, torch.arange(75) % 5


def test_a_path_is_the_bits_of_one_forward_pass(resnet):
    decoupled, x, y = resnet
    seen = record(decoupled, [(x, y)])
    with torch.no_grad(), recording(decoupled.model) as records:
        answer = decoupled.model(x)
    expected = torch.cat([found[0].z for found in records], 1).numpy()
    assert (seen.bits == expected.astype(bool)).all()
    assert (seen.predicted == answer.argmax(1).numpy()).all() and (seen.labels == y.numpy()).all()
    for name, site, found in zip(seen.layers, decoupled.sites, records, strict=True):
        assert name == site.layer and (seen.layer(name) == found[0].z.numpy()).all()
    assert 0 < seen.conditional().mean() < 1


def test_eight_bits_are_a_byte(resnet):
    decoupled, x, y = resnet
    seen = record(decoupled, [(x, y)])
    filters = sum(site.filters for site in decoupled.sites)
    assert seen.packed.dtype == np.uint8 and seen.packed.shape == (75, -(-filters // 8))
    assert len(seen) == 75 and repr(seen) == f"Paths(75 pictures, 6 layers, {filters} filters)"


@pytest.mark.parametrize("size", [1, 7, 32, 64, 75, 200])
def test_batches_of_any_size_give_the_same_paths(resnet, size):
    decoupled, x, y = resnet
    whole, parts = record(decoupled, [(x, y)]), record(decoupled, DataLoader(TensorDataset(x, y), batch_size=size))
    assert (whole.packed == parts.packed).all() and (whole.labels == parts.labels).all()
    assert (whole.predicted == parts.predicted).all()


def test_any_order_gives_the_same_paths(resnet):
    decoupled, x, y = resnet
    order = torch.randperm(75, generator=torch.Generator().manual_seed(0))
    there, back = record(decoupled, [(x, y)]), record(decoupled, [(x[order], y[order])])
    assert (there.take(order.numpy()).packed == back.packed).all()


@pytest.mark.parametrize("size", [1, 7, 75])
def test_large_pictures_pass_a_few_at_a_time_however_they_are_batched(resnet, size, monkeypatch):
    decoupled, x, y = resnet
    monkeypatch.setattr(paths, "VALUES", 10 * x[0].numel())
    passes = []
    hook = decoupled.model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    parts = record(decoupled, DataLoader(TensorDataset(x, y), batch_size=size))
    hook.remove()
    assert passes == [10] * 8
    assert (parts.packed == record(decoupled, [(x, y)]).packed).all() and (parts.labels == y.numpy()).all()


def test_a_limit_is_the_first_pictures(resnet):
    decoupled, x, y = resnet
    few = record(decoupled, [(x[:20], y[:20]), (x[20:], y[20:])], limit=33)
    assert len(few) == 33 and (few.packed == record(decoupled, [(x, y)]).packed[:33]).all()


@pytest.mark.parametrize("batch", [lambda x: x, lambda x: (x,), lambda x: (x, torch.zeros(len(x), 4))])
def test_pictures_without_class_numbers_are_recorded(resnet, batch):
    decoupled, x, _ = resnet
    seen = record(decoupled, (batch(part) for part in x.split(10)))  # a generator
    assert len(seen) == 75 and set(seen.labels) == {UNKNOWN}


def test_recording_leaves_mode_generator_and_gates_alone(resnet):
    decoupled, x, y = resnet
    decoupled.model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    record(decoupled, DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before) and decoupled.model.training
    with pytest.raises(RuntimeError):
        record(decoupled, [torch.zeros(40, 5, 8, 8)])
    assert torch.equal(torch.get_rng_state(), before) and decoupled.model.training
    decoupled.model.eval()


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 16, 16)]])
def test_no_picture_is_one_line(resnet, batches):
    with pytest.raises(ValueError, match="hold no picture"):
        record(resnet[0], batches)


def test_an_unknown_layer_is_one_line():
    with pytest.raises(ValueError, match="no gated layer 'z': the nearest are"):
        planted().layer("z")


# -- reading ---------------------------------------------------------------------------------------------------------


def test_states_count_always_never_and_sometimes():
    bits = np.array([[1, 0, 1, 0], [1, 0, 0, 1]])
    states = made(bits, [0, 1], sizes=(3, 1)).states()
    assert states.loc["a"].tolist() == [1, 1, 1] and states.loc["b"].tolist() == [0, 0, 1]
    assert made(bits, [0, 1], sizes=(3, 1)).conditional().tolist() == [False, False, True, True]


def test_the_on_rate_is_a_mean_over_layers():
    assert made(np.array([[1, 1, 0, 0]]), [0], sizes=(3, 1)).on_rate() == pytest.approx((2 / 3 + 0) / 2)


def test_class_paths_are_frequencies_within_classes():
    seen = planted()
    told, labels, bits = class_paths(seen), seen.labels, seen.bits
    assert told.shape == (4, sum(SIZES))
    for label in range(4):
        assert told[label] == pytest.approx(bits[labels == label].mean(0))
    assert class_paths(made(bits[:2], [7, 3])).tolist() == bits[[1, 0]].astype(float).tolist()  # classes in order


def test_taken_paths_are_those_pictures():
    seen, chosen = planted(), np.array([5, 2, 9])
    few = seen.take(chosen)
    assert (few.bits == seen.bits[chosen]).all() and few.labels.tolist() == seen.labels[chosen].tolist()
    assert (seen.take(seen.labels == 1).labels == 1).all()


def test_likeness_lies_within_its_bounds():
    for layer in "abc":
        alike = class_similarity(planted(), layer)
        assert alike == pytest.approx(alike.T) and np.diag(alike).tolist() == [1] * 4
        assert (np.abs(alike) <= 1 + 1e-9).all()
    assert (class_similarity(planted(), "c") == np.eye(4)).all()  # nothing in it is conditional


def test_likeness_is_one_for_like_classes_and_minus_one_for_opposite_ones():
    bits = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    alike = class_similarity(made(bits, [0, 1, 2, 3], sizes=(4,)), "a")
    assert alike[0, 1] == pytest.approx(1) and alike[0, 2] == pytest.approx(-1) and alike[2, 3] == pytest.approx(1)


def test_separation_by_hand():
    """Jaccard of pairs: (1100, 1100) 1, (0110, 0111) 2/3; between: 1/3 and 1/4, twice each."""
    seen = made(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]), [0, 0, 1, 1], sizes=(4,))
    chosen = made(np.delete(seen.bits, 1, axis=1), seen.labels, sizes=(3,))  # the second filter is always on
    found = separation(seen, permutations=9)
    again = separation(chosen, permutations=9)
    assert found == again
    assert found.within == pytest.approx((1 + 1 / 2) / 2)  # 100 and 100; 010 and 011
    assert found.between == pytest.approx(0)


def test_planted_classes_are_apart_and_noise_is_not():
    told = separation(planted(), permutations=199)
    assert told.p == 1 / 200 and told.within > told.between and told.permutations == 199
    assert separation(planted(), "b", permutations=199).p == 1 / 200
    p = [separation(noise(seed=seed), permutations=99, seed=seed).p for seed in range(20)]
    assert 0.25 < np.mean(p) < 0.75 and min(p) < 0.4 and max(p) > 0.6  # as good as uniform
    assert separation(planted(), "a", permutations=99).p > 0.02


def test_separation_is_reproducible_and_leaves_the_labels():
    seen = noise()
    before = seen.labels.copy()
    assert separation(seen, permutations=50, seed=3) == separation(seen, permutations=50, seed=3)
    assert (seen.labels == before).all()


def test_paths_of_one_class_cannot_be_apart():
    with pytest.raises(ValueError, match="all paths are of one class"):
        separation(noise(classes=1))


def test_a_layer_with_nothing_to_compare_is_one_line():
    with pytest.raises(ValueError, match="c has no filter that is on for some pictures only"):
        separation(planted(), "c")


def test_the_probe_finds_what_was_planted_above_its_control():
    told = probe(planted(300, seed=0), planted(300, seed=1))
    assert list(told.columns) == ["bits", "shuffled"] and list(told.index) == ["a", "b", "c"]
    assert 1 < told.bits["b"] <= 2  # four classes are two bits
    assert told.bits["b"] - told.shuffled["b"] > 1
    assert abs(told.bits["a"] - told.shuffled["a"]) < 0.15 and told.bits["a"] < 0.1
    assert told.bits["c"] == pytest.approx(0, abs=0.02)  # always or never on: not one bit


def test_the_probe_of_noise_is_like_its_control():
    told = probe(noise(400, seed=0), noise(400, seed=1))
    assert told.bits.max() < 0.05 and (told.bits - told.shuffled).abs().max() < 0.1


def test_a_class_that_was_never_learned_cannot_be_probed():
    """Its pictures would else count as those of another class."""
    learn, held_out = planted(200), planted(200, seed=1)
    with pytest.raises(ValueError, match=r"^probe: held_out has pictures of class 0, 3, learn has none") as caught:
        probe(learn.take((learn.labels == 1) | (learn.labels == 2)), held_out)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="all pictures of learn are of class 2"):
        probe(learn.take(learn.labels == 2), held_out.take(held_out.labels == 2))


def test_classes_that_are_not_held_out_do_no_harm():
    """Two of four classes held out: their entropy is one bit, which layer b tells as nearly as all four."""
    held_out = planted(300, seed=1)
    told = probe(planted(300), held_out.take(held_out.labels < 2))
    assert told.shuffled["b"] + 0.3 < told.bits["b"] <= 1
