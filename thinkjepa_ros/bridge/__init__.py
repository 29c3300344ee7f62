"""ROS messages to core values and back. Only this folder and nodes/ import rclpy."""
