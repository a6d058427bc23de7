"""Layers and networks in the file formats of other runtimes: ONNX and TensorFlow Lite."""
