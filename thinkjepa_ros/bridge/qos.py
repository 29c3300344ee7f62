"""Quality of service of every topic: REP-2003 for sensors, latched where a late joiner needs the last word."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

#: Camera streams: best effort matches every publisher, and a lost frame is better than a late one. Users override it
#: with the parameters `qos_overrides.<topic>.subscription.{reliability,depth,...}`.
IMAGES = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
CAMERA_INFO = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
#: Observed poses: best effort matches reliable publishers too.
OBSERVATIONS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
#: Results of a cycle: only the newest matters.
RESULTS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
#: Guidance, status, instruction, text: whoever joins late gets the last one.
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
DIAGNOSTICS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
