"""Optimisers, parameter groups and schedules."""

from ssl_core.optim.build import OptimConfig, build_optimizer, learning_rate
from ssl_core.optim.lars import LARS

__all__ = ["LARS", "OptimConfig", "build_optimizer", "learning_rate"]
