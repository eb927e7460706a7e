"""Export to ONNX: front end, normalisation and network in one graph."""

from __future__ import annotations

from stapes.deploy.onnx.model import FORMAT_VERSION, onnx_model

__all__ = ["FORMAT_VERSION", "onnx_model"]
