"""Transformers of SD3, Flux and PixArt: the ends are the stock pipelines, both halves one process at any split."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtSigmaPipeline

from lab.core.service import ServiceError
from lab.hybridsd import cloud as service
from lab.hybridsd import families
from lab.hybridsd.pipeline import HybridPipeline, solver_of

from . import small

PROMPTS = ["two cats", "a dog"]
SIZES = {"sd3": None, "flux": (24, 16), "pixart": None}
GUIDED = {"sd3": {"guidance_scale": 4.0, "max_sequence_length": 16}, "pixart": {"guidance_scale": 4.0},
          "flux": {"guidance_scale": 4.0, "max_sequence_length": 16}}  # fmt: skip


def pair(name):
    """A cloud's pipeline of diffusers, and this one with an edge of half its layers."""
    stock = small.TRANSFORMERS[name]()
    edge = small.TRANSFORMERS[name](1, 1).transformer
    stock.set_progress_bar_config(disable=True)
    return stock, HybridPipeline.of(stock.components, [edge])


def stock_images(pipe, name, steps, **options):
    size = SIZES[name] or (16, 16)
    options = {"height": size[0], "width": size[1], **GUIDED[name], **options}
    if name == "pixart":
        options |= {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 16}
    generator = torch.Generator().manual_seed(3)
    return pipe(PROMPTS, num_inference_steps=steps, generator=generator, output_type="pt", **options).images


@pytest.mark.parametrize("name", small.TRANSFORMERS)
def test_the_ends_are_the_stock_pipelines(name):
    stock, pipeline = pair(name)
    images = pipeline.draw(PROMPTS, steps=[3, 0], guidance=4.0, seed=3, size=SIZES[name]).pictures
    assert torch.equal(images, stock_images(stock, name, 3))
    other = pipeline.draw(PROMPTS, steps=[1, 2], guidance=4.0, seed=3, size=SIZES[name]).pictures
    assert other.shape == images.shape and not torch.equal(other, images)


def without_t5():
    """SD3 as it is loaded where memory is short: zeros stand for what its third encoder would say."""
    stock, _ = pair("sd3")
    stock.text_encoder_3, stock.tokenizer_3 = None, None
    return stock, HybridPipeline.of(stock.components, [small.sd3_transformer(1, 1)])


def test_sd3_without_its_t5_is_the_stock_pipeline_and_goes_over_the_network():
    stock, pipeline = without_t5()
    images = pipeline.draw(PROMPTS, steps=[2, 0], guidance=4.0, seed=3).pictures
    assert torch.equal(images, stock_images(stock, "sd3", 2, max_sequence_length=256))
    far, how = edge_of(pipeline), {"guidance": 4.0, "seed": 5}
    made = [x.draw(PROMPTS, steps=[1, 1], **how).latent for x in (far, pipeline)]
    assert torch.equal(*made)
    again = HybridPipeline.of(pipeline.components(), [pipeline.unets[1]])
    assert torch.equal(again.draw(PROMPTS, steps=[1, 1], **how).latent, made[0])


class Here:
    """A cloud in this process, asked in bytes both ways."""

    def __init__(self, pipeline):
        from starlette.testclient import TestClient

        self.door = TestClient(service.application(pipeline), base_url="http://127.0.0.1")
        self.client = service.CloudClient("http://127.0.0.1:1")

    def half(self, state, until, **how):
        self.client.request = self.request
        return self.client.half(state, until, **how)

    def request(self, method, path, *, query=None, body=b"", most=0):
        found = self.door.request(method, path, params=query, content=body)
        if found.status_code != 200:
            raise ServiceError(found.json()["error"])
        return found.content


def edge_of(pipeline):
    return HybridPipeline([pipeline.unets[1]], pipeline.scheduler, pipeline.text, pipeline.vae, Here(pipeline))


@pytest.mark.parametrize("name", small.TRANSFORMERS)
def test_over_the_network_is_one_process_at_every_split_and_in_any_order(name):
    pipeline = pair(name)[1]
    far, how = edge_of(pipeline), {"guidance": 4.0, "seed": 5, "size": (24, 32)}
    for steps, order in [*(([k, 3 - k], None) for k in range(4)), ([1, 1, 1], [1, 0, 1])]:
        made = [x.draw(PROMPTS, steps=steps, order=order, **how) for x in (far, pipeline)]
        assert torch.equal(made[0].latent, made[1].latent) and not made[0].notes, steps
        assert made[0].pictures.shape == (2, 3, 24, 32) and (made[0].received > 0) == (steps[:1] != [0])


def test_guidance_is_an_input_of_flux_and_a_second_pass_elsewhere():
    for name, inputs in (("flux", 2), ("sd3", 4), ("pixart", 4)):
        pipeline, counted = pair(name)[1], []
        hook = pipeline.unets[0].register_forward_pre_hook(
            lambda _, args, kwargs, to=counted: to.append(len(args[0] if args else kwargs["hidden_states"])),
            with_kwargs=True,
        )
        latents = [pipeline.draw(PROMPTS, steps=[1, 0], guidance=s, size=(16, 16)).latent for s in (3.0, 5.0)]
        hook.remove()
        assert counted == [inputs, inputs] and not torch.equal(*latents)


def test_a_flux_that_embeds_no_guidance_runs_twice_as_the_stock_pipeline():
    stock = small.flux(guidance=False)
    stock.set_progress_bar_config(disable=True)
    pipeline = HybridPipeline.of(stock.components, [small.flux_transformer(1, guidance=False)])
    images = pipeline.draw(PROMPTS, steps=[3, 0], guidance=4.0, seed=3, size=(16, 16)).pictures
    expected = stock_images(stock, "flux", 3, height=16, true_cfg_scale=4.0, negative_prompt=["", ""])
    assert torch.allclose(images, expected, atol=1e-5)
    mixed = HybridPipeline.of(stock.components, [small.flux_transformer(1)])
    assert torch.isfinite(mixed.draw(PROMPTS, steps=[1, 1], size=(16, 16)).latent).all()


def test_a_flow_is_shifted_by_the_pictures_size():
    flow = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ends = []
    for sides in ((32, 32), (64, 64)):
        scheduler = families.scheduled(flow, small.sd3_transformer(), sides)
        ends.append(scheduler.timestep_options["mu"])
    assert ends == pytest.approx([0.5, 0.5 + 0.65 * 768 / 3840])  # 256 tokens, and 1024: the line of SD3.5 and Flux
    assert not hasattr(flow, "timestep_options")
    assert families.scheduled(FlowMatchEulerDiscreteScheduler(), small.sd3_transformer(), (8, 8)).config["shift"] == 1.0


@pytest.mark.parametrize("kind", [None, PixArtSigmaPipeline])
@pytest.mark.parametrize("name", small.TRANSFORMERS)
def test_a_folder_of_each_family_draws_what_its_parts_draw(tmp_path, name, kind):
    if kind and name != "pixart":
        return
    stock = small.TRANSFORMERS[name](**({"kind": kind} if kind else {}))
    stock.save_pretrained(tmp_path / "cloud")
    small.TRANSFORMERS[name](1, 1).save_pretrained(tmp_path / "edge")
    folder = HybridPipeline.from_pretrained(
        tmp_path / "cloud", tmp_path / "edge", solver=None if name != "pixart" else "own"
    )
    assert folder.text.most == {"sd3": 256, "flux": 512, "pixart": 300 if kind else 120}[name]
    parts = HybridPipeline.of(stock.components, [small.TRANSFORMERS[name](1, 1).transformer])
    made = [x.draw(PROMPTS, steps=[1, 1], size=(16, 16)).latent for x in (folder, parts)]
    assert torch.equal(*made)


def test_what_cannot_go_together_is_one_line(tmp_path):
    sd3, pixart = small.sd3(), small.pixart()
    with pytest.raises(ValueError, match="share no latent space: a transformer of SD3 and a transformer of PixArt"):
        HybridPipeline.of(sd3.components, [pixart.transformer])
    with pytest.raises(ValueError, match=r"models 0 and 1 share no latent space: caption_channels is 16 and 8"):
        other = small.PixArtTransformer2DModel.from_config({**pixart.transformer.config, "caption_channels": 8})
        HybridPipeline.of(pixart.components, [other])
    with pytest.raises(ValueError, match="the decoder reads 8 latent channels, the models make 4"):
        HybridPipeline.of(sd3.components | {"vae": small.flow_vae(8)})
    with pytest.raises(ValueError, match=r"solver='dpm.*' is not allowed for a model that matches a flow: give 'own'"):
        solver_of(sd3.scheduler, "dpm++")
    with pytest.raises(ValueError, match=r"text encoders T5EncoderModel, T5EncoderModel are no family's"):
        twice = {"text_encoder": small.t5(), "text_encoder_2": small.t5(), "text_encoder_3": None}
        HybridPipeline.of(sd3.components | twice)
    with pytest.raises(ValueError, match="the denoiser is a MochiTransformer3DModel, which cannot be asked here"):
        families.family(type("MochiTransformer3DModel", (), {})())
    flow = small.sd3()
    flow.save_pretrained(tmp_path / "cloud")
    flow.vae.register_to_config(scaling_factor=2.0)
    flow.save_pretrained(tmp_path / "vae")
    with pytest.raises(
        ValueError, match=r"its vae's scaling_factor is 2.0, the cloud's 1.5; take models made from one"
    ):
        HybridPipeline.from_pretrained(tmp_path / "cloud", tmp_path / "vae")
    flow.scheduler = small.sd().scheduler
    flow.save_pretrained(tmp_path / "diffusion")
    with pytest.raises(ValueError, match=r"its DPMSolver.* and the cloud's FlowMatch.* are a flow and a"):
        HybridPipeline.from_pretrained(tmp_path / "cloud", tmp_path / "diffusion")
    one = small.sd()
    one.save_pretrained(tmp_path / "one")
    one.scheduler.register_to_config(beta_end=0.02)
    one.save_pretrained(tmp_path / "schedule")
    with pytest.raises(ValueError, match=r"its scheduler's beta_end is 0.02, the cloud's 0.012; take models made"):
        HybridPipeline.from_pretrained(tmp_path / "one", tmp_path / "schedule")


@pytest.mark.parametrize("size", [(16,), (17, 16), (0, 16), "16", (16.0, 16), (18, 16), (128, 16)], ids=str)
def test_sizes_that_cannot_be_drawn_are_told(size):
    with pytest.raises(
        ValueError, match=r"size=.* is not allowed: give \(height, width\), multiples of 4 pixels up to 64"
    ):
        pair("sd3")[1].draw("a dog", steps=[1, 1], size=size)


def test_a_hand_off_of_another_size_is_bounded_by_the_pictures_that_fit():
    pipeline = HybridPipeline.of(small.sd().components, [small.unet(1)])
    with pytest.warns(UserWarning, match=r"1 pictures of 64 x 64 latents are too large: at most 16 times 64"):
        edge_of(pipeline).draw("a", steps=[1, 1], size=(128, 128))
