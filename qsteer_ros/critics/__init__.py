"""Q ensembles over action chunks, their losses and checkpoints."""
