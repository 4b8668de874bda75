"""The engine: one step, the loop around it, checkpoints, the audit, and the one door to the platform."""
