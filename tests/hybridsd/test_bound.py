"""Two bound things: nothing held out was learned, the reader reads, the models draw, and the kept figures are drawn."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from lab.core import cost, store
from lab.core.data.pairs import LABELS
from lab.core.ranking_metrics import interval
from lab.hybridsd import bound, equations, view
from lab.hybridsd.bound import embedded, held_out, learned, rendered
from lab.hybridsd.solvers import fresh


def test_no_caption_held_out_was_learned_and_every_part_was():
    there, here = ({pair.caption for pair in made} for made in (learned(), held_out()))
    assert len(there) == 1152 and len(here) == 288 and not there & here
    for name, values in LABELS.items():
        assert {getattr(pair, name) for pair in learned()} == set(values)


def test_the_schedule_is_shifted_for_its_size():
    scheduler = embedded().scheduler
    shares = fresh(scheduler, 25).sigmas[:-1]
    even = fresh(type(scheduler).from_config(scheduler.config, flow_shift=1.0), 25).sigmas[:-1]
    torch.testing.assert_close(shares, equations.shifted_share(even, 8 / 32))


@pytest.mark.slow
def test_the_reader_reads_true_pictures():
    x, labels = rendered(held_out(200, 77))
    right = bound.reader().read(x) == labels
    assert right.all(1).double().mean() > 0.97
    assert (bound.reader().read(x) == labels.roll(1, 0)).all(1).double().mean() < 0.05


@pytest.mark.slow
def test_a_plain_pipeline_with_the_autoencoder_draws_the_cloud_alone_bit_for_bit():
    folder, scenes = (store.artefact(f"{name}/model_index.json").parent for name in ("bound", "hybridsd"))
    vae = AutoencoderKL.from_pretrained(scenes / "vae")
    pipe = StableDiffusionPipeline.from_pretrained(folder, vae=vae, local_files_only=True)
    pipe.to(dtype=torch.float32)  # transformers loads the half precision that it finds, diffusers single
    pipe.set_progress_bar_config(disable=True)
    text, generator = "a red circle left of a blue square", torch.Generator().manual_seed(2)
    theirs = pipe(text, num_inference_steps=5, guidance_scale=4.0, generator=generator, output_type="pt").images
    assert torch.equal(embedded().draw(text, steps=[5, 0], guidance=4.0, seed=2).pictures, theirs)


def test_the_edge_has_at_most_27_percent_of_the_cloud():
    large, small = (cost.parameters(unet) for unet in embedded().unets)
    assert small <= 0.27 * large


def test_the_figures_that_are_drawn_are_those_that_are_kept():
    kept = json.loads(store.artefact("bound/figures.json").read_text())
    table = bound.view.contest()
    assert bound.view.figures() == kept["figures"] and len(table) == len(kept["rows"])
    drawn = {line.name: line for line in bound.view.claim().data}
    assert list(drawn) == list(bound.view.SPLITS)
    for name, line in drawn.items():
        rows = table[table.kind == name]
        assert list(line.x) == sorted(set(rows.k))
        assert list(line.y) == pytest.approx([rows[rows.k == k].accuracy.mean() for k in line.x])
        assert (line.error_y.array >= 0).all() and (line.error_y.arrayminus >= 0).all()
    assert [len(drawing.data) for drawing in (bound.view.withdrawn(), bound.view.windows())] == [1, 1]
    with pytest.raises(ValueError, match=r"name='speed' is not allowed: give 'accuracy' or 'frechet'"):
        bound.view.claim("speed")


def test_a_table_sets_every_way_beside_the_split_on_the_same_seeds():
    rows = bound.view.contest()
    table = view.beside(rows, 10)
    at = rows.set_index(["kind", "k", "seed"]).accuracy.sort_index()
    apart = interval(at["edge first", 10] - at["hybrid", 10])
    assert table.loc["edge first", "ahead of the split"] == f"{apart.mean:+.1f} ({apart.low:+.1f} to {apart.high:+.1f})"
    assert table.loc["the split", "ahead of the split"] == "" and "window" not in table.index
    assert set(table.seeds) == {rows.seed.nunique()}
    assert "DeepCache" in view.beside(view.contest("baselines"), 10).index
    with pytest.raises(ValueError, match=r"k=3 was not drawn: give one of \[5, 8"):
        view.beside(rows, 3)
    with pytest.raises(ValueError, match=r"name='faults' is not allowed"):
        view.contest("faults")
