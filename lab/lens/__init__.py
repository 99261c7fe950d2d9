"""lens"""

from .ablation import switched_off, without
from .activations import activations
from .atlas import atlas
from .concepts import concept_sets, unit_concepts, with_fresh_weights
from .field import receptive_fields
from .selectivity import selectivity
from .strongest import strongest

__all__ = [
    "activations",
    "atlas",
    "concept_sets",
    "receptive_fields",
    "selectivity",
    "strongest",
    "switched_off",
    "unit_concepts",
    "with_fresh_weights",
    "without",
]
