"""Encoders as ONNX models: what `SparseMixer.to_onnx` writes. Needs the extra ``onnx``."""
