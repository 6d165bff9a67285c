"""Records of metrics and where they go: JSON lines, MLflow, and a Lightning Logger."""
