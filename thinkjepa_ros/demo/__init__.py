"""What a newcomer sees first: recording, nodes, live table, report. Needs no ROS tools."""
