"""ONNX files: written, quantised, looked into and run.

`export` writes a network in float; `qdq` one with quantisers as QuantizeLinear and DequantizeLinear, `ops` the nodes
between them. `ort_report` asks onnxruntime which layers it runs on integers; `runtime` opens its sessions, `openvino`
those of OpenVINO, and compares the two. `outcome` is what the outcomes of all methods that quantise can do with a file.
"""
