"""The lens: looking into any torch model, which is never changed; every reading stands beside its control.

maps          activations: what every layer answers, by name (forward hooks, always taken away again)
              atlas: the feature maps of each layer, a page at a time
              filters: a grid to click; a filter's map, its strongest pictures, what happens without it
              compare_maps: two models on the same pictures, also where the second has fewer filters
before, after compare: what compressing has changed, on one page: classes, flipped answers, calibration (Guo et al.,
              ICML 2017, arXiv 1706.04599), corruptions (Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261), maps,
              filters lost, heads, blocks, words. Controls: fresh weights, shuffled labels and examples; exact and
              permutation tests raise an alarm where networks or labels are not what they are taken for. Ours
filters       strongest: the pictures each filter answers to most, cut to what its unit sees (Zeiler and Fergus,
              ECCV 2014; one unit a picture)
              receptive_fields: what a unit sees, found by which pixels make it NaN. Ours
              weights: kernels in colour, as grids, 1 x 1 as a matrix
what it does  switched_off, without: filters answer 0 (Morcos, Barrett, Rabinowitz, Botvinick; ICLR 2018, arXiv
              1803.06959). Control: as many others drawn at random
what it means selectivity: (mu_max - mu_-max) / (mu_max + mu_-max) over classes (the same paper). Control:
              shuffled labels
              unit_concepts: overlap of a filter's top 0.5 % with exact masks (Network Dissection: Bau, Zhou, Khosla,
              Oliva, Torralba; CVPR 2017, arXiv 1704.05796). concept_sets: of a few filters together, greedy. Ours
              Control: the same network with fresh weights (with_fresh_weights)
              dissect: the sets and their masks on pictures, a concept to click
the answer    attribution: integrated gradients, saliency, gradient SHAP, occlusion, Grad-CAM, by Captum (extra `lens`)
              explain: the same beside a network with fresh weights (Adebayo et al., NeurIPS 2018, arXiv 1810.03292)
              attention, rollout: how layers of attention weigh tokens, and what of each patch reaches the class token
              through all of them (Abnar and Zuidema, ACL 2020, arXiv 2005.00928)
              attend: both as maps, beside a network with fresh weights
              cross_attention, words: where a diffusion model's layers put each word of a prompt, step by step, as DAAM
              reads it (Tang et al., ACL 2023, arXiv 2210.04885): words to click, beside fresh weights
              segmentation: the classes that segmenters name, pixel by pixel, beside the labels

A layer is a name of `model.named_modules()`; its filters are axis 1 of what it gives, (N, filters, H, W) or
(N, filters). In networks of tokens they are the last axis, (N, tokens, filters) or (N, H, W, filters), and a filter's
map is its tokens on the grid of the patches; tokens of no patch (class, registers) are in no map. Pictures are as the
model takes them; those within [0, 1] are shown as they are, others from their lowest value to their highest. Models
run in eval mode. Exact masks come from `lab.tasks.scenes_concepts()`.

departures    Network Dissection searches Broden, whose masks people drew; ours are drawn by rule. A filter that answers
              the same everywhere is strong nowhere. Sets are chosen on one half of the pictures, measured on the other.
"""

from .ablation import switched_off, without
from .activations import activations
from .atlas import atlas
from .attention import attend, attention, rollout
from .attribution import attribution, explain
from .comparison import compare_maps
from .concepts import concept_sets, unit_concepts, with_fresh_weights
from .dissection import dissect
from .explanation import Explanation, compare, explained
from .field import receptive_fields
from .filters import filters
from .segmentation import segmentation
from .selectivity import selectivity
from .strongest import strongest
from .weights import weights
from .words import cross_attention, words

__all__ = [
    "Explanation",
    "activations",
    "atlas",
    "attend",
    "attention",
    "attribution",
    "compare",
    "compare_maps",
    "concept_sets",
    "cross_attention",
    "dissect",
    "explain",
    "explained",
    "filters",
    "receptive_fields",
    "rollout",
    "segmentation",
    "selectivity",
    "strongest",
    "switched_off",
    "unit_concepts",
    "weights",
    "with_fresh_weights",
    "without",
    "words",
]
