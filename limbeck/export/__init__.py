"""Networks for use elsewhere."""

from limbeck.export.onnx import to_onnx

__all__ = ["to_onnx"]
