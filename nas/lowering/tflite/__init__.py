"""Layers as TensorFlow Lite models: `lowering` walks a trace, `operators` writes what it finds."""

LOWERING = "tflite-int8/1"  # to be raised with every change of what is written
