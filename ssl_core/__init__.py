"""Self-supervised pretraining in plain torch: methods, data plane, step, loop, checkpoints and probes."""
