"""ONNX files: written, quantised, looked into and run.

`export` writes a network in float; `qdq` one with quantisers as QuantizeLinear and DequantizeLinear, `operators` their
nodes. `fusion` reports which kernels onnxruntime runs in integers; `runtime` opens its sessions. `outcome` is what
the outcomes of all methods that quantise have in common: their size and file.
"""
