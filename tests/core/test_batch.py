"""A batch in parts: pairs, dictionaries, whatever Task.inputs and Task.labels say; and the outputs of many shapes."""

import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutput

from lab.core import scores
from lab.core.batch import (
    _zeros,
    call,
    each,
    inputs,
    labels,
    logits_of,
    moved,
    shapes_of,
    size,
    tensors,
    vector,
    zeros_of,
)
from lab.core.finetune import has_labels, validate_labels
from lab.core.task import Task

X, Y = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass
class Record:
    value: torch.Tensor
    name: str = "a"


def task(batch, model=None, **fields) -> Task:
    return Task(model=nn.Linear(3, 3) if model is None else model, batches=[batch], score=lambda net: 0.0, **fields)


# -- inputs and labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "has_y"),
    [
        (X, False), ((X,), False), ((X, Y), True), ([X, Y], True), ((X, Y, "name"), True), (Pair(X, Y), True),
        ({"pixel_values": X}, False), ({"pixel_values": X, "labels": Y}, True),
        (OrderedDict(labels=Y, input_values=X), True),
    ],
)  # fmt: skip
def test_x_and_y_of_a_batch(batch, has_y):
    assert inputs(batch) is X
    assert labels(batch) is (Y if has_y else None)
    assert has_labels(task(batch)) == has_y


def test_several_inputs_go_by_name():
    batch = {"input_ids": X, "attention_mask": Y, "labels": Y}
    assert inputs(batch) == {"input_ids": X, "attention_mask": Y}


@pytest.mark.parametrize(
    ("fields", "x", "y"),
    [
        ({"inputs": "image", "labels": "name"}, X, Y),
        ({"inputs": lambda batch: batch["image"] * 2, "labels": lambda batch: [batch["name"]]}, 2 * X, [Y]),
    ],
)
def test_a_key_or_a_function_takes_them(fields, x, y):
    made = task({"image": X, "name": Y, "index": "a"}, **fields)
    torch.testing.assert_close(made.inputs_of(made.first_batch()), x)
    assert str(made.labels_of(made.first_batch())) == str(y)
    torch.testing.assert_close(made.example, x[:1])


def test_a_number_takes_an_item():
    made = task(("name", X, Y), inputs=1, labels=2)
    assert made.inputs_of(made.first_batch()) is X and made.labels_of(made.first_batch()) is Y


@pytest.mark.parametrize(
    ("batch", "fields", "words"),
    [
        ({"image": X, "name": "a"}, {}, r"holds a str: give tensors.*Task\(inputs=\.\.\.\)"),
        ({"labels": Y}, {}, "holds a dict"),
        ((), {}, "holds a tuple"),
        ({"image": X}, {"inputs": lambda batch: None}, "holds a NoneType"),
    ],
)
def test_inputs_that_are_no_tensors(batch, fields, words):
    with pytest.raises(TypeError, match=words) as caught:
        task(batch, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "fields", "words"),
    [
        ({"image": X}, {"inputs": "pixels"}, r"Task\.inputs='pixels': a batch is the keys 'image': give a key"),
        ((X, Y), {"inputs": 5}, r"Task\.inputs=5: a batch is a tuple"),
        ((X, Y), {"inputs": "x"}, r"Task\.inputs='x': a batch is a tuple"),
    ],
)
def test_keys_that_are_not_there(batch, fields, words):
    with pytest.raises(ValueError, match=words) as caught:
        task(batch, **fields)
    assert "\n" not in str(caught.value)


def test_two_losses_are_one_too_many():
    with pytest.raises(TypeError, match="a loss and a batch_loss: give the one"):
        task((X, Y), loss=F.mse_loss, batch_loss=lambda model, batch: model(batch[0]).sum())


# -- trees of tensors --------------------------------------------------------------------------------------------------

trees = st.recursive(
    st.integers(0, 9).map(lambda n: torch.tensor([float(n)])) | st.none() | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.tuples(inner, inner).map(lambda pair: Pair(*pair)) | st.tuples(inner)
    ),
    max_leaves=6,
)  # fmt: skip


@given(trees)
def test_each_changes_tensors_alone_and_keeps_the_form(tree):
    changed = each(tree, lambda x: x + 1)
    assert [float(x) for x in tensors(changed)] == [float(x) + 1 for x in tensors(tree)]
    assert each(changed, lambda x: 0) == each(tree, lambda x: 0)
    assert moved(tree, "cpu") is tree


def test_a_moved_tree_is_where_it_was_to_go():
    batch = {"x": X, "targets": [{"boxes": X, "name": "a"}]}
    assert {x.device.type for x in tensors(moved(batch, "meta"))} == {"meta"}
    assert batch["x"] is X


@pytest.mark.parametrize("x", [X, (X, X), {"input": X}])
def test_call_gives_inputs_by_position_or_by_name(x):
    class Net(nn.Module):
        def forward(self, input, other=0):
            return input + other

    torch.testing.assert_close(call(Net(), x), 2 * X if isinstance(x, tuple) else X)
    assert size(x) == 4


@pytest.mark.parametrize(
    "output",
    [
        X, (X,), {"out": X, "aux": Y}, {"logits": X, "states": (Y, Y)}, [X], {"anything": X}, Record(X),
        ImageClassifierOutput(logits=X, hidden_states=(Y, Y)),
    ],
)  # fmt: skip
def test_the_tensor_that_counts(output):
    assert logits_of(output) is X


def test_several_tensors_without_a_name_stay_together():
    assert logits_of((X, Y)) == (X, Y)


def test_a_vector_holds_all_that_floats():
    maps = torch.rand(4, 2, 5, 5)
    assert vector(X) is not X and torch.equal(vector(X), X)
    assert vector({"boxes": maps, "classes": X, "index": Y, "scale": torch.rand(())}).shape == (4, 2 * 25 + 3)
    assert vector(torch.rand(4)).shape == (4, 1)


@pytest.mark.parametrize("output", [None, (Y,), (X, X[:2])])
def test_outputs_that_are_no_vector(output):
    with pytest.raises(ValueError, match="holds no tensor"):
        vector(output)


# -- losses and scores -------------------------------------------------------------------------------------------------


class Named(nn.Linear):
    """A classifier as transformers has them: an output with names."""

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=super().forward(pixel_values))


def test_cross_entropy_takes_logits_by_name_and_another_loss_the_whole_output():
    net, batch = Named(3, 3), {"pixel_values": X, "labels": Y}
    plain = F.cross_entropy(net(X).logits, Y)
    torch.testing.assert_close(task(batch, net).fit(net, batch)[0], plain)
    own = task(batch, net, loss=lambda output, y: F.cross_entropy(output.logits, y))
    torch.testing.assert_close(own.fit(net, batch)[0], plain)
    validate_labels(own)


def test_a_loss_of_model_and_batch():
    net, batch = nn.Linear(3, 3), {"x": X, "targets": [{"class": y} for y in Y]}
    made = task(
        batch, net, inputs="x",
        batch_loss=lambda model, b: F.cross_entropy(model(b["x"]), torch.stack([t["class"] for t in b["targets"]])),
    )  # fmt: skip
    assert has_labels(made)
    validate_labels(made)
    loss, output = made.fit(net, batch)
    torch.testing.assert_close(loss, F.cross_entropy(net(X), Y))
    torch.testing.assert_close(output, net(X))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda model, batch: X.sum(), "it does not call the model"),
        (lambda model, batch: model(batch[0]), "it is not one number"),
        (lambda model, batch: model(batch[0]).sum() * float("nan"), "it is NaN"),
        (lambda model, batch: model(batch["x"]).sum(), "let it give one number"),
    ],
)
def test_a_loss_of_model_and_batch_that_fails(loss, words):
    with pytest.raises(ValueError, match=words) as caught:
        validate_labels(task((X, Y), batch_loss=loss))
    assert "\n" not in str(caught.value) and "Task.batch_loss fails on the first batch" in str(caught.value)


def test_labels_in_lists_are_for_losses_that_take_them():
    targets = [{"class": y} for y in Y]
    assert not has_labels(task((X, targets)))  # cross entropy does not
    assert has_labels(task((X, targets), loss=lambda output, y: output.sum()))
    with pytest.raises(TypeError, match=r"the labels of Task\.batches are a list: give a tensor"):
        has_labels(task((X, [0, 1, 2, 0])))


def test_ignored_labels_count_in_no_loss_and_no_score():
    net, dense = nn.Conv2d(3, 5, 1), torch.rand(2, 3, 4, 4)
    y = net(dense).argmax(1)
    y[:, 1:] = -100
    y[0, 0, 0] = (y[0, 0, 0] + 1) % 5  # of the 8 that are left, one is wrong
    batch = {"pixel_values": dense, "labels": y}
    validate_labels(task(batch, net))
    assert scores.accuracy([batch])(net) == pytest.approx(100 * 7 / 8)
    loss = task(batch, net).fit(net, batch)[0]
    torch.testing.assert_close(loss, F.cross_entropy(net(dense)[:, :, 0], y[:, 0]))
    with pytest.raises(ValueError, match="all labels of the held-out data are -100"):
        scores.accuracy([(dense, torch.full_like(y, -100))])(net)


@pytest.mark.parametrize("shape", [[1, 2**32], [1, -1], [2.0, 3], [True, 2], torch.ones(2, 2), ["1"]])
def test_what_is_no_shape_of_an_example_is_refused_in_one_line(shape):
    for shapes in (shape, {"x": {"shape": shape, "dtype": "int64"}}):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            zeros_of(shapes)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="an example has the shape"):
        _zeros(shape, torch.float32)


@pytest.mark.parametrize(
    "example", [torch.zeros(1, 3, 4), (torch.zeros(2), torch.zeros(1, dtype=torch.int64)), {"x": torch.zeros(0)}]
)
def test_zeros_have_the_shapes_that_were_stored(example):
    made = zeros_of(shapes_of(example))
    assert shapes_of(made) == shapes_of(example)
