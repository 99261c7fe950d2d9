"""Differential privacy in numbers: the noise that an (epsilon, delta) asks for, and what several releases spend.

Neighbours are two sets of as many pictures, one of which differs. The accountant is Opacus' (Rényi differential
privacy, Mironov, 2017, arXiv 1702.07476): one release is one Gaussian mechanism, of sensitivity 1, without sampling.
"""

from functools import lru_cache
from typing import Any

from ..core.distribution import install

# Rényi orders: fine ones for a large epsilon, large ones for a small epsilon
ORDERS = (
    *(1 + k / 50 for k in range(1, 50)),
    *(2 + k / 4 for k in range(40)),
    *range(12, 64),
    *(2**k for k in range(6, 14)),
)


@lru_cache(maxsize=64)
def noise_multiplier(epsilon: float, delta: float, releases: int = 1) -> float:
    """The least noise, in units of the sensitivity, by which so many releases together are (epsilon, delta)-private."""
    accountants = _opacus()
    asked = {"target_epsilon": epsilon, "target_delta": delta, "sample_rate": 1.0, "steps": releases}
    return float(accountants.utils.get_noise_multiplier(**asked, accountant="rdp", alphas=list(ORDERS)))


def spent(noise: float, delta: float, releases: int) -> float:
    """The epsilon of so many releases together, each with this noise: of a client who takes part so often."""
    accountant = _opacus().RDPAccountant()
    accountant.history = [(noise, 1.0, releases)]
    return float(accountant.get_epsilon(delta=delta, alphas=list(ORDERS)))


def _opacus() -> Any:
    try:
        import opacus.accountants
        import opacus.accountants.utils
    except ImportError as error:
        raise ImportError(f"noise=(epsilon, delta) needs opacus: {install('privacy')}") from error
    return opacus.accountants
