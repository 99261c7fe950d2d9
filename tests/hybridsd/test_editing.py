"""Pictures drawn over, several seeds and texts: as the stock pipelines do it, in one process and over a network."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)

from lab.hybridsd import equations as eq
from lab.hybridsd.editing import Edit, edit_noise, generators, normal
from lab.hybridsd.handoff import Handoff
from lab.hybridsd.pipeline import HybridPipeline
from lab.hybridsd.sampler import HybridSampler

from . import small
from .test_families import edge_of

PROMPTS = ["two cats", "a dog"]
IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., :8] = 1
SCHEDULE = {**small.SCHEDULE, "clip_sample": False}  # which half of them know


def pipeline(scheduler=None):
    parts = small.sd().components
    return HybridPipeline.of(parts | ({"scheduler": scheduler} if scheduler else {}), [small.unet(1)])


def stock(kind, parts, **options):
    parts = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    plain = {"requires_safety_checker": False, "feature_extractor": None} if "safety_checker" in parts else {}
    pipe = kind(**parts, **plain)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(PROMPTS, generator=generator, guidance_scale=4.0, output_type="pt", **options).images


@pytest.mark.parametrize("kind", [None, DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler], ids=str)
def test_a_picture_is_drawn_over_as_the_stock_pipeline_does(kind):
    whole = pipeline(kind and kind.from_config(SCHEDULE))
    parts = small.sd().components | {"scheduler": whole.scheduler}
    edit = Edit(IMAGE, strength=0.6)
    images = whole.draw(PROMPTS, steps=[3, 0], guidance=4.0, seed=3, edit=edit).pictures
    expected = stock(StableDiffusionImg2ImgPipeline, parts, image=IMAGE, strength=0.6, num_inference_steps=5)
    assert torch.allclose(images, expected, atol=1e-5)  # its latents lie otherwise in memory, and round otherwise


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_picture_is_painted_where_the_mask_says_as_the_stock_pipeline_does(strength):
    whole = pipeline()
    edit = Edit(IMAGE, strength, MASK)
    images = whole.draw(PROMPTS, steps=[3, 0], guidance=4.0, seed=3, edit=edit).pictures
    how = {"strength": strength, "num_inference_steps": 5 if strength < 1 else 3, "height": 16, "width": 16}
    expected = stock(StableDiffusionInpaintPipeline, small.sd().components, image=IMAGE, mask_image=MASK, **how)
    assert torch.equal(images, expected)
    sampler = HybridSampler(whole, PROMPTS, 4.0, 3, edit=edit)
    state = sampler.edge(sampler.start(3), 5 if strength < 1 else 3)
    assert torch.equal(state.latent[..., 4:], state.painting["image"][..., 4:])  # kept to the bit
    assert not torch.equal(state.latent[..., :4], state.painting["image"][..., :4])


def painter():
    """A U-Net that is shown the mask and the rest of the picture, as SD's own for painting over are."""
    parts = small.sd(in_channels=9).components
    return parts, HybridPipeline.of(parts, [small.unet(1, in_channels=9)])


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_u_net_of_nine_channels_paints_as_the_stock_pipeline_does(strength):
    parts, whole = painter()
    images = whole.draw(PROMPTS, steps=[3, 0], guidance=4.0, seed=3, edit=Edit(IMAGE, strength, MASK)).pictures
    how = {"strength": strength, "num_inference_steps": 5 if strength < 1 else 3, "height": 16, "width": 16}
    expected = stock(StableDiffusionInpaintPipeline, parts, image=IMAGE, mask_image=MASK, **how)
    assert torch.allclose(images, expected, atol=1e-5)  # its latents lie otherwise in memory


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_u_net_of_nine_channels_paints_over_the_network_as_in_one_process(strength):
    whole = painter()[1]
    far, how = edge_of(whole), {"guidance": 4.0, "seed": 5, "edit": Edit(IMAGE, strength, MASK)}
    for steps, order in (([1, 2], None), ([2, 1], [1, 0])):
        made = [x.draw(PROMPTS, steps=steps, order=order, **how) for x in (far, whole)]
        assert torch.equal(made[0].latent, made[1].latent) and not made[0].notes
    other = whole.draw(PROMPTS, steps=[1, 2], **how | {"edit": Edit(1 - IMAGE, strength, MASK)}).latent
    assert not torch.equal(other, whole.draw(PROMPTS, steps=[1, 2], **how).latent)  # the rest of the picture is seen


def test_a_u_net_of_nine_channels_wants_a_picture_and_a_mask():
    whole = painter()[1]
    with pytest.raises(ValueError, match="this U-Net paints over pictures: give edit"):
        whole.draw(PROMPTS, steps=[1, 1])
    with pytest.raises(ValueError, match="this U-Net paints where a mask says: give the edit a mask"):
        whole.draw(PROMPTS, steps=[1, 1], edit=Edit(IMAGE))
    with pytest.raises(ValueError, match="share no latent space: in_channels is 9 and 4"):
        HybridPipeline.of(painter()[0], [small.unet(1)])


def test_a_flow_draws_over_a_picture_as_the_stock_pipeline_does():
    parts = small.sd3().components
    whole = HybridPipeline.of(parts, [small.sd3_transformer(1, 1)])
    images = whole.draw(PROMPTS, steps=[3, 0], guidance=4.0, seed=3, edit=Edit(IMAGE, 0.6)).pictures
    how = {"strength": 0.6, "num_inference_steps": 5, "max_sequence_length": 16}
    expected = stock(StableDiffusion3Img2ImgPipeline, parts, image=IMAGE, height=16, width=16, **how)
    assert torch.equal(images, expected)


@pytest.mark.parametrize("mask", [None, MASK], ids=["over", "painted"])
@pytest.mark.parametrize("kind", [None, HeunDiscreteScheduler, PNDMScheduler, "lcm", "sd3"], ids=str)
def test_an_edit_over_the_network_is_one_process(kind, mask):
    if kind == "sd3":
        whole = HybridPipeline.of(small.sd3().components, [small.sd3_transformer(1, 1)])
    elif kind == "lcm":
        whole = HybridPipeline.of(small.lcm().components, [small.lcm(1).unet])
    else:
        whole = pipeline(kind and kind.from_config(SCHEDULE))
    far, how = edge_of(whole), {"guidance": 4.0, "seed": 5, "edit": Edit(IMAGE, 0.5, mask)}
    for steps, order in (([1, 2], None), ([2, 1], [1, 0]), ([1, 1, 1], [1, 0, 1])):
        made = [x.draw(PROMPTS, steps=steps, order=order, **how) for x in (far, whole)]
        assert torch.equal(made[0].latent, made[1].latent) and not made[0].notes, steps
        assert made[0].steps == tuple(steps) and len(made[0].crossings) == 1


def test_strength_says_how_much_of_the_schedule_is_gone_through():
    spans = {(1.0, 4): (0, 4), (0.5, 4): (4, 8), (0.6, 3): (2, 5), (0.3, 2): (5, 7)}
    assert all(Edit(IMAGE, strength).schedule(taken) == span for (strength, taken), span in spans.items())
    whole = pipeline()
    weak, strong = (whole.draw(PROMPTS, steps=[2, 2], seed=3, edit=Edit(IMAGE, s)).latent for s in (0.1, 0.9))
    kept = HybridSampler(whole, PROMPTS, 4.0, 3, edit=Edit(IMAGE, 0.5, MASK)).start(4).painting["image"]
    assert (weak - kept).norm() < (strong - kept).norm()


WRONG = [
    ({"image": torch.rand(2, 1, 16, 16)}, r"image=float32 \(2, 1, 16, 16\)"),
    ({"image": 2 * IMAGE}, r"image=float32 \(2, 3, 16, 16\)"),
    ({"image": "a.png"}, "image='a.png'"),
    ({"strength": 0}, "strength=0"),
    ({"strength": 1.5}, "strength=1.5"),
    ({"mask": torch.zeros(1, 1, 8, 8)}, r"mask=float32 \(1, 1, 8, 8\)"),
    ({"mask": MASK.bool()}, r"mask=bool \(1, 1, 16, 16\)"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_drawn_over_is_one_line(wrong, words):
    with pytest.raises(ValueError, match=f"^{words} is not allowed: give ") as caught:
        Edit(**{"image": IMAGE, **wrong})
    assert "\n" not in str(caught.value)


def test_an_edit_is_of_one_picture_or_of_one_for_each_prompt():
    whole = pipeline()
    with pytest.raises(ValueError, match=r"edit=.* is not allowed: give a lab.hybridsd.Edit of one picture, or of one"):
        whole.draw(["a", "b", "c"], steps=[1, 1], edit=Edit(IMAGE))
    one = whole.draw(PROMPTS, steps=[1, 1], edit=Edit(IMAGE[:1], 0.5)).latent
    two = whole.draw(PROMPTS, steps=[1, 1], edit=Edit(IMAGE[[0, 0]], 0.5)).latent
    assert torch.allclose(one, two, atol=1e-5)
    tiny = HybridPipeline.of(small.sd().components | {"vae": small.tiny_vae()}, [small.unet(1)])
    assert torch.isfinite(tiny.draw(PROMPTS, steps=[1, 1], edit=Edit(IMAGE, 0.5)).latent).all()


# -- several seeds and texts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "lcm"])
def test_pictures_of_several_seeds_are_those_of_each_alone(family):
    whole = HybridPipeline.of(small.FAMILIES[family]().components, [small.FAMILIES[family](1).unet])
    far, how = edge_of(whole), {"steps": [2, 2], "guidance": 4.0}
    both = whole.draw(PROMPTS, seed=[3, 8], negative=["dark", ""], **how).latent
    rows = zip(PROMPTS, (3, 8), ("dark", ""), strict=True)
    alone = [whole.draw(prompt, seed=seed, negative=text, **how).latent for prompt, seed, text in rows]
    assert eq.relative_error(both, torch.cat(alone)) < 1e-4 < 0.1 < eq.relative_error(*alone)
    samples = far.draw(PROMPTS, seed=[3, 8], negative=["dark", ""], **how)
    assert torch.equal(samples.latent, both) and not samples.notes and samples.crossings[0].step == 2


@pytest.mark.parametrize("wrong", [{"seed": [1]}, {"seed": [1, "a"]}, {"seed": [1, 2**64]}, {"negative": ["a"]},
                                   {"negative": ["a", 5]}, {"seed": [True, 1]}], ids=str)  # fmt: skip
def test_lists_that_are_not_one_for_each_prompt_are_told(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}=.* is not allowed: give .* one for each"):
        pipeline().draw(PROMPTS, steps=[1, 1], **wrong)


def test_both_sides_make_the_noise_of_an_edit_from_its_seed():
    shape = (2, 4, 8, 8)
    drawn = edit_noise(5, shape)
    g = torch.Generator().manual_seed(5)
    assert torch.equal(drawn.sample, torch.randn(shape, generator=g))
    assert torch.equal(drawn.noise, torch.randn(shape, generator=g))
    rows = [normal((1, 4, 8, 8), generators(seed)) for seed in (5, 6)]
    assert torch.equal(normal(shape, generators([5, 6])), torch.cat(rows))
    edit = Edit(IMAGE, 0.5, MASK)
    sampler = HybridSampler(pipeline(FlowMatchEulerDiscreteScheduler()), PROMPTS, 4.0, [1, 2], edit=edit)
    state = sampler.start(2)
    back = Handoff.from_bytes(state.to_bytes())
    assert torch.equal(back.repaint().noise, edit_noise([1, 2], shape).noise) and back.seed == [1, 2]
    assert back.painting["mask"].dtype == torch.bool and torch.equal(back.painting["image"], state.painting["image"])
