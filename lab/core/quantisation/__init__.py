"""Quantisation that no method owns: grids, ranges, quantisers, and where they belong.

`grids` says which numbers a tensor may hold; `calibration` reads a range off data, `quantisers` learn one. `placement`
finds the tensors of a network that a quantiser belongs to, `bn_folding` readies the network for it.
"""
