"""Tracing what people write: branches, loops, lengths and unpacking of sizes; outputs and inputs of many forms."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification
from transformers.utils import ModelOutput

from lab.core.batch import call, each, tensors
from lab.core.graph import surgery
from lab.core.graph.tracing import trace

C = 8


class Program(nn.Module):
    """A forward of steps that read sizes, each (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, steps: list[str], form: str = "tensor") -> None:
        super().__init__()
        self.steps, self.form = steps, form
        self.conv, self.narrow = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C // 2, C // 2, 1)
        self.norm, self.gate = nn.BatchNorm2d(C), nn.Linear(C, C)
        self.tokens = nn.MultiheadAttention(C, 2, batch_first=True)
        self.register_buffer("table", torch.linspace(0, 1, 64))

    def forward(self, x: Tensor):
        if not isinstance(x, torch.Tensor) or x.dim() != 4:
            raise TypeError("give a tensor (N, C, H, W)")
        for step in self.steps:
            x = getattr(self, step)(x)
        return FORMS[self.form](x)

    def branch(self, x):
        assert x.shape[1] == C, "channels"
        return torch.relu(self.conv(x)) if x.shape[-1] > 2 and x.size(1) % 2 == 0 else x

    def parts(self, x):
        return torch.cat([self.narrow(part) for part in x.chunk(2, 1)], 1)

    def padded(self, x):
        n, c, h, w = x.shape
        down, right = -h % 4, (4 - w % 4) % 4
        if down or right:
            x = F.pad(x, (0, right, 0, down))
        windows = x.view(n, c, x.shape[2] // 4, 4, x.shape[3] // 4, 4).permute(0, 2, 4, 1, 3, 5)
        windows = torch.tanh(windows.reshape(-1, c, 4, 4))
        windows = windows.view(n, x.shape[2] // 4, x.shape[3] // 4, c, 4, 4).permute(0, 3, 1, 4, 2, 5)
        return windows.reshape(n, c, *x.shape[2:])[:, :, :h, :w]

    def squeezed(self, x):
        b, c, _, _ = x.size()
        return x * torch.sigmoid(self.gate(x.mean((2, 3)).view(b, c))).view(b, c, 1, 1)

    def attended(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return (tokens + self.tokens(tokens, tokens, tokens)[0]).transpose(1, 2).reshape(x.shape)

    def counted(self, x):
        y = torch.zeros(len(x), x.shape[1], 1, 1, dtype=x.dtype)
        y[:, 0] = 1
        return x + y + torch.arange(x.shape[-1]) / x.shape[-1]

    def looked_up(self, x):
        return x + self.table[: x.shape[-1]]

    def looped(self, x):
        for _ in range(x.shape[1] // 4):
            x = self.norm(x)  # one module, used several times
        return x

    def in_place(self, x):
        y = self.conv(x)
        y += x
        y[:, : x.shape[1] // 2] *= 2
        return y.relu_()

    def resized(self, x):
        small = F.avg_pool2d(x, 2)
        return F.interpolate(small, size=x.shape[-2:], mode="nearest") if small.shape != x.shape else x

    def largest(self, x):
        values, index = x.max(dim=1, keepdim=True)
        return x - values + index.to(x.dtype) / x.shape[1]

    def split_rows(self, x):
        rows = x.split(x.shape[2] // 2, 2)
        return torch.cat([*rows[1:], rows[0]], 2) if len(rows) > 1 else x

    def duck(self, x):
        x = x if hasattr(x, "shape") and not hasattr(x, "logits") else x.logits
        if torch.jit.is_scripting() or x.requires_grad is None or x.dtype in (torch.int64,):
            return x * 0
        return x.contiguous() if x.is_contiguous() else x


STEPS = [name for name in vars(Program) if name not in ("forward", "__init__") and not name.startswith("_")]
Named = namedtuple("Named", "x y")


@dataclass
class Record(ModelOutput):
    logits: Tensor | None = None
    states: Tensor | None = None


FORMS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, x.mean()),
    "dictionary": lambda x: {"out": x, "parts": [x + 1, (x, None)]},
    "ordered": lambda x: OrderedDict(out=x),
    "named": lambda x: Named(x, x + 1),
    "record": lambda x: Record(logits=x),
}


def pictures(n: int = 1, h: int = 8, w: int = 8) -> Tensor:
    return torch.randn(n, C, h, w, generator=torch.Generator().manual_seed(n + h))


def check(graph: nn.Module, model: nn.Module, x) -> None:
    """The law: a traced network answers as the model does, in the same form."""
    with torch.no_grad():
        ours, theirs = call(graph, x), call(model, x)
    assert [a.shape for a in tensors(ours)] == [b.shape for b in tensors(theirs)]
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), st.sampled_from(sorted(FORMS)))
def test_a_traced_program_answers_as_it_does_for_every_batch_and_picture(steps, form):
    torch.manual_seed(0)
    model = Program(steps, form).eval()
    graph = trace(model, pictures())
    names = {name for name, _ in graph.named_parameters() if not name.startswith("tokens.")}  # q, k and v apart
    assert names <= {name for name, _ in model.named_parameters()}
    check(graph, model, pictures())
    check(graph, model, pictures(3))
    check(graph, model, pictures(2, 12, 16))
    if form in ("record", "named"):
        assert type(graph(pictures())) is type(model(pictures()))


@pytest.mark.parametrize("step", STEPS)
def test_each_step_alone_is_traced(step):
    model = Program([step]).eval()
    graph = trace(model, pictures())
    check(graph, model, pictures(2, 12, 8))


def test_a_branch_that_other_pictures_take_otherwise_is_the_examples():
    model = Program(["padded"]).eval()
    graph = trace(model, pictures())  # 8 x 8 needs no padding
    with pytest.raises(RuntimeError):  # loudly, not silently
        graph(pictures(1, 9, 9))


def test_modules_that_are_used_twice_stay_one():
    model = Program(["looped", "branch", "in_place"]).eval()
    graph = trace(model, pictures())
    assert sum(node.target == "norm" for node in graph.graph.nodes) == 2
    assert len({p.data_ptr() for p in graph.norm.parameters()}) == 2 == len(list(graph.norm.parameters()))


class Two(nn.Module):
    """Two inputs, one of them optional, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, left, right=None, *, sums=True, **others):
        y = self.a(left)
        if right is not None:
            y = y + self.b(right) if sums else y * self.b(right)
        return y.view(len(y), -1)


@pytest.mark.parametrize(
    "example",
    [
        torch.randn(2, 4), (torch.randn(2, 4),), (torch.randn(2, 4), torch.randn(2, 3)),
        {"left": torch.randn(2, 4)}, {"right": torch.randn(2, 3), "left": torch.randn(2, 4)},
    ],
)  # fmt: skip
def test_inputs_by_position_and_by_name(example):
    model = Two().eval()
    graph = trace(model, example)
    check(graph, model, example)
    check(graph, model, each(example, lambda x: torch.cat([x, x + 1])))
    kept = surgery.remove(nn.ModuleDict({"net": model})["net"], surgery.Plan(), example)
    check(kept, model, example)


def test_any_number_of_inputs():
    class Sum(nn.Module):
        def forward(self, *parts):
            return sum(part * k for k, part in enumerate(parts[: len(parts)]))

    example = (torch.randn(1, 2), torch.randn(1, 2), torch.randn(1, 2))
    check(trace(Sum(), example), Sum(), example)


IMAGES = {
    "vit": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
            "image_size": 16, "patch_size": 4},
    "convnext": {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2},
    "swin": {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
             "window_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
    "mobilevit": {"image_size": 64, "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [4, 4, 4, 4, 8, 8, 8],
                  "num_attention_heads": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(IMAGES))
def test_networks_of_transformers(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **IMAGES[kind])
    model = AutoModelForImageClassification.from_config(config).eval()
    x = torch.randn(1, 3, IMAGES[kind].get("image_size", 32), IMAGES[kind].get("image_size", 32))
    graph = trace(model, x)
    check(graph, model, torch.cat([x, x + 1]))
    check(graph, model, {"pixel_values": x})
    assert graph(x).logits.shape == (1, 2) and type(graph(x)) is type(model(x))
    assert {str(n.target) for n in graph.graph.nodes if n.op == "call_module"} <= dict(model.named_modules()).keys()


@pytest.mark.slow
def test_a_bert_of_named_inputs():
    config = AutoConfig.for_model(
        "bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=30
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    example = {"input_ids": torch.randint(30, (1, 7)), "attention_mask": torch.ones(1, 7, dtype=torch.int64)}
    graph = trace(model, example)
    ids = torch.randint(30, (3, 7))
    check(graph, model, {"input_ids": ids, "attention_mask": (ids > 3).long()})


# -- what is refused ---------------------------------------------------------------------------------------------------


class Forward(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.layer, self.how = nn.Conv2d(C, C, 1), forward

    def forward(self, x):
        return self.how(self, self.layer(x))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda net, x: x if x.sum() > 0 else -x, "branches on the values of a tensor"),
        (lambda net, x: x * float(x.abs().max()), "branches on the values of a tensor"),
        (lambda net, x: x[: int(x.abs().max().item())], "branches on the values of a tensor"),
        (lambda net, x: torch.from_numpy(x.detach().numpy()) + x, "cannot be traced"),
        (lambda net, x: torch.stack([sample.tanh() for sample in x]), "takes the number of samples for a constant"),
    ],
)
def test_what_depends_on_values_is_one_line(how, words):
    with pytest.raises(ValueError, match=words) as caught:
        trace(Forward(how).eval(), pictures())
    assert "\n" not in str(caught.value)


def test_builtins_are_given_back():
    before = {name: name in globals() for name in ("len", "isinstance")}
    trace(Program(["counted", "parts"]).eval(), pictures())
    with pytest.raises(ValueError, match="values"):
        trace(Forward(lambda net, x: x if x.sum() > 0 else -x), pictures())
    assert before == {name: name in globals() for name in ("len", "isinstance")} == {"len": False, "isinstance": False}


def test_values_of_what_no_input_changes_may_be_read():
    model = Forward(lambda net, x: x * 2 if net.layer.weight.sum() > 1e6 else x * float(net.layer.bias.sum()))
    check(trace(model.eval(), pictures()), model, pictures(2))


# -- subclasses --------------------------------------------------------------------------------------------------------


class Tagged(nn.Conv2d):
    """A convolution that carries something of its own."""

    def __init__(self, *args, tag: str = "", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.tag = tag


class Standardised(nn.Conv2d):
    """A convolution of its own kind: its weights are standardised first."""

    def forward(self, x):
        w = self.weight
        return F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)), self.bias, padding=self.padding)


class Inner(nn.Conv2d):
    """As above, by the method that forward calls."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight * 2, bias)


def net(kind: type, **more) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(kind(C, 6, 3, padding=1, **more), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()


def test_a_subclass_that_only_carries_something_is_cut_and_stays_itself():
    model = net(Tagged, tag="mine")
    smaller = surgery.remove(model, surgery.Plan(channels={"0": (0, 2, 5)}), pictures())
    layer = smaller.get_submodule("0")
    assert type(layer) is Tagged and layer.tag == "mine" and layer.out_channels == 3 == len(layer.weight)
    masked = net(Tagged, tag="mine")
    with torch.no_grad():
        for part in (masked[0].weight, masked[0].bias):
            part[[1, 3, 4]] = 0
    check(smaller, masked, pictures(2))


@pytest.mark.parametrize("kind", [Standardised, Inner])
def test_a_subclass_that_computes_otherwise_is_no_plain_layer(kind):
    model = net(kind)
    graph = trace(model, pictures())
    check(graph, model, pictures(2))
    assert "0" not in {node.target for node in graph.graph.nodes if node.op == "call_module"}


# -- frozen parameters -------------------------------------------------------------------------------------------------


def test_frozen_parameters_stay_frozen_unless_all_are():
    model = net(nn.Conv2d)
    model[0].requires_grad_(False)
    graph = trace(model, pictures())
    assert [p.requires_grad for p in graph.parameters()] == [False, False, True, True]
    smaller = surgery.remove(model, surgery.Plan(channels={"0": (0, 1)}), pictures())
    assert [p.requires_grad for p in smaller.parameters()] == [False, False, True, True]
    model.requires_grad_(False)
    assert all(p.requires_grad for p in trace(model, pictures()).parameters())


class MadeInForward(nn.Module):
    """A tensor made of plain numbers, beside one made of the batch's size, as a network's number of a step."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        step = torch.tensor([10.0]) * torch.ones(len(x))
        return self.conv(x) * step[:, None, None, None]


def test_a_tensor_that_forward_makes_is_known():
    net, x = MadeInForward().eval(), torch.randn(3, 3, 4, 4)
    assert torch.allclose(trace(net, x[:1])(x), net(x))
