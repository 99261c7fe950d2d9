"""Spaces of architectures, and streams of data sets, that searches run on.

An `architectures.Space` holds graphs that can be told apart, drawn and scored; `cells` builds the lab's own, `tables`
reads benchmarks that others trained. `streams` gives the data sets of a stream and what they have in common. `draws`
orders anything by a seed, whatever its order in a table.
"""
