"""Models to the view and back: one adapter for ATen programs, one for ONNX, and constant folding between them."""
