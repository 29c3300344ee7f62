"""Acting: limits, planning, policies, the controller; ROS-free."""
