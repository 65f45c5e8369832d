"""The episode store: format, writer, reader, recovery, transitions. No ROS, no torch."""
