"""Frozen policies: encoders, velocity networks, and the steered decision made with them."""
