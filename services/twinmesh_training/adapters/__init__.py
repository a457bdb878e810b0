"""What the domain's ports stand on: PostgreSQL, the storage and state-sync services, torch, ONNX, disk, processes."""
