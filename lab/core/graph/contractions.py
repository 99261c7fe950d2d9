"""Products of matrices, whichever way they are written, and which channels they tie: those of a head go as one.

A product is told by letters, one an axis, as in `torch.einsum`: letters that both operands and the result have count
matrices, those that the result has not are summed over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor, fx

from .calls import arguments
from .moves import varying
from .operators import called
from .tracing import shape

_MATMULS = {"matmul", "bmm"}
_SUMMED = {"baddbmm", "addmm"}  # to whose product another tensor is added
CONTRACTIONS = _MATMULS | _SUMMED | {"einsum", "mm", "linear", "scaled_dot_product_attention"}


@dataclass(frozen=True)
class Product:
    """Two tensors that are multiplied, and the letters of their axes and of the result's."""

    operands: tuple[fx.Node, fx.Node]
    letters: tuple[str, str]
    result: str


def product_of(node: fx.Node) -> Product | None:
    """The product that a node computes; None where it is none of two tensors."""
    if called(node) == "einsum":
        return _einsum(*node.args)
    given = arguments(node)
    if called(node) in _SUMMED:
        a, b = (given[name] for name in (("batch1", "batch2") if "batch1" in given else ("mat1", "mat2")))
    elif called(node) == "linear":
        a, b = given["input"], given["weight"]
        rest = ascii_letters[: len(shape(a)) - 1]
        return Product((a, b), (f"{rest}y", "zy"), f"{rest}z") if isinstance(b, fx.Node) else None
    else:
        a, b = given["input"], given.get("other", given.get("mat2"))
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    return Product((a, b), *_matmul(len(shape(a)), len(shape(b))))


def _matmul(left: int, right: int) -> tuple[tuple[str, str], str]:
    batch = ascii_letters[: max(left, right, 2) - 2]
    a = batch[len(batch) - max(left - 2, 0) :] + "xy"[max(0, 2 - left) :]
    b = batch[len(batch) - max(right - 2, 0) :] + ("yz" if right > 1 else "y")
    return (a, b), batch + ("x" if left > 1 else "") + ("z" if right > 1 else "")


def _einsum(equation: Any = None, *given: Any) -> Product | None:
    operands = tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    before, arrow, after = equation.replace(" ", "").partition("->")
    terms = before.split(",")
    free = [letter for letter in ascii_letters if letter not in before]
    counts = [len(shape(x)) - len(term.replace("...", "")) for x, term in zip(operands, terms, strict=True)]
    dots = "".join(free[: max(counts)])
    letters = tuple(
        term.replace("...", dots[len(dots) - n :]) for term, n in zip(terms, counts, strict=True)
    )  # fmt: skip
    if not arrow:
        joint = letters[0] + letters[1]
        after = "..." + "".join(sorted(letter for letter in set(joint) - set(dots) if joint.count(letter) == 1))
    if any(len(set(term)) < len(term) for term in letters):
        return None
    return Product(operands, (letters[0], letters[1]), after.replace("...", dots))


class Contraction:
    """What a product does to the channels of its operands.

    Operands are given by their channels and letters; `tie` makes channels one, and `freeze` keeps those that vary along
    some axes. `heads` has the channels of all matrices of a batch that go as wholes, None where there are none.
    """

    def __init__(self, name: str, tie: Callable, freeze: Callable) -> None:
        self.name, self.tie, self.freeze = name, tie, freeze
        self.heads: list[Tensor] = []

    def of(self, operands: tuple[Tensor, Tensor], letters: tuple[str, str], result: str, size: tuple) -> Tensor:
        """The channels of the result."""
        batch = [letter for letter in result if all(letter in term for term in letters)]
        pairs = list(zip(operands, letters, strict=True))
        in_heads = [bool(set(batch) & _varying(ids, term)) for ids, term in pairs]
        if any(in_heads):
            return self._by_head(pairs, in_heads, "".join(batch), (result, size))
        return self._single(pairs, result, size)

    def _by_head(self, pairs: list, in_heads: list[bool], batch: str, result: tuple[str, tuple]) -> Tensor:
        """Matrices of a batch, such as heads, go as wholes; a matrix that all of them share stays."""
        firsts = []
        for (ids, term), varies in zip(pairs, in_heads, strict=True):
            if not varies:
                self.freeze(ids, f"{self.name} shares its channels between all heads")
                continue
            first = ids
            for axis, letter in enumerate(term):
                first = first if letter in batch else first.narrow(axis, 0, 1)
            self.tie(ids, first)
            firsts.append(laid(first, term, batch))
        for other in firsts[1:]:
            self.tie(firsts[0], other)
        self.heads += firsts
        joint = max(firsts, key=lambda first: first.numel())
        return laid(joint, batch, result[0]).expand(result[1])

    def _single(self, pairs: list, result: str, size: tuple) -> Tensor:
        """One matrix by another: channels that are summed over go with those that they are multiplied with."""
        (a, left), (b, right) = pairs
        both = _varying(a, left) & _varying(b, right) - set(result)
        for ids, term in pairs:
            axes = {axis for axis, letter in enumerate(term) if letter not in result and letter not in both}
            self.freeze(ids, f"{self.name} sums over its channels", axes)
            if both and len(_varying(ids, term)) > 1:
                self.freeze([a, b], f"{self.name} multiplies by a matrix of its own")
        for letter in both:
            self.tie(laid(a, left, letter), laid(b, right, letter))
        free = [laid(ids, term, result) for ids, term in pairs if _varying(ids, term) & set(result)]
        if len(free) > 1:
            self.freeze([a, b], f"{self.name} lays its channels on two axes")
        return (free[0] if free else torch.tensor(0)).expand(size)


def _varying(ids: Tensor, term: str) -> set[str]:
    return {term[axis] for axis in varying(ids)}


def laid(ids: Tensor, term: str, result: str) -> Tensor:
    """Channels with their axes in the order of `result`: axes it has not are dropped, those it adds are of size 1."""
    for axis in reversed(range(len(term))):
        ids = ids if term[axis] in result else ids.select(axis, 0)
    here = [letter for letter in term if letter in result]
    ids = ids.permute([here.index(letter) for letter in result if letter in here])
    for axis, letter in enumerate(result):
        ids = ids if letter in here else ids.unsqueeze(axis)
    return ids
