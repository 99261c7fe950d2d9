"""A network as a graph: traced, understood, cut.

`tracing` makes a copy that can be cut, `inplace` makes its in-place work plain, `calls` reads arguments by name.
`entries` follows each channel through all tensors, with `operators` (what an operation does to a channel) and `moves`
(what only moves numbers). `channels` says which channels belong together, `chains` what lies between two layers,
`slices` what a module keeps of its weights, and `surgery` removes a plan's channels, branches and blocks, so that what
is left gives the masked network's outputs.
"""
