"""An upload that lost a race is merged, or learned again; the trials are paid once."""

import threading

import pytest
import torch

from lab.core.service import ServiceError
from lab.core.training import seeded
from lab.hyperfd import bounds
from lab.hyperfd.bounds import Rejected, Stale
from lab.hyperfd.client import Remote
from lab.hyperfd.database import KEPT
from lab.hyperfd.messages import Upload

from . import small
from .test_database import served_often, small_upload
from .test_platform import TOKEN, changed, served, state  # noqa: F401


def test_a_late_upload_adds_its_step_to_what_others_learned():
    platform = small.platform()
    late = small_upload(platform, 0)
    upload, start = Upload.from_bytes(late, platform.shape), platform.bases[0]
    with seeded(0):
        small.client(1).run_round(platform, 2, 4)
    first, maps = {n: w.clone() for n, w in platform.ranker.state_dict().items()}, platform.bases[1].D
    platform.accept(late)
    assert platform.version == 2 and [record.rows[:2] for record in platform.memory][1] == (0, 1)
    for name, w in platform.ranker.state_dict().items():
        torch.testing.assert_close(w, first[name] + 2**-0.5 * (upload.weights[name] - start.weights[name]))
    moved = torch.nn.functional.normalize(upload.vectors + upload.vectors @ maps, dim=-1)
    torch.testing.assert_close(platform.memory[1].vectors, moved)


def test_an_upload_from_a_version_that_is_gone_is_learned_again_from_the_same_trials():
    platform, client, tried = small.platform(), small.client(), []
    with seeded(0):
        offer = platform.offer()
    client.evaluate = lambda rows: tried.append(list(rows)) or [float(row) for row in rows]
    side = Overtaken(platform, KEPT)
    with seeded(0):
        _, results, _ = client.run_round(side, 2, 4)
    assert len(tried) == 1 and side.offers == 2 and platform.memory[-1].results[:2] == tuple(results)
    with pytest.raises(Stale, match=f"learned from version 0, the platform is at {platform.version}: ask for an offer"):
        platform.accept(client.upload(offer, [0, 1], [1.0, 2.0])[0])


class Overtaken:
    """A platform at which others come first, the first time."""

    def __init__(self, platform, others):
        self.platform, self.others, self.offers = platform, others, 0

    def offer(self):
        self.offers += 1
        return self.platform.offer()

    def accept(self, content):
        for _ in range(self.others):
            first = small_upload(self.platform)
            self.platform.accept(first)
        self.others = 0
        self.platform.accept(content)


class Broken:
    """A platform that fails in this way."""

    def __init__(self, error):
        self.error, self.offer = error, small.platform().offer

    def accept(self, content):
        raise self.error


@pytest.mark.parametrize("error", [Rejected("no"), Stale("late"), ServiceError("gone")], ids=repr)
def test_trials_that_are_paid_are_told_with_the_error(error):
    with seeded(0), pytest.raises(type(error)) as caught:
        small.client().run_round(Broken(error), 2, 4)
    (note,) = caught.value.__notes__[-1:]
    assert "these trials are paid, `send(side, rows, results)` takes them: [" in note


def test_a_late_upload_that_would_spoil_the_order_is_to_be_learned_again(monkeypatch):
    platform = small.platform()
    late = small_upload(platform, 0)
    with seeded(0):
        small.client(1).run_round(platform, 2, 4)
    before = state(platform)
    monkeypatch.setattr("lab.hyperfd.bounds.ordered", lambda ranker, *_: 0.0 if ranker is not platform.ranker else 1.0)
    platform.memory = [type(r)(**{**vars(r), "best": 1.0}) for r in platform.memory]
    with pytest.raises(Stale, match=r"orders what clients tried .* it learned from version 0, ask for an offer"):
        platform.accept(late)
    assert state(platform) == before


def test_a_late_upload_is_bounded_from_where_it_began():
    platform = served_often(None, 1)
    late = small_upload(platform)
    platform.accept(small_upload(platform, 2))
    far = {"w.encoder.0.weight": platform.bases[1].weights["encoder.0.weight"] + 0.06}
    with pytest.raises(Rejected, match=r"'encoder\.0\.weight' moved by 0\.0"):
        platform.accept(changed(late, **far))
    platform.accept(late)
    assert platform.version == 3


def test_many_clients_at_once_over_http_all_get_in(served, monkeypatch):  # noqa: F811
    platform, port = served
    monkeypatch.setattr("lab.hyperfd.client.WAITS", (0.05,) * 200)
    errors, ready = [], threading.Barrier(12)

    def one(number):
        client, side = small.client(number % 6), Remote(f"http://127.0.0.1:{port}", TOKEN)
        try:
            offer = side.offer()
            ready.wait(60)  # all have the same version
            rows = [number, 17 - number]
            client.send(side, rows, client.evaluate(rows), offer)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == [] and platform.version == 12
    assert {record.rows for record in platform.memory} == {(number, 17 - number) for number in range(12)}


def test_results_that_contradict_what_many_have_found_are_refused():
    platform = small.platform()
    for number in range(bounds.ENOUGH + 1):
        with seeded(number):
            small.client(2).run_round(platform, 3, 10)
    rows, before = list(range(0, 18, 2)), state(platform)
    honest = small.client(2).evaluate(rows)
    with seeded(9), pytest.raises(Rejected, match=r"its results contradict those of 6 others \(tau -0"):
        small.client(2).send(platform, rows, [max(honest) + min(honest) - y for y in honest])
    assert state(platform) == before
    with seeded(9):
        small.client(2).send(platform, rows, honest)
