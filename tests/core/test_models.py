"""Networks that are not what they seem: each is one line with its cause and its remedy, for every method."""

import pytest
import torch
from torch import nn

import lab
from lab.core.graph.tracing import trace
from lab.core.task import Task

X, Y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
TASKED = [recipe() for recipe in (lab.GAL, lab.Decoupling, lab.SparseByteNN, lab.PAMS, lab.DQSS, lab.FoldGPT)]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip


def task(model: nn.Module, x: torch.Tensor = X) -> Task:
    return Task(model=model, batches=[(x, Y)], score=lambda model: 0.0)


class Answers(nn.Module):
    def __init__(self, output) -> None:
        super().__init__()
        self.net, self.output = net(), output

    def forward(self, x):
        self.net(x)
        return self.output


def changed(part: str, change) -> nn.Module:
    model = net()
    model[2]._parameters[part] = nn.Parameter(change(model[2].get_parameter(part).detach()), requires_grad=False)
    return model


def lazy() -> nn.Module:
    model = net()
    model[2] = nn.LazyConv2d(6, 1)
    return model


def of_integers() -> nn.Module:
    model = net()
    model[5] = torch.ao.nn.quantized.Linear(6, 3)
    return model


BROKEN = {
    "a lazy layer": (
        lazy,
        r"2 has a weight that is not initialised, as in lazy layers: call the model on a batch",
    ),
    "complex weights": (
        lambda: changed("bias", lambda w: w.cfloat()),
        r"2 has a bias that is complex .*complex64",
    ),
    "sparse weights": (lambda: changed("bias", torch.Tensor.to_sparse), r"2 has a bias that is sparse .*\.to_dense"),
    "integers": (of_integers, r"5 is a layer of integers .*: give the float network"),
    "data parallel": (lambda: nn.DataParallel(net()), r"DataParallel is wrapped around a network: give its \.module"),
    "nothing": (lambda: Answers(None), "returns a NoneType that holds no tensor"),
    "numbers": (lambda: Answers({"a": 1.0, "b": [2]}), "returns a dict that holds no tensor"),
}
META = {
    "meta weights": (lambda: net().to("meta"), X, r"0\.weight is on the meta device, without numbers"),
    "meta pictures": (net, X.to("meta"), "gives inputs on the meta device"),
    "complex pictures": (net, X.cfloat(), r"gives an input that is complex \(torch\.complex64\)"),
    "sparse pictures": (net, X.to_sparse(), r"gives an input that is sparse"),
}


@pytest.mark.filterwarnings("ignore:torch.*quantiz")
@pytest.mark.parametrize("name", BROKEN)
def test_each_is_one_line_for_a_trace_and_for_every_method(name):
    make, words = BROKEN[name]
    model = make()
    with pytest.raises(ValueError, match=words) as caught:
        trace(model, X[:1])
    assert "\n" not in str(caught.value)
    for recipe in TASKED:
        with pytest.raises(ValueError, match=words) as caught:
            recipe.run(task(model), progress=False)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", META)
def test_what_has_no_numbers_is_one_line(name):
    make, x, words = META[name]
    for recipe in TASKED:
        with pytest.raises(ValueError, match=words) as caught:
            recipe.run(task(make(), x), progress=False)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_compiled_network_is_taken_as_it_was_and_said_once():
    model = net()
    compiled = torch.compile(model, backend="eager")
    with pytest.warns(UserWarning, match=r"Task\.model is compiled: the network that torch\.compile was given") as said:
        made = task(compiled)
    assert len(said) == 1 and made.model is model
    made.check()
    torch.testing.assert_close(trace(compiled, X[:1])(X), model.eval()(X))


def test_compiled_parts_are_taken_as_they_were():
    plain, model = net().eval(), net().eval()
    model[2] = torch.compile(model[2], backend="eager")
    with pytest.warns(UserWarning, match="compiled"):
        copy = task(model).copy_for(None)
    assert [name for name, _ in copy.named_modules()] == [name for name, _ in plain.named_modules()]
    assert "_orig_mod" in model[2]._modules  # the model itself is left as it is
    graph = trace(model, X[:1])
    torch.testing.assert_close(graph(X), plain(X))
    assert "2" in {node.target for node in graph.graph.nodes}


def test_a_network_that_compiles_itself_is_like_any_other():
    model = net().eval()
    model.compile(backend="eager")
    torch.testing.assert_close(trace(model, X[:1])(X), net().eval()(X))
