"""The Hydra tree, shipped as package data: YAML values only."""
