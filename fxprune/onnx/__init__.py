"""From a pruned model to an ONNX file that is compared with it."""
