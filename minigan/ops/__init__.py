"""The differentiable operations.

One file for each, with its forward, its backward, its leaf functions and its samples.
"""
