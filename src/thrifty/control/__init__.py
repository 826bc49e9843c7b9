"""The control plane: the desired state, and the loop that brings the world to it."""
