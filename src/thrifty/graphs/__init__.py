"""OpenVINO graphs built from a checkpoint's weights, without PyTorch."""
