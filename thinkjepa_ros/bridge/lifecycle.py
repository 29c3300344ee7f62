"""A lifecycle node that loads its model without going deaf, and the main function that runs one.

rclpy calls on_configure in the executor thread, where reading a checkpoint would stop parameters, services and
signals for as long as it takes. Here a loader thread reads it first; on_configure only takes over the result. While
it reads, the change_state service waits in a coroutine and everything else answers.
"""

from __future__ import annotations

import abc
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

#: Launch sends SIGTERM five seconds after SIGINT and SIGKILL five after that; we are gone before the first.
EXIT_WITHIN_S = 4.0
#: Exit status of a process that gave up waiting for a model call.
EXIT_HUNG = 3
#: How long a worker that is inside a model call is waited for.
JOIN_S = 2.0
#: A signal is seen between two waits of the executor, where rclpy's own handlers do not end them.
_PROMPT_S = 0.05

_PARAMETER_ERRORS = (InvalidParameterTypeException, InvalidParameterValueException, ParameterUninitializedException)
_TRANSITIONS = {
    Transition.TRANSITION_CONFIGURE: "configure",
    Transition.TRANSITION_CLEANUP: "cleanup",
    Transition.TRANSITION_ACTIVATE: "activate",
    Transition.TRANSITION_DEACTIVATE: "deactivate",
    Transition.TRANSITION_UNCONFIGURED_SHUTDOWN: "shutdown",
    Transition.TRANSITION_INACTIVE_SHUTDOWN: "shutdown",
    Transition.TRANSITION_ACTIVE_SHUTDOWN: "shutdown",
}


class LoadingNode(LifecycleNodeMixin, Node, abc.ABC):
    """Base of our nodes: transitions that answer, exceptions that are reported.

    A subclass says what each transition does: `load` (loader thread), `adopt`, `start`, `stop`, `release` (executor
    thread). `changed` is called after each transition and with every error.
    """

    #: Exceptions of `load` that explain themselves; any other one is logged with its traceback.
    explained: tuple[type[Exception], ...] = ()

    def __init__(self, name: str, **kwargs: Any) -> None:
        Node.__init__(self, name, **kwargs)
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._service_change_state.callback = self._serve_change_state
        self._loader: threading.Thread | None = None
        self._loaded: tuple[Any, Exception | None] | None = None
        self.failure = ""

    @abc.abstractmethod
    def load(self) -> Any:
        """Read, verify and warm up the model, in a thread of its own. Raises exceptions that say what to do."""

    @abc.abstractmethod
    def adopt(self, model: Any) -> None:
        """Take over what `load` returned."""

    @abc.abstractmethod
    def start(self) -> None:
        """Subscribe and start the worker."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Unsubscribe and end the worker; must do no harm when nothing was started."""

    @abc.abstractmethod
    def release(self) -> None:
        """Free the model."""

    def changed(self) -> None:
        """A transition was made or an error happened: tell the world."""

    @property
    def worker_ended(self) -> bool:
        """No thread of this node is inside a model call."""
        return True

    @property
    def label(self) -> str:
        """Lifecycle state: unconfigured, inactive, active, finalized, or one in between."""
        return self._state_machine.current_state[1]

    @property
    def loading(self) -> bool:
        return self._loader is not None

    @property
    def loader_alive(self) -> bool:
        return self._loader is not None and self._loader.is_alive()

    def fail(self, what: str, error: BaseException) -> None:
        """Log an error and remember it in words; the traceback only where the text alone does not explain it."""
        self.failure = (
            f"{what}: {error}" if isinstance(error, self.explained) else f"{what}: {type(error).__name__}: {error}"
        )
        details = (
            "" if isinstance(error, self.explained) else "\n" + "".join(traceback.format_exception(error)).rstrip()
        )
        self.get_logger().error(self.failure + details)
        self.changed()

    # ---- transitions

    async def transition(self, name: str) -> bool:
        """Make one transition ("configure", "activate", ...). False when it failed or is not possible now."""
        if self.loading:
            self.get_logger().error(f"cannot {name} while the model is being loaded; wait for the state inactive")
            return False
        if name == "configure" and self.label == "unconfigured":
            await self._load_aside()
        try:
            return getattr(self, f"trigger_{name}")() == TransitionCallbackReturn.SUCCESS
        except Exception as error:  # trigger_shutdown raises where the state has no such transition
            self.get_logger().error(f"cannot {name} in the state {self.label}: {error}")
            return False

    async def bring_up(self) -> None:
        """What `autostart` does."""
        if await self.transition("configure"):
            await self.transition("activate")

    async def _serve_change_state(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        name = request.transition.label or _TRANSITIONS.get(request.transition.id, "")
        if name not in _TRANSITIONS.values():
            self.get_logger().error(f"there is no transition {request.transition.label or request.transition.id!r}")
            response.success = False
        else:
            response.success = await self.transition(name)
        return response

    async def _load_aside(self) -> None:
        executor = self.executor
        assert executor is not None  # only an executor runs coroutines
        done: Future[None] = Future(executor=executor)

        def work() -> None:
            self._loaded = self._try_load()
            executor.create_task(done.set_result, None)

        self._loader = threading.Thread(target=work, name=f"{self.get_name()} loader", daemon=True)
        self.failure = ""
        self._loader.start()
        self.changed()
        try:
            await done
        finally:
            self._loader = None

    def _try_load(self) -> tuple[Any, Exception | None]:
        try:
            model = self.load()
        except Exception as error:
            return None, error
        # Hundreds of thousands of objects of the libraries and the model stay from here on. Walking through them would
        # stop a forecast for tens of milliseconds now and then; `_collect` lets go of them again.
        gc.collect()
        gc.freeze()
        return model, None

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        model, error = self._loaded or self._try_load()
        self._loaded = None
        if error is not None:
            self.fail("cannot configure", error)
            return TransitionCallbackReturn.FAILURE
        return self._guarded("configure", lambda: self.adopt(model))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        super().on_activate(state)  # publishers first: the worker may have a result at once
        result = self._guarded("activate", self.start)
        if result != TransitionCallbackReturn.SUCCESS:
            super().on_deactivate(state)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        super().on_deactivate(state)
        return self._guarded("deactivate", self.stop)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("clean up", lambda: _collect(self.release))

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("shut down", self._end)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("recover from an error", self._end)

    def _end(self) -> None:
        self.stop()
        _collect(self.release)

    def _guarded(self, what: str, act: Callable[[], None]) -> TransitionCallbackReturn:
        """rclpy swallows what a transition raises; here it is logged and reported, and the node stays where it was."""
        try:
            act()
            self.failure = ""
            result = TransitionCallbackReturn.SUCCESS
        except Exception as error:
            self.fail(f"cannot {what}", error)
            result = TransitionCallbackReturn.FAILURE
        # the state machine moves on only after this returns
        if self.executor is not None:
            self.executor.create_task(self.changed)
        return result


def _collect(release: Callable[[], None]) -> None:
    """Release a model and free its memory now, not some day."""
    release()
    gc.unfreeze()
    gc.collect()


def run(make: Callable[[], LoadingNode], args: list[str] | None = None, last_words: bool = False) -> NoReturn:
    """Run a node until SIGINT, SIGTERM or its own sys.exit, then end the process: exit status 0 for the signals.

    It ends within 5 s of the signal even while a model call hangs: such a thread cannot be ended, only left.
    last_words: ROS goes on after the signal until the node was stopped, so that `stop` can still publish; without, the
    signal ends ROS itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # called before rclpy has its own handlers, and by these
        signal.signal(number, _on_signal)
    node: LoadingNode | None = None
    status = 0
    try:
        # with its own handlers, rclpy takes the context away at the signal
        handlers = SignalHandlerOptions.NO if last_words else SignalHandlerOptions.ALL
        rclpy.init(args=args, signal_handler_options=handlers)
        node = make()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if node.get_parameter("autostart").value:
            executor.create_task(node.bring_up)
        _spin(executor, node, _PROMPT_S if last_words else 1.0)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except SystemExit as end:
        status = int(end.code or 0)
    except _PARAMETER_ERRORS as error:
        print(f"refused to start, correct the parameter: {error}", file=sys.stderr)
        status = 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    deadline = threading.Timer(EXIT_WITHIN_S, _leave, (status,))
    deadline.daemon = True
    deadline.start()
    if node is not None:
        _close(node, status)
    rclpy.try_shutdown()
    # Not by way of the interpreter's own end: rclpy has just put the handlers of before back, so that a second SIGINT
    # (launch and the terminal both send one) would interrupt it, and taking torch apart lasts seconds on a busy
    # machine.
    _leave(status)


def _spin(executor: SingleThreadedExecutor, node: LoadingNode, timeout_s: float) -> None:
    while rclpy.ok():
        try:
            executor.spin_once(timeout_sec=timeout_s)
        except (KeyboardInterrupt, ExternalShutdownException):
            return
        except Exception as error:  # one callback failed; the node goes on and says so
            if not rclpy.ok():  # the signal came while the executor was getting ready to wait
                return
            node.fail("a callback failed", error)


def _close(node: LoadingNode, status: int) -> None:
    try:
        node.stop()
    except Exception:
        traceback.print_exc()
    if node.worker_ended and not node.loader_alive:  # a model call left behind must find what it was given
        node.destroy_node()


def _on_signal(*_: Any) -> NoReturn:
    """The first signal ends the spinning, a second one must not interrupt the end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def _leave(status: int) -> NoReturn:
    """End the process without waiting for threads that are inside a model."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
