"""What an outcome ships: an engine that answers as the network does, a page, and pictures of where the time goes."""

import pytest
import torch

import lab
from lab.core import kernels

needs_c = pytest.mark.skipif(kernels.lib is None, reason="the C kernels are not built")


@pytest.fixture(scope="module")
def outcome():
    return lab.SparseByteNN(steps=3, regroup_every=1, search="sort", sparsity=0.5).run(progress=False)


@pytest.fixture(scope="module")
def pictures():
    return torch.cat([x for x, _ in lab.tasks.digits(size=32, channels=3).batches])[:100]


def answer(outcome, pictures):
    with torch.no_grad():
        return outcome.model(pictures)


@pytest.mark.slow
@needs_c
@pytest.mark.parametrize("options", [{}, {"measure": False}, {"dense": True, "measure": False}])
def test_the_engine_answers_as_the_network_does(outcome, pictures, options):
    engine, exact = outcome.engine(**options), answer(outcome, pictures)
    assert (engine(pictures) - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.slow
@needs_c
def test_only_the_dense_engine_keeps_its_zeros(outcome):
    dense, sparse = (outcome.engine(dense=dense, measure=False) for dense in (True, False))
    assert len(sparse.data) < 0.8 * len(dense.data) and len(dense.data) == outcome.report["packed bytes"].before
    assert set(dense.profile(2).form[1:14]) == {"dense"} and set(sparse.profile(2).form[1:14]) == {"sparse"}


@pytest.mark.slow
@needs_c
def test_in_int8_it_names_nearly_the_same_classes(outcome, pictures):
    engine = outcome.engine(calibrate=pictures[:32])
    same = (engine(pictures).argmax(1) == answer(outcome, pictures).argmax(1)).float().mean()
    assert same > 0.9 and len(engine.data) < 0.6 * len(outcome.engine(measure=False).data)


class Sorted(torch.nn.Module):
    """What no engine has."""

    def forward(self, x):
        return x.sort(1).values


@needs_c
def test_a_network_that_the_engine_has_in_part_is_pruned_and_runs_in_segments():
    body = (torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2), Sorted(), torch.nn.Conv2d(8, 8, 1))
    net = torch.nn.Sequential(*body, torch.nn.Flatten(), torch.nn.Linear(8 * 49, 4))
    x = torch.randn(8, 3, 16, 16)
    task = lab.Task(model=net, batches=[x], score=lambda net: 0.0)
    outcome = lab.SparseByteNN(steps=2).run(task, progress=False)
    assert "packed bytes" not in outcome.report and outcome.report["blocks"].after < outcome.report["blocks"].before
    assert any(note.startswith("not packed: ") and "aten.sort" in note for note in outcome.report.notes)
    with pytest.raises(ValueError, match=r"sort \(sort\) is aten.sort"):
        outcome.engine(strict=True)
    engine = outcome.engine()
    assert repr(engine) == "Segments(2 in the engine, 1 operators in torch)"
    assert torch.allclose(engine(x), outcome.model(x), atol=1e-5)


@needs_c
def test_the_page_holds_both_networks(outcome, tmp_path):
    page = outcome.export_web(tmp_path / "page", labels=[str(i) for i in range(10)], mean=0.5)
    assert page.name == "index.html" and {"model.sbnn", "dense.sbnn"} <= {p.name for p in page.parent.iterdir()}


@pytest.mark.slow
@needs_c
def test_layer_times_and_the_widget(outcome):
    import lab.sparsebytenn.view as view

    table = view.layer_times(outcome, repeats=2)
    assert list(table.columns) == ["layer", "operator", "blocks kept", "dense", "sparse"] and (table.dense >= 0).all()
    assert len(view.layers(outcome, repeats=2).data) == 2
    assert repr(view.browser(outcome, mean=0.5)) == "Classifier(no browser has shown it yet)"


def test_the_kept_speeds_rise_with_the_share_removed():
    import lab.sparsebytenn.view as view

    shares, times = zip(*view.speedups(), strict=True)
    assert shares == (0.0, 0.3, 0.5, 0.7, 0.9) and list(times) == sorted(times)
