"""Token ops: one specification each, from which come the ONNX function body and the reference."""
