"""What leaves a client with noise: from one release, of bounded parts, by the accountant; and what attacks find."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import lab
from lab.core.data import faces
from lab.core.training import seeded
from lab.hyperfd import accounting, privacy
from lab.hyperfd import equations as eq
from lab.hyperfd.client import DataOwner
from lab.hyperfd.features import samples
from lab.hyperfd.learning import RoundConfig, vectors
from lab.hyperfd.messages import Upload

from . import small

NOISE = (8.0, 1e-5)


# -- the accountant ----------------------------------------------------------------------------------------------------


def exact_delta(noise, epsilon):
    """Of one Gaussian mechanism of sensitivity 1 (Balle and Wang, 2018, theorem 8)."""
    a, b = 1 / (2 * noise), epsilon * noise
    return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 4.0, 8.0, 16.0])
def test_the_noise_is_enough_and_not_much_more(epsilon):
    noise = accounting.noise_multiplier(epsilon, 1e-5)
    assert exact_delta(noise, epsilon) < 1e-5 < exact_delta(0.7 * noise, epsilon)
    assert accounting.spent(noise, 1e-5, 1) <= epsilon * 1.001
    assert epsilon < accounting.spent(noise, 1e-5, 4) < 4 * epsilon


def test_without_opacus_one_line_names_the_extra(monkeypatch):
    for name in ("opacus", "opacus.accountants", "opacus.accountants.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs opacus: pip install 'shrinklab\[privacy\]'"):
        accounting.spent(1.0, 1e-5, 1)


# -- one release -------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 9), width=st.integers(1, 5), clip=st.floats(0.1, 9), size=st.floats(0, 50), data=st.data())
def test_one_picture_moves_the_moments_by_no_more_than_their_sensitivity(n, width, clip, size, data):
    spread, seed = data.draw(st.booleans()), data.draw(st.integers(0, 99))
    random = torch.Generator().manual_seed(seed)
    z, other = (size * torch.randn(n, width, generator=random, dtype=torch.float64) for _ in range(2))
    neighbour = torch.cat([other[:1], z[1:]])
    away = (eq.clipped_moments(z, clip, spread) - eq.clipped_moments(neighbour, clip, spread)).norm()
    assert float(away) <= 2 * (2**0.5 if spread else 1) * clip / n + 1e-9


def test_without_noise_and_clipping_the_release_is_the_meta_vector_of_all_pictures():
    z = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    for spread in (True, False):
        v = eq.released(eq.clipped_moments(z, 100.0, spread), 100.0, 30, 0.0, torch.zeros(10 if spread else 5), spread)
        torch.testing.assert_close(v, eq.meta_vector(z, spread), atol=1e-4, rtol=1e-3)


def test_noise_is_in_units_of_what_one_picture_moves():
    q, draw = torch.zeros(4), torch.tensor([3.0, 0, 0, 0])
    v = eq.released(q, 2.0, 10, 0.5, draw)  # 0.5 of 2 √2 · 2 / 10, thrice, in the mean of the first of two numbers
    assert float(v[0]) == pytest.approx(1, abs=1e-3) and float(v[1:].abs().max()) < 1e-3
    full = eq.released(torch.tensor([0.0, 0, 1, 1]), 2.0, 10, 0.5, torch.tensor([3.0, 0, 0, 0]))
    m = 3 * 0.5 * 2 * 2**0.5 * 2 / 10
    expected = torch.nn.functional.normalize(torch.tensor([m, 0, (2 - m * m) ** 0.5, 2**0.5]), dim=0)
    torch.testing.assert_close(full, expected, atol=1e-4, rtol=1e-4)


def private_client(which=0, secret=1, **options):
    return small.client(which, noise=NOISE, secret=secret, **options)


def test_a_private_round_sees_no_picture_but_through_its_release(monkeypatch):
    """Two owners whose releases are equal send the same, whatever their pictures."""
    platform, sent = small.platform(), []
    monkeypatch.setattr(eq, "clipped_moments", lambda z, clip, spread=True: torch.linspace(-1, 1, 128).abs())
    for which in (0, 3):
        owner = private_client(which)
        with seeded(0):
            offer = platform.offer()
            rows = owner.recommend(offer, 3).rows
            message, _ = owner.upload(offer, rows, [1.0, 2.0, 3.0])
        sent.append((rows, Upload.from_bytes(message, platform.shape)))
    (rows, a), (other, b) = sent
    assert rows == other and torch.equal(a.vectors, b.vectors) and a.boxes == a.images
    assert all(torch.equal(w, b.weights[name]) for name, w in a.weights.items())
    assert all(map(torch.equal, a.Omega, b.Omega))
    assert float(a.D.abs().max()) == a.error == 0
    before = platform.bases[0].weights
    assert all(
        torch.equal(w, before[n]) == n.startswith("extractor.") for n, w in a.weights.items() if n != "scorer.2.bias"
    )


def test_an_owner_releases_once_and_again_only_where_another_owner_is_made():
    platform, owner = small.platform(), private_client()
    with seeded(0):
        first, _ = owner.upload(platform.offer(), [0, 1], [1.0, 2.0])
        again, _ = owner.upload(platform.offer(), [2, 3], [1.0, 2.0])
        sent = [Upload.from_bytes(message, platform.shape).vectors for message in (first, again)]
        assert torch.equal(*sent) and len(sent[0].unique(dim=0)) == 1
        platform.accept(first)
        owner.upload(platform.offer(), [2, 3], [1.0, 2.0])  # the extractor is as it was
        small.client(1).run_round(platform, 2, 4)
        with pytest.raises(ValueError, match="a second release would spend as much again"):
            owner.upload(platform.offer(), [2, 3], [1.0, 2.0])


def test_noise_is_from_the_system_where_no_secret_is_given():
    platform = small.platform()
    releases = []
    for secret in (None, None, 5, 5):
        with seeded(0):
            owner = private_client(secret=secret)
            owner.recommend(platform.offer(), 2)
        releases.append(owner.release[1])
    assert not torch.equal(releases[0], releases[1]) and torch.equal(releases[2], releases[3])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"noise": (0, 1e-5)}, r"noise=\(0, 1e-05\): give \(epsilon, delta\)"),
        ({"noise": (1.0, 1.0)}, "delta between 0 and 1"),
        ({"noise": (1.0,)}, "give"),
        ({"noise": (math.nan, 1e-5)}, "give"),
        ({"noise": -1.0}, "or 0 for none"),
        ({"noise": "much"}, "or 0 for none"),
        ({"noise": NOISE, "features": "handmade"}, "with features='handmade': one picture's part"),
        ({"noise": NOISE, "stale": "pooled"}, "with stale='pooled': one picture's part"),
        ({"noise": NOISE, "by": "offline"}, "with stale='pooled'"),
    ],
    ids=str,
)
def test_noise_that_promises_nothing_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        lab.HyperFD(**fields)


def test_a_number_as_noise_warns_and_works():
    with pytest.warns(
        FutureWarning, match=r"HyperFD\(noise=NUMBER\) goes in version 0.4: write noise=\(epsilon, delta\)"
    ):
        recipe = lab.HyperFD(noise=0.3, steps=3, m=16, R=4, K=2, trials=4)
    assert len(recipe.run(small.stream(tasks=3), progress=False).served) == 3


def test_a_private_run_says_so_and_is_saved_and_loaded(tmp_path):
    recipe = lab.HyperFD(noise=NOISE, steps=3, m=16, R=4, K=2, trials=4)
    outcome = recipe.run(small.stream(tasks=3), progress=False)
    assert any("(8, 1e-05)-differentially private" in note for note in outcome.report.notes)
    outcome.save(tmp_path / "saved")
    assert lab.load(tmp_path / "saved").recipe == recipe


# -- attacks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    """Pictures of two domains, the client's and public ones: (k, 4, 64, 64) each."""
    return {(d, seed): samples(faces.composed(d, seed=seed)) for d in ("portraits", "low light") for seed in (0, 1, 2)}


@pytest.fixture(scope="module")
def ranker():
    with seeded(0):
        return RoundConfig().ranker(torch.Size([4, 64, 64]), 10).eval()


def release(ranker, x, epsilon, seed):
    """What an owner of these pictures sends, (R, d); epsilon=None: without noise."""
    with seeded(seed):
        if epsilon is None:
            return vectors(ranker, x, RoundConfig())
        owner = DataOwner(x.mean((2, 3)), torch.eye(4), lambda rows: [], RoundConfig(), (epsilon, 1e-5), secret=seed)
        owner.x = x
        return owner._vectors(ranker)


@pytest.mark.slow
def test_pictures_are_not_made_of_an_upload(ranker, pictures):
    """Pictures alone are decoded in part; what many together give is no nearer to them than to a stranger's."""
    mine, public, others = (pictures["portraits", seed] for seed in range(3))
    with torch.no_grad():
        alone = [privacy.reconstruction(ranker, ranker.extractor(x[None, None]), x[None], public) for x in mine[:8]]
    assert sum(alone) / 8 > 0.05, alone
    for epsilon in (None, 8.0):
        gained = [
            [privacy.reconstruction(ranker, release(ranker, mine, epsilon, seed), x, public) for x in (mine, others)]
            for seed in range(3)
        ]
        assert sum(a - b for a, b in gained) / 3 < 0.15, (epsilon, gained)


@pytest.mark.slow
def test_membership_shows_little_in_subsets_of_32_and_nothing_with_noise(ranker, pictures):
    for epsilon in (None, 8.0, 1.0):
        near, traced = [], []
        for domain in ("portraits", "low light"):
            mine, others, public = (pictures[domain, seed] for seed in range(3))
            for seed in range(3):
                uploaded = release(ranker, mine, epsilon, seed)
                near.append(privacy.membership(ranker, uploaded, mine, others))
                traced.append(privacy.traced(ranker, uploaded, mine, others, public))
        most = 0.25 if epsilon is None else 0.15  # without noise the second finds 0.60 over all domains
        assert abs(sum(near) / 6 - 0.5) < 0.15 and abs(sum(traced) / 6 - 0.5) < most, (epsilon, near, traced)


@pytest.mark.slow
def test_what_pictures_share_is_what_vectors_are_for_and_is_blurred_by_a_small_epsilon(ranker, pictures):
    """Little light shows: it is a property of the data set, which a recommendation is to hang on."""
    found = {}
    for epsilon in (None, 0.1):
        sent = {
            key: torch.cat([release(ranker, pictures[key], epsilon, 100 * key[1] + k)[:1] for k in range(12)])
            for key in pictures
        }
        known = [sent[domain, 1] for domain in ("portraits", "low light")]
        found[epsilon] = privacy.told_apart(*known, tuple(sent[domain, 0] for domain in ("portraits", "low light")))
    assert found[None] > 0.95 and found[0.1] < 0.85, found
