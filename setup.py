"""Shim for tools that look for it; everything is in setup.cfg. The ROS build (messages included) is CMakeLists.txt."""

from setuptools import setup

setup()
