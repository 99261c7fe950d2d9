"""Small spaces whose best is known."""

from itertools import product

import torch

import lab

KINDS = ("skip", "small", "large")


def worth(choice) -> float:
    """Large blocks are better, most of all early ones."""
    return 60 + sum(KINDS.index(kind) * (4 - place) for place, kind in enumerate(choice))


def chains(**fields) -> lab.Space:
    """All 81 chains of four blocks; labels carry a little noise, weak labels a lot."""
    choices = list(product(KINDS, repeat=4))
    truth = torch.tensor([worth(choice) for choice in choices], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2, len(truth), generator=draw, dtype=torch.float64)
    cost = torch.tensor([float(sum(KINDS.index(kind) for kind in choice)) for choice in choices])
    known = {
        "graphs": [lab.Graph.chain(choice, range(4)) for choice in choices],
        "choices": choices,
        "chain": True,
        "labels": truth + 0.2 * noise[0],
        "truth": truth,
        "weak": {"supernet": truth + 5 * noise[1], "blocks": cost},
        "costs": {"blocks": cost},
        "name": "chains",
    }
    return lab.Space(**(known | fields))
