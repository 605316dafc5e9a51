"""A trained network in files that others run: ONNX, safetensors, C; each measured and checked where it was written."""
