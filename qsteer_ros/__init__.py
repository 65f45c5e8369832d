"""Frozen flow policies on real arms, steered by a critic's action gradient.

The package imports nothing here, so that the logger starts without torch and the core without ROS.
"""

__version__ = "0.1.0"
