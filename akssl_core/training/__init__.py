"""The loop over a method's steps, and what happens around it: rows, probes, checkpoints, signals."""
