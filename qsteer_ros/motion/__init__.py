"""From action chunks to joint motion: kinematics, servo model, limits, paths. No ROS, no torch."""
