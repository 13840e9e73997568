"""The differentiable operations: one file for each, with its forward, its backward, its leaf functions and its samples."""
