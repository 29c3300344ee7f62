"""Thin ROS 2 adapters."""
