"""A tabletop arm in MuJoCo: scene, cameras, joint-trajectory follower, scripted expert. No ROS."""
