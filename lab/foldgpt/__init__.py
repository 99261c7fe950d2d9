"""FoldGPT: layer removal and sharing for language models (Liu, Zeng, Li, Yan, Fu, Mei, Chen; 2024,
arXiv 2407.00928).

    idea        The blocks of a language model change little of what passes through them, so some can go and neighbours
                can share one set of weights. Which go is learned for all blocks together: every block stands behind a
                gate, and the gates must meet a budget of operations and polarise. Neighbours that stay then share their
                matrices, each with norms and a small adapter of its own, and a short distillation from the full model
                repairs the rest.
    symbols     N blocks   R removed   r removal, R / N   G a group that shares   g gate of a block   a, b what it is
                learned from   eps its softness   h hidden state   P0, p, n parameters of model, block, norms of a block
    equations   (1) gate   (1a) hard_concrete   (2) gated   (3) budget   (3a) within_budget   (3b) open_share
                (4) annealed   (5) parameters   (6) adapters   (7) cache_bytes   (8) similarity   (9) influence
                (10) taylor   (11) low_rank   (12) tail   (13) logit_distillation   (14) regression_mean
                (15) low_rank_of_inputs
    procedure   recipe.FoldGPT.run: a stage `gates` or, under a budget, a search; then the fold, then a stage `cure`
    where       layers holds the gates, ranking the baselines (ShortGPT, SLEB, Taylor), search the fold within a
                budget, sharing the pairs and whose weights they take, folding the smaller model,
                configuration what is said of each of its layers, core.modeling_folded what `transformers` needs to load
                it again, rehearsal what is asked of a model first, architectures what came of each family, measures
                what it does and how fast, evaluation lm-eval's tasks
    picture     view.explore, view.folding

    departures  The paper's gate, rates, steps, group layout, adapters and loss weights were not available, nor were its
                tables: all formulas and defaults are this project's reconstruction, and no number of the paper is
                quoted.
                The gates learn from KL to the ungated model. With the budget as a penalty all gates fell together and
                their ranking missed what removal costs; here they are kept within the budget exactly, Card (3a). What a
                gate is learned from, b, takes the gradient of the gate itself, so that a shut gate still learns. For
                most of the run eps is large and all gates are nearly alike, which makes the order repeatable from seed
                to seed. At the end eps falls and they polarise; with learning continued during that phase the order was
                lost. Thus 'gates' accumulate what closing each a little costs; 'hard-concrete' gates are drawn shut or
                open while they learn, so that they also see what is missed jointly, under a penalty for what is open
                beyond the budget.
                Without a budget pairs are the kept neighbours whose states are most alike. With one, a search of our
                own measures what removals and groups of two to four cost: blocks are removed first, for a cure gives
                more back to a removal than to a group, and the fewest share where a whole block more would be more
                than is asked; what the budget leaves goes into the adapters' rank. Blocks with experts are removed and
                never shared. In the cure, what a group shares learns at a lower rate of its own; blocks with weights
                of their own are cured by adapters that are merged in, so that they cost nothing afterwards.
"""

from ..core.rooms import at_first_use
from .architectures import architectures
from .outcome import FoldGPTOutcome
from .recipe import FoldGPT

__all__ = ["FoldGPT", "FoldGPTOutcome", "architectures"]

__getattr__, __dir__ = at_first_use(globals(), "view")
