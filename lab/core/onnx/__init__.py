"""ONNX files: written, quantised, looked into and run, and read back as networks of torch.

`export` writes a network in float; `qdq` one with quantisers as QuantizeLinear and DequantizeLinear, `ops` the nodes
between them. `ort_report` asks onnxruntime which layers it runs on integers; `runtime` opens its sessions, `openvino`
those of OpenVINO, and compares the two. `reading` makes a network of any file: `values` are its tensors in the making,
`from_layers`, `from_shapes`, `from_ops` and `from_resize` the operators, `fusing` what files spell out put together.
`outcome` is what the outcomes of all methods that quantise can do with a file.
"""
