"""What stored vectors have lost, measured at home: where nothing changed, where something did, and the limit."""

import copy

import pytest
import torch

from lab.hyperfd.drift import MOST_DRIFT, HeldBack
from lab.hyperfd.learning import MOST_ERROR_SUM, Record, RoundData, _RoundLosses

from . import small


@pytest.fixture
def ranker():
    torch.manual_seed(0)
    return small.HOW.ranker(torch.Size([3]), small.stream().codes().shape[1])


X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))


def test_nothing_is_lost_where_nothing_changes(ranker):
    held = HeldBack.of(ranker, X, small.HOW)
    later, drift = held.carried(torch.zeros(held.vectors.shape[1], held.vectors.shape[1]), ranker, X)
    assert drift == pytest.approx(0, abs=1e-6) and torch.allclose(later.vectors, held.vectors, atol=1e-6)
    assert held.picks.shape == (8, 16) and int(held.picks.max()) < 40


def test_a_changed_extractor_shows_and_losses_add_up(ranker):
    held, changed = HeldBack.of(ranker, X, small.HOW), copy.deepcopy(ranker)
    none = torch.zeros(held.vectors.shape[1], held.vectors.shape[1])
    with torch.no_grad():
        changed.extractor.each[2].weight.add_(0.3 * torch.randn_like(changed.extractor.each[2].weight))
    first, lost = held.carried(none, changed, X)
    second, still = first.carried(none, changed, X)
    assert 0.01 < lost == pytest.approx(still)
    _, back = second.carried(none, ranker, X)
    assert back == pytest.approx(0, abs=1e-6)


def test_a_record_that_has_lost_too_much_is_not_learned_from_any_longer(ranker):
    platform, v = small.platform(), torch.nn.functional.normalize(torch.randn(4, 128), dim=1)
    platform.memory = [Record(name, v, (0, 1), (1.0, 2.0)) for name in "abc"]
    platform.note_drift([MOST_DRIFT / 2, 1.1 * MOST_DRIFT])
    assert [record.error for record in platform.memory] == [MOST_DRIFT / 2, MOST_ERROR_SUM + 1.1 * MOST_DRIFT, 0.0]
    data = RoundData(X, Record("own", v, (0, 1), (1.0, 2.0)), platform.memory, platform.codes)
    losses = _RoundLosses(ranker, platform.synapses, data, small.HOW)
    assert [record.name for record, *_ in losses.replayable] == ["a", "c"]
