"""What runs together: one description of the processes of each system, and how to run it.

The launch files and ``qsteer up`` read the same :func:`qsteer_ros.graph.systems.system`.
"""
