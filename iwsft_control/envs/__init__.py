"""Tasks, D4RL's physics, batched simulation and evaluation."""
