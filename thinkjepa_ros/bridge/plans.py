"""Plan.msg <-> values.Plan, with every size checked and every number finite before anybody moves by it.

A message that contradicts itself raises MessageError, which names the field.
"""

from __future__ import annotations

import math
from typing import cast, get_args

import numpy as np

from thinkjepa_ros.msg import Plan as PlanMsg

from ..values import Plan, Source
from .messages import MessageError, make_header, packed, stamp_ns

SOURCES: tuple[Source, ...] = get_args(Source)
# Far above any plan and far below what hurts.
_MAX_STEPS, _MAX_WIDTH, _MAX_ENERGIES = 4096, 256, 65536
_MAX_FLOAT32 = 3.402823466e38  # what message setters take; a hair below the largest float32


def plan_to_message(
    plan: Plan,
    frame_id: str,
    *,
    planning_s: float = math.nan,
    model_id: str = "",
    domain: str = "",
    trained: bool = True,
) -> PlanMsg:
    """frame_id: the robot's base, in which the actions are. ValueError, with the field, for a plan that is none: the
    other side would refuse it.
    """
    actions, energies = np.asarray(plan.actions, np.float32), np.asarray(plan.energies, np.float32)
    if actions.ndim != 2 or energies.ndim != 1:
        raise ValueError(
            f"actions of a plan are [steps, width] and energies [n], not {list(actions.shape)} and "
            f"{list(energies.shape)}"
        )
    message = PlanMsg(source=str(plan.source), model_id=model_id, domain=domain, trained=bool(trained))
    message.header = make_header(plan.stamp_ns, frame_id)
    message.steps, message.width = (int(n) for n in actions.shape)
    message.actions, message.energies = packed("f", actions), packed("f", energies)
    for name in ("step_s", "energy", "hold_energy", "guidance_age_s"):
        setattr(message, name, _float32(name, getattr(plan, name)))
    message.planning_s = _float32("planning_s", planning_s)
    plan_from_message(message)
    return message


def plan_from_message(message: PlanMsg) -> Plan:
    """Raises MessageError for sizes that do not agree, numbers that are not finite, and a source that is unknown."""
    m = message
    for name, most in (("steps", _MAX_STEPS), ("width", _MAX_WIDTH)):
        _require(0 < getattr(m, name) <= most, f"{name} is {getattr(m, name)}, must be 1 to {most}")
    wanted = m.steps * m.width
    _require(len(m.actions) == wanted, f"actions has {len(m.actions)} values, {m.steps} x {m.width} need {wanted}")
    _require(len(m.energies) <= _MAX_ENERGIES, f"energies has {len(m.energies)} values, at most {_MAX_ENERGIES}")
    _require(math.isfinite(m.step_s) and m.step_s > 0, f"step_s is {m.step_s}, must be above 0")
    _require(m.source in SOURCES, f"source is {m.source[:40]!r}, must be one of {', '.join(SOURCES)}")
    for name in ("energy", "hold_energy", "guidance_age_s"):
        value = getattr(m, name)
        _require(not math.isinf(value), f"{name} is {value}, must be finite, or NaN where there is none")
    ns = stamp_ns(m.header.stamp)
    _require(ns > 0, "header.stamp is zero; it must be the stamp of the image that the plan rests on")
    actions, energies = (np.frombuffer(x, np.float32).copy() for x in (m.actions, m.energies))
    for name, numbers in (("actions", actions), ("energies", energies)):
        _require(bool(np.isfinite(numbers).all()), f"{name} holds values that are not finite")
    _require(bool((np.diff(energies) >= 0).all()), "energies must rise, lowest first")
    return Plan(
        actions=actions.reshape(m.steps, m.width),
        energy=float(m.energy),
        hold_energy=float(m.hold_energy),
        energies=energies,
        source=cast(Source, m.source),
        stamp_ns=ns,
        step_s=float(m.step_s),
        guidance_age_s=float(m.guidance_age_s),
    )


def _float32(name: str, value: float) -> float:
    value = float(value)
    if math.isfinite(value) and abs(value) > _MAX_FLOAT32:
        raise ValueError(f"{name} is {value:g}, more than a float32 holds")
    return value


def _require(condition: bool, words: str) -> None:
    if not condition:
        raise MessageError(words)
