"""Split sampling over whole pipelines: the ends are the stock pipelines bit for bit, and bad parts are named."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from lab.hybridsd.components import pipeline_parts, scaled, unscaled
from lab.hybridsd.handoff import advance, edge_half
from lab.hybridsd.pipeline import HybridPipeline, solver_of
from lab.hybridsd.sampler import HybridSampler
from lab.hybridsd.sampling import placed
from lab.hybridsd.text import token_ids

from . import small

PROMPTS = ["two cats", "a dog"]


def stock(pipe, steps, seed=0, guidance=4.0):
    """The pipeline that diffusers ships, on the same seed."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        PROMPTS, num_inference_steps=steps, guidance_scale=guidance, generator=generator, output_type="pt"
    ).images


def twin(family):
    """Two pipelines of one family that differ in their U-Net only."""
    cloud = small.FAMILIES[family](0)
    edge = type(cloud)(**{**cloud.components, "unet": small.FAMILIES[family](1).unet}) if family == "sdxl" else (
        type(cloud)(**{**cloud.components, "unet": small.FAMILIES[family](1).unet}, requires_safety_checker=False)
    )  # fmt: skip
    return cloud, edge


@pytest.mark.slow
@pytest.mark.parametrize("family", small.FAMILIES)
def test_the_ends_are_the_stock_pipelines_bit_for_bit(family):
    cloud, edge = twin(family)
    parts = cloud.components | {"force_zeros": family == "sdxl"}
    pipeline = HybridPipeline.of(parts, [edge.unet])
    assert torch.equal(pipeline.draw(PROMPTS, steps=[4, 0], guidance=4.0).pictures, stock(cloud, 4))
    assert torch.equal(pipeline.draw(PROMPTS, steps=[0, 4], guidance=4.0).pictures, stock(edge, 4))
    between = pipeline.draw(PROMPTS, steps=[2, 2], guidance=4.0).pictures
    assert not torch.equal(between, stock(cloud, 4)) and not torch.equal(between, stock(edge, 4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_other_solvers_too(kind):
    cloud, edge = twin("sd")
    cloud.scheduler = kind.from_config(cloud.scheduler.config)
    pipeline = HybridPipeline.of(cloud.components, [edge.unet])
    assert torch.equal(pipeline.draw(PROMPTS, steps=[5, 0], guidance=4.0).pictures, stock(cloud, 5))


@pytest.mark.slow
def test_a_decoder_that_gives_each_channel_its_mean_and_spread_is_the_stock_pipelines():
    cloud, edge = twin("sdxl")
    pipeline = HybridPipeline.of(cloud.components | {"force_zeros": True}, [edge.unet])
    plain = pipeline.draw(PROMPTS, steps=[3, 0], guidance=4.0).pictures
    cloud.vae.register_to_config(latents_mean=[1.0, -1.0, 0.5, 0.0], latents_std=[2.0, 3.0, 0.5, 1.0])
    found = pipeline.draw(PROMPTS, steps=[3, 0], guidance=4.0).pictures
    assert torch.allclose(found, stock(cloud, 3), atol=1e-6) and not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("config", [{}, {"shift_factor": 0.3}, {"latents_mean": [1.0] * 4, "latents_std": [3.0] * 4}])
def test_what_an_encoder_scales_its_decoder_takes_back(config):
    known = small.vae()
    known.register_to_config(**config)
    x = torch.arange(8.0).view(1, 4, 2, 1)
    assert torch.allclose(unscaled(scaled(x, known.config), known.config), x, atol=1e-5)


def test_a_picture_that_is_not_finite_is_told_and_not_black():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    with torch.no_grad():
        next(pipeline.vae.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the decoder made numbers that are not finite in float32: take its float32"):
        pipeline.draw("a dog", steps=[1, 1])


@pytest.mark.parametrize(
    "wrong",
    [{"prompts": []}, {"prompts": 5}, {"prompts": [5]}, {"guidance": float("nan")}, {"guidance": "7"}, {"seed": "a"},
     {"seed": 2**64}, {"seed": None}, {"negative": ["a", "b"]}, {"steps": 4}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_line_that_names_it(wrong):
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}=.* is not allowed: give ") as caught:
        pipeline.draw(**{"prompts": "a dog", "steps": [1, 1], **wrong})
    assert "\n" not in str(caught.value)


def test_latents_are_kept_or_their_keeping_refused():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    assert len(pipeline.draw("a dog", steps=[1, 1], keep=True).trail) == 3
    with pytest.raises(ValueError, match="leave int8 and the cloud out"):
        pipeline.draw("a dog", steps=[1, 1], keep=True, int8=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float16), (torch.float16, torch.float32),
                                    (torch.bfloat16, torch.float32)], ids=str)  # fmt: skip
def test_each_model_has_a_precision_of_its_own_and_the_cast_is_told(dtypes):
    cloud, edge = (small.unet(i).to(dtype) for i, dtype in enumerate(dtypes))
    pipeline = HybridPipeline.of(small.sd().components | {"unet": cloud}, [edge])
    mixed = pipeline.draw(PROMPTS, steps=[2, 2], guidance=4.0)
    lower = next(dtype for dtype in dtypes if dtype != torch.float32)
    told = [note for note in mixed.notes if f"to {str(lower)[6:]}: relative error" in note]
    assert len(told) == 1 and 0 < float(told[0].split()[-1]) < 0.01
    sampler = HybridSampler(pipeline, PROMPTS, 4.0)
    state = sampler.start(4).to("cpu", dtypes[0])
    state = advance(state, cloud, pipeline.scheduler, sampler.cond.to("cpu", dtypes[0]), 2).to("cpu", dtypes[1])
    assert {x.dtype for x in state.solver["model_outputs"]} == {dtypes[1]} and state.solver[
        "sigmas"
    ].dtype.itemsize == 4
    assert torch.equal(mixed.latent, edge_half(state, edge, pipeline.scheduler, sampler.cond.to("cpu", dtypes[1])))
    exact = HybridPipeline.of(small.sd().components, [small.unet(1)]).draw(PROMPTS, steps=[2, 2], guidance=4.0)
    assert 0 < float((exact.latent - mixed.latent.float()).norm() / exact.latent.norm()) < 0.05
    assert mixed.latent.dtype == dtypes[1] and mixed.pictures.dtype == torch.float32
    with pytest.raises(ValueError, match="keep=True keeps the latents of one process and precision"):
        pipeline.draw("a dog", steps=[1, 1], keep=True)


def test_a_model_that_takes_no_step_casts_nothing():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1).half()])
    whole = HybridPipeline.of(small.sd().components, [small.unet(1)])
    alone = pipeline.draw(PROMPTS, steps=[3, 0], guidance=4.0)
    assert torch.equal(alone.latent, whole.draw(PROMPTS, steps=[3, 0], guidance=4.0).latent) and not alone.notes


@pytest.mark.slow
def test_an_edge_elsewhere_gets_latents_and_memory_there():
    vae, edge = small.vae().half().to("meta"), small.unet(1).half().to("meta")
    pipeline = HybridPipeline.of(small.sd().components, [edge], vae)
    samples = pipeline.draw(PROMPTS, steps=[2, 2], guidance=4.0)
    assert (samples.latent.device.type, samples.latent.dtype) == ("meta", torch.float16)
    assert samples.pictures.shape == (2, 3, 16, 16) and "to float16: relative error" in samples.notes[0]
    sampler = HybridSampler(pipeline, PROMPTS, 4.0)
    state = sampler.cloud(sampler.start(4), 2).to("meta", torch.float16)
    assert {x.device.type for x in (state.latent, *state.solver["model_outputs"])} == {"meta"}


@pytest.mark.slow
def test_places_are_given_by_name(tmp_path):
    small.sd().save_pretrained(tmp_path / "cloud")
    small.unet(1).save_pretrained(tmp_path / "edge")
    places = {"device": "cpu", "edge_device": "cpu", "edge_dtype": torch.float16}
    pipeline = HybridPipeline.from_pretrained(tmp_path / "cloud", tmp_path / "edge", **places)
    assert [placed(unet)[1] for unet in (*pipeline.unets, pipeline.vae)] == [
        torch.float32,
        torch.float16,
        torch.float16,
    ]
    assert torch.isfinite(pipeline.draw("a dog", steps=[2, 2]).pictures).all() and not pipeline.is_in_one_place
    with pytest.raises(ValueError, match=r"device='nowhere' is not on this machine: give one of cpu"):
        HybridPipeline.from_pretrained(tmp_path / "cloud", tmp_path / "edge", edge_device="nowhere")


def test_no_guidance_runs_one_input_a_picture():
    cloud, edge = twin("sd")
    pipeline = HybridPipeline.of(cloud.components, [edge.unet])
    assert torch.equal(pipeline.draw(PROMPTS, steps=[3, 0], guidance=1.0).pictures, stock(cloud, 3, guidance=1.0))
    calls = []
    hook = pipeline.unets[0].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    for guidance in (1.0, 4.0):
        pipeline.draw(PROMPTS, steps=[1, 1], guidance=guidance)
    hook.remove()
    assert calls == [2, 4]


def test_guidance_embedded_is_not_doubled():
    pipeline = HybridPipeline.of(small.lcm(0).components, [small.lcm(1).unet])
    calls = []
    for unet in pipeline.unets:
        unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    pipeline.draw(PROMPTS, steps=[1, 2])
    assert calls == [2, 2, 2]


def test_edge_first_and_three_models():
    a, b = small.unet(0), small.unet(1)
    pipeline = HybridPipeline.of(small.sd(0).components | {"unet": b}, [a])
    assert torch.equal(
        pipeline.draw(PROMPTS, steps=[0, 3]).latent,
        HybridPipeline.of(small.sd(0).components | {"unet": a}, [b]).draw(PROMPTS, steps=[3, 0]).latent,
    )
    three = HybridPipeline.of(small.sd(0).components, [b, a])
    assert torch.isfinite(three.draw("a dog", steps=[1, 1, 1]).latent).all()


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "order"), [([2, 2], [1, 0]), ([1, 2, 1], [1, 0, 1]), ([1, 2, 1], [0, 1, 0])])
def test_the_order_is_free_and_int8_crosses_at_each_turn(steps, order):
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    free = pipeline.draw(PROMPTS, steps=steps, order=order, guidance=4.0)
    unets = [pipeline.unets[i] for i in order]
    by_hand = HybridPipeline.of(small.sd().components | {"unet": unets[0]}, unets[1:])
    assert torch.equal(free.latent, by_hand.draw(PROMPTS, steps=steps, guidance=4.0).latent)
    sent = pipeline.draw(PROMPTS, steps=steps, order=order, guidance=4.0, int8=True)
    assert sent.steps == tuple(steps) and len(sent.notes) == len(order) - 1 == len(sent.crossings)
    # what the first model has made goes down from the cloud, what the second has made goes up to it
    assert [bool(crossing.received) for crossing in sent.crossings] == [model == 0 for model in order[:-1]]
    assert all((crossing.sent > 0) != (crossing.received > 0) for crossing in sent.crossings)


@pytest.mark.parametrize("order", [[0], [0, 2], [0, -1], "01", [0, True], []], ids=str)
def test_an_order_of_no_models_is_told(order):
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    with pytest.raises(ValueError, match=r"(order|steps)=.* is not allowed: give (models of 0..1|1 integers)"):
        pipeline.draw("a dog", steps=[1, 1], order=order)


def test_the_trail_is_kept_and_the_scheduler_is_not_touched():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    before = pipeline.scheduler.timesteps.clone()
    found = pipeline.draw("a dog", steps=[2, 2], keep=True)
    assert len(found.trail) == 5 and torch.equal(found.trail[-1], found.latent)
    assert torch.equal(pipeline.scheduler.timesteps, before) and pipeline.scheduler.step_index is None
    assert found.images()[0].size == (16, 16) and found._repr_png_()[:4] == b"\x89PNG"


def test_int8_reports_its_error():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    exact, rounded = (pipeline.draw("a dog", steps=[2, 2], int8=flag) for flag in (False, True))
    assert rounded.received > 256 and "relative error" in rounded.notes[0]
    error = float((exact.latent - rounded.latent).norm() / exact.latent.norm())
    assert 0 < error < 0.05


@pytest.mark.slow
def test_the_tiny_decoder_is_plugged_in(tmp_path):
    small.sd().save_pretrained(tmp_path / "cloud")
    small.tiny_vae().save_pretrained(tmp_path / "tiny")
    small.unet(1).save_pretrained(tmp_path / "edge")
    pipeline = HybridPipeline.from_pretrained(tmp_path / "cloud", tmp_path / "edge", tmp_path / "tiny")
    assert type(pipeline.vae).__name__ == "AutoencoderTiny"
    assert pipeline.draw("a dog", steps=[1, 1]).pictures.shape == (1, 3, 16, 16)
    plain = HybridPipeline.from_pretrained(tmp_path / "cloud", tmp_path / "edge")
    assert torch.equal(plain.draw("a dog", steps=[1, 1]).latent, pipeline.draw("a dog", steps=[1, 1]).latent)


@pytest.mark.slow
@pytest.mark.parametrize("family", small.FAMILIES)
def test_a_folder_of_each_family_draws_what_its_parts_draw(tmp_path, family):
    cloud, edge = twin(family)
    cloud.save_pretrained(tmp_path / "cloud")
    edge.unet.save_pretrained(tmp_path / "edge")
    pipeline = HybridPipeline.from_pretrained(tmp_path / "cloud", tmp_path / "edge", solver="own")
    assert torch.equal(pipeline.draw(PROMPTS, steps=[3, 0], guidance=4.0).pictures, stock(cloud, 3))


def test_a_folder_with_missing_parts_names_them(tmp_path):
    small.sd().save_pretrained(tmp_path / "cloud")
    shutil.rmtree(tmp_path / "cloud" / "unet")
    shutil.rmtree(tmp_path / "cloud" / "tokenizer")
    with pytest.raises(ValueError, match=r"lacks unet, tokenizer: give the folder of a whole diffusers pipeline"):
        HybridPipeline.from_pretrained(tmp_path / "cloud")
    with pytest.raises(ValueError, match=r"holds no U-Net"):
        HybridPipeline.from_pretrained(small_folder(tmp_path), tmp_path / "cloud" / "vae" / "..")


def test_a_part_that_is_given_need_not_lie_in_the_folder(tmp_path):
    whole = small.sd()
    whole.save_pretrained(tmp_path / "cloud")
    shutil.rmtree(tmp_path / "cloud" / "vae")
    assert pipeline_parts(tmp_path / "cloud", vae=whole.vae)["vae"] is whole.vae
    with pytest.raises(ValueError, match=r"lacks vae"):
        pipeline_parts(tmp_path / "cloud")


def small_folder(tmp_path):
    small.sd().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def test_latent_spaces_that_differ_are_named():
    parts = small.sd().components
    with pytest.raises(ValueError, match="share no latent space: cross_attention_dim is 16 and 8"):
        HybridPipeline.of(parts, [small.unet(1, cross_attention_dim=8)])
    with pytest.raises(ValueError, match="share no latent space: in_channels is 4 and 8"):
        HybridPipeline.of(parts, [small.unet(1, in_channels=8, out_channels=8)])
    with pytest.raises(ValueError, match="the decoder reads 4 latent channels, the models make 8"):
        HybridPipeline.of(parts | {"unet": small.unet(0, in_channels=8, out_channels=8)})


@pytest.mark.parametrize("steps", [[3], [1, 2, 3], [-1, 4], [0, 0], [1.5, 2], [True, 3]])
def test_steps_out_of_range_are_told(steps):
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    with pytest.raises(ValueError, match="is not allowed: give 2 integers >= 0, not all 0"):
        pipeline.draw("a dog", steps=steps)


@pytest.mark.parametrize("told", [10**30, None, 0, 40], ids=str)
def test_a_tokenizer_that_does_not_know_its_length_takes_the_encoders(told):
    words = small.tokenizer()
    words.model_max_length = told
    assert token_ids(["a dog"], words, small.text_encoder()).shape == (1, 16)


class Alone:
    """A tokenizer that counts how many threads are in it at once, and keeps them apart long enough to see."""

    def __init__(self):
        self.tokenizer, self.inside, self.most = small.tokenizer(), 0, 0

    def __call__(self, *texts, **how):
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.01)
        self.inside -= 1
        return self.tokenizer(*texts, **how)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def test_a_tokenizer_is_asked_by_one_thread_at_a_time():
    """It keeps how it pads while it works: a prompt of one client had the length of another's."""
    words = Alone()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: token_ids([text], words, None), ["a", "a dog", "", "one two three"]))
    assert words.most == 1 and {x.shape for x in found} == {(1, 16)}


def test_token_ids_need_no_encoder_where_the_tokenizer_knows_its_length():
    assert token_ids(["a dog", ""], small.tokenizer(), None).shape == (2, 16)


def test_a_prompt_whose_length_nobody_knows_is_told():
    words = small.tokenizer()
    words.model_max_length = 10**30
    with pytest.raises(ValueError, match=r"no model_max_length .* set tokenizer.model_max_length, 77 for CLIP"):
        token_ids(["a dog"], words, torch.nn.Identity())


def test_a_long_prompt_is_cut_with_a_warning():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    with pytest.warns(UserWarning, match="the prompt is cut to 16 tokens, without .*zzz"):
        long = pipeline.draw("abcdefghijklmnzzz", steps=[1, 1])
    short = pipeline.draw("abcdefghijklmnzzz"[:13] + "n", steps=[1, 1])
    assert long.latent.shape == short.latent.shape


def test_an_unknown_solver_is_told():
    with pytest.raises(ValueError, match=r"solver='heun' is not allowed: give one of 'dpm\+\+', 'ddim'"):
        solver_of(small.sd().scheduler, "heun")


def test_a_damaged_folder_is_told_in_one_line(tmp_path):
    small.sd().save_pretrained(tmp_path)
    part = {
        "model_index.json": b"[",
        "unet/config.json": b"[1]",
        "vae/config.json": b"{",
        "tokenizer/tokenizer_config.json": b"{",
    }
    part["unet/diffusion_pytorch_model.safetensors"] = bytes(100)
    for name, content in part.items():
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read \(.*\): give the folder of a whole diffusers") as caught:
            HybridPipeline.from_pretrained(tmp_path, tmp_path)
        assert "\n" not in str(caught.value), name
        (tmp_path / name).write_bytes(before)
