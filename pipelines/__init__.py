"""The commands: Hydra in, `ssl_core` on Ray Train, MLflow out."""
