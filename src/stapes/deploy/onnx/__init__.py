"""Export to ONNX: front end, normalisation and network in one graph."""

from __future__ import annotations

from stapes.deploy.onnx.model import onnx_model

__all__ = ["onnx_model"]
