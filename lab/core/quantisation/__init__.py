"""Quantisation that no method owns: grids, quantisers, and where they belong.

`qparams` says which numbers a tensor may hold; `quantisers` read a range off data or learn one. `placement` finds the
tensors of a network that a quantiser belongs to, `bn_folding` readies the network for it.
"""
