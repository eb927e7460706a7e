"""Export to ONNX: front end, normalisation and network in one graph."""
