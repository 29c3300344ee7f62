"""Runs a real node whose model never returns: `python hanging_node.py (predictor|thinker) (load|call) [ROS arguments]`.

Started by test_node_processes.py. `load` hangs in the loader thread, `call` in the worker.
"""

from __future__ import annotations

import sys
import time


def hang(*_: object, **__: object) -> None:
    print("the model hangs", flush=True)
    time.sleep(3600)


def main() -> int:
    name, where = sys.argv[1:3]
    if name == "predictor":
        from thinkjepa_ros.jepa.forecaster import Forecaster as Model
        from thinkjepa_ros.nodes import predictor as node

        call = "forecast"
    else:
        from thinkjepa_ros.nodes import thinker as node
        from thinkjepa_ros.thinker.qwen import Thinker as Model

        call = "think"
    warm_up = Model.warm_up

    def warm_up_then_hang(self) -> None:
        warm_up(self)
        setattr(Model, call, hang)

    Model.warm_up = hang if where == "load" else warm_up_then_hang
    return node.main(sys.argv[:1] + sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
