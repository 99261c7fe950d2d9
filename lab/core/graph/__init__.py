"""A network as a graph: traced, understood, cut.

`tracing` makes a copy that can be cut, `inplace` makes its in-place work plain, `calls` reads arguments by name.
`channels` says which channel axes belong together, `chains` what lies between two layers, and `surgery` removes a
plan's channels, branches and blocks, so that what is left gives the masked network's outputs.
"""
