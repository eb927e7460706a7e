"""Exported models on ONNX Runtime. Needs numpy, soundfile, soxr and onnxruntime only."""
