"""Models for where they run: one ONNX file, plain C, and the proof that they give one answer."""
