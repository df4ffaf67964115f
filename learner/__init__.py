"""The learner: objectives, LoRA policy, optimisation loop, checkpoints."""
