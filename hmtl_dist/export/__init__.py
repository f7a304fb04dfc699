"""Models to take away: safetensors, ONNX or torch.export, checked against the model that was trained."""
