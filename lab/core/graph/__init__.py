"""A network as a graph: traced, understood, cut.

`tracing` makes a copy that can be cut, with the `proxies` of torch.fx or, where code asks for sizes, `by_example`; in
it `attention`, `opened` and `inplace` write torch's attention, functions and in-place work plainly. `calls` reads
arguments by name. `entries` follows each channel through all tensors, with `operators` (what an operation does to a
channel), `contractions` (what a product of matrices does to it), `moves` (what only moves numbers) and `unions`
(which channels are one). `channels` says which channels belong together, `groups` what they are: channels, heads,
hidden units, an embedding. `chains` says what lies between two layers, `slices` what a module keeps of its weights,
and `surgery` removes a plan's channels, branches and blocks, so that what is left gives the masked network's outputs.
"""
