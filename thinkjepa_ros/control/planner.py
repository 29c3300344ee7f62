"""Planning in the latent world: imagine what candidate actions lead to, and move toward those that lead to the goal.

One planner for the CEM of V-JEPA 2-AC (for comparison), iCEM and MPPI (see `search`), with gradient refinement. It
keeps everything on one device in tensors of fixed shapes, takes its noise from a pool that was drawn once, and asks
nothing back before the result, so that a round can be a CUDA graph. Rounds can be run one by one, whenever there is
time: the distribution stays from one control period to the next and is shifted by the time that passed.

Standing still is imagined in every round beside the candidates, so that a result says by how much it beats it. Energies
that are not finite never win.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import values
from ..jepa.compiled import Prepared, prepare
from . import search
from .energy import Energy
from .latent import World
from .noise import coloured
from .search import PROPOSED, SAMPLED, SHIFTED, Offer, Rates, SearchConfig, State

#: Rounds that the noise pool lasts before it is used again.
_POOL = 64
#: Most rounds that are kept prepared: one per number of samples and kind of energy.
_GRAPHS = 16
_SOURCES: dict[int, values.Source] = {SAMPLED: "planner", SHIFTED: "shifted", PROPOSED: "policy"}


@dataclass(frozen=True)
class Problem:
    """What to plan for. known: of the world (`LatentWorld.known`). hold: action [A] that stays as things are: no
    motion, and the places that are now (a gripper's closedness).
    """

    known: tuple[Tensor, ...]
    energy: Energy
    hold: Tensor


@dataclass(frozen=True)
class Result:
    """actions: float32 [H, A], the best sequence of icem and of a refinement, the mean of cem and mppi, or `hold` if
    nothing finite was found. energies [E] and candidates [E, H, A]: the best that were imagined, best first. parts: of
    the energy of the actions, by term, weighted. imagined: sequences, over all rounds.
    """

    actions: np.ndarray
    energy: float
    hold_energy: float
    energies: np.ndarray
    candidates: np.ndarray
    parts: dict[str, float]
    source: values.Source
    rounds: int
    imagined: int

    def plan(self, stamp_ns: int, step_s: float, guidance_age_s: float = float("nan")) -> values.Plan:
        """As it travels. stamp_ns: of the image that the context was made from; step_s: of an action."""
        return values.Plan(
            self.actions, self.energy, self.hold_energy, self.energies, self.source, stamp_ns, step_s, guidance_age_s
        )


class Planner:
    """Plans one problem after the other in one world. Not for several threads at once."""

    def __init__(self, config: SearchConfig, world: World, device: torch.device | str = "cpu") -> None:
        self.config, self.world, self.device = config, world, torch.device(device)

        def tensor(numbers: tuple[float, ...]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float32, device=self.device)

        self._low, self._high, self._sigma = tensor(config.low), tensor(config.high), tensor(config.sigma)
        self._absolute = tensor(tuple(float(x) for x in config.absolute))
        floor = 0.0 if config.method == "cem" else config.least_sigma
        self._rates = Rates(tensor(config.momentum_mean), tensor(config.momentum_std), floor * self._sigma)
        self._prepared: dict[tuple[object, ...], Prepared] = {}
        self.words = ""  #: how the last round ran, for a log
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Forget everything; from here on the same problems give the same plans, bit for bit on one machine."""
        c = self.config
        generator = torch.Generator(self.device).manual_seed(c.seed if seed is None else seed)
        shape = (_POOL, c.samples, c.horizon, c.size)
        beta = 0.0 if c.method == "cem" else c.beta
        self._pool = coloured(shape, beta, generator, self.device, c.window)
        self._round = 0  # of all, which noise is next
        self._state: State | None = None
        self._problem: Problem | None = None

    def plan(
        self, problem: Problem, elapsed_s: float | None = None, step_s: float = 1.0, proposals: Tensor | None = None
    ) -> Result:
        """All rounds and the refinement. See `begin`."""
        self.begin(problem, elapsed_s, step_s, proposals)
        for index in range(self.config.iterations):
            self.iterate(last=index + 1 == self.config.iterations)
        if self.config.refine:
            self.refine()
        return self.result()

    @torch.inference_mode()
    def begin(
        self, problem: Problem, elapsed_s: float | None = None, step_s: float = 1.0, proposals: Tensor | None = None
    ) -> None:
        """A new present, a new goal. elapsed_s: seconds since the present of the plan before, by which its distribution
        and its best candidates are shifted; None, and always for cem, starts anew. step_s: of an action.
        proposals: candidates [N, H, A], N at most `config.proposals`; those with a NaN are left out. They are tried in
        the first round. Raises ValueError naming what does not fit.
        """
        c = self.config
        self._check(problem, proposals)
        hold = problem.hold.to(self.device, torch.float32).expand(c.horizon, c.size)
        mean, std, again, seen = self._warm(hold, None if elapsed_s is None else elapsed_s / step_s)
        given = hold[None][:0] if proposals is None else proposals.to(self.device, torch.float32)
        usable = given.isfinite().all((1, 2))
        if c.prior_weight and len(given):
            share = (usable.float() / usable.sum().clamp(min=1))[:, None, None]
            prior = (share * torch.where(usable[:, None, None], given, 0.0)).sum(0)
            weight = c.prior_weight * usable.any().float()
            mean = (1 - weight) * mean + weight * prior
        mean = mean.clamp(self._low, self._high)
        room = c.proposals - len(given)
        none = usable.new_zeros(room)
        self._offered = torch.cat((again, given, hold.expand(room, -1, -1)))
        self._valid = torch.cat((seen, usable, none))
        origins = [SAMPLED] + [SHIFTED] * c.again + [PROPOSED] * c.proposals
        self._origins = torch.tensor(origins, dtype=torch.int64, device=self.device)
        terms = len(problem.energy.terms)
        self._state = State(
            mean,
            std,
            mean.expand(c.elites, -1, -1),
            torch.full((c.elites,), torch.inf, device=self.device),
            torch.zeros(c.elites, terms, device=self.device),
            torch.full((c.elites,), SAMPLED, dtype=torch.int64, device=self.device),
        )
        self._problem, self._hold = problem, hold
        self._packed = problem.energy.pack(self.device)
        self._held = torch.full((1 + terms,), torch.inf, device=self.device)
        self._rounds = self._imagined = 0
        self._refined = False

    @torch.inference_mode()
    def iterate(self, last: bool = False) -> None:
        """One more round. last: try the mean itself, too (icem)."""
        c = self.config
        problem, state = self._begun()
        size = c.sizes[min(self._rounds, c.iterations - 1)]
        noise = self._pool[self._round % _POOL, :size]
        mean_too = torch.full((1,), last and c.method == "icem", device=self.device)
        others = self._valid if self._rounds == 0 else torch.zeros_like(self._valid)
        offer = (self._offered, torch.cat((mean_too, others)), self._origins)
        inputs = (*state, noise, *offer, self._hold, *self._packed, *problem.known)
        prepared = self._ready(problem, size, inputs)
        *parts, self._held = prepared.call(*inputs)
        self._state, self.words = State(*parts), prepared.words
        self._round += 1
        self._rounds += 1
        self._imagined += size + 1

    @torch.inference_mode(False)
    def refine(self) -> None:
        """Adam on the actions of the best candidates, through the world model; what gets better takes their place.
        Not captured: gradients are taken in the ordinary way.
        """
        c = self.config
        problem, state = self._begun()
        scale = (self._high - self._low) / 2
        known, packed = _ordinary(problem.known), _ordinary(self._packed)
        head, tail = State(*(x[: c.refined].clone() for x in state)), State(*(x[c.refined :] for x in state))
        best, energies, made_of, origins = head.elites, head.energies, head.parts, head.origins
        actions = (head.elites / scale).requires_grad_()
        optimizer = torch.optim.Adam([actions], lr=c.rate)
        for step in range(c.refine + 1):
            with torch.set_grad_enabled(step < c.refine):
                moved = actions * scale
                total, parts = problem.energy.evaluate(self._imagine(problem, moved, known), moved, packed)
            with torch.no_grad():
                better = total < energies
                best = torch.where(better[:, None, None], moved, best)
                made_of = torch.where(better[:, None], parts, made_of)
                energies = torch.where(better, total, energies)
                origins = torch.where(better, SAMPLED, origins)
            if step < c.refine:
                optimizer.zero_grad()
                torch.where(total.isfinite(), total, 0.0).sum().backward()
                assert actions.grad is not None
                actions.grad.nan_to_num_(0.0, 0.0, 0.0)
                optimizer.step()
                with torch.no_grad():
                    actions.copy_((actions * scale).clamp(self._low, self._high) / scale)
        with torch.inference_mode():
            merged, order = torch.cat((energies, tail.energies)).sort(stable=True)
            self._state = state._replace(
                elites=torch.cat((best.detach().clamp(self._low, self._high), tail.elites))[order],
                energies=merged,
                parts=torch.cat((made_of, tail.parts))[order],
                origins=torch.cat((origins, tail.origins))[order],
            )
        self._imagined += c.refined * (c.refine + 1)
        self._refined = True

    @torch.inference_mode()
    def score(self, problem: Problem, actions: Tensor) -> Tensor:
        """Energies [S] of sequences [S, H, A], without a search: infinite where they are not finite."""
        self._check(problem, actions, most=len(actions))
        actions = actions.to(self.device, torch.float32).clamp(self._low, self._high)
        latents = self._imagine(problem, actions, problem.known)
        return problem.energy.evaluate(latents, actions, problem.energy.pack(self.device))[0]

    @torch.inference_mode()
    def result(self) -> Result:
        """What is best by now; before the first round, and where nothing finite was found, `hold`."""
        c = self.config
        problem, state = self._begun()
        best, energy, parts, origin = state.elites[0], state.energies[0], state.parts[0], state.origins[0]
        held = self._held
        if c.method != "icem" and not self._refined and self._rounds:
            both = torch.stack((state.mean, self._hold)).clamp(self._low, self._high)
            totals, made_of = problem.energy.evaluate(self._imagine(problem, both, problem.known), both, self._packed)
            best, energy, parts, origin = both[0], totals[0], made_of[0], torch.full_like(origin, SAMPLED)
            held = torch.cat((totals[1:], made_of[1]))
            self._imagined += 2
        found = energy.isfinite()
        best = torch.where(found, best, self._hold.clamp(self._low, self._high))
        parts, energy = torch.where(found, parts, held[1:]), torch.where(found, energy, held[0])
        pieces = (found, origin, energy, held[0], best, state.energies, state.elites, parts)
        flat = torch.cat([piece.flatten().float() for piece in pieces]).cpu().numpy()  # one copy brings all of it
        ends = np.cumsum([piece.numel() for piece in pieces])[:-1]
        was_found, came_from, *numbers, sequence, energies, elites, terms = np.split(flat, ends)
        kept = np.isfinite(energies)
        own, holds = (float(x[0]) if np.isfinite(x[0]) else float("nan") for x in numbers)
        return Result(
            sequence.reshape(c.horizon, c.size),
            own,
            holds,
            energies[kept],
            elites.reshape(-1, c.horizon, c.size)[kept],
            {term.name: float(x) for term, x in zip(problem.energy.terms, terms, strict=True)},
            _SOURCES[int(came_from[0])] if was_found[0] else "hold",
            self._rounds,
            self._imagined,
        )

    def _warm(self, hold: Tensor, steps: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, deviation, old elites and which of them there are, `steps` after the plan before; None: anew."""
        c, old = self.config, self._state
        sigma = self._sigma.expand(c.horizon, c.size)
        if old is None or steps is None or c.method == "cem":
            blank = hold.expand(c.again, -1, -1)
            return hold, sigma, blank, torch.zeros(c.again, dtype=torch.bool, device=self.device)
        mean = search.shift(old.mean, steps, self._absolute)
        std = search.shift(old.std, steps, torch.ones_like(self._absolute))
        again = search.shift(old.elites[: c.again], steps, self._absolute)
        return mean, torch.maximum(std, c.warm_sigma * sigma), again, old.energies[: c.again].isfinite()

    def _ready(self, problem: Problem, size: int, inputs: tuple[Tensor, ...]) -> Prepared:
        """A round for problems of this shape, captured where the device can."""
        key = (problem.energy.key, size, tuple((t.shape, t.dtype) for t in problem.known))
        if key not in self._prepared:
            if len(self._prepared) >= _GRAPHS:
                self._prepared.clear()
            self._prepared[key] = prepare(self._round_of(problem, len(self._packed)), inputs)
        return self._prepared[key]

    def _round_of(self, problem: Problem, packed: int) -> Callable[..., tuple[Tensor, ...]]:
        """A round as a function of tensors: State, noise, Offer, hold, the energy's tensors, the world's."""
        states, offers = len(State._fields), len(Offer._fields)

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            state, noise, rest = State(*inputs[:states]), inputs[states], inputs[states + 1 :]
            offer, hold, rest = Offer(*rest[:offers]), rest[offers], rest[offers + 1 :]
            # the mean as it is now is the first thing on offer
            offer = offer._replace(actions=torch.cat((state.mean[None], offer.actions)))
            actions, origins = search.candidates(state, noise, offer, self._low, self._high)
            batch = torch.cat((actions, hold[None].clamp(self._low, self._high)))
            latents = self._imagine(problem, batch, rest[packed:])
            totals, parts = problem.energy.evaluate(latents, batch, rest[:packed])
            after = search.update(state, actions, totals[:-1], parts[:-1], origins, self._rates, self.config)
            return (*after, torch.cat((totals[-1:], parts[-1])))

        return run

    def _imagine(self, problem: Problem, actions: Tensor, known: Sequence[Tensor]) -> Tensor:
        return self.world.imagine(actions, problem.energy.steps, *known)

    def _begun(self) -> tuple[Problem, State]:
        if self._problem is None or self._state is None:
            raise RuntimeError("there is no problem yet: call begin, or plan")
        return self._problem, self._state

    def _check(self, problem: Problem, proposals: Tensor | None, most: int | None = None) -> None:
        c = self.config
        if problem.energy.steps[-1] >= c.horizon:
            raise ValueError(f"step {problem.energy.steps[-1]} is scored, a plan has {c.horizon}")
        if problem.hold.shape != (c.size,) or not bool(problem.hold.isfinite().all()):
            raise ValueError(f"hold must be {c.size} finite numbers, it is {problem.hold.tolist()}")
        most = c.proposals if most is None else most
        if proposals is not None and (proposals.shape[1:] != (c.horizon, c.size) or len(proposals) > most):
            raise ValueError(
                f"candidates are {list(proposals.shape)}, must be at most {most} of [{c.horizon}, {c.size}]"
            )
        tensors = (*problem.known, *(t for term in problem.energy.terms for t in term.tensors))
        if any(t.device.type != self.device.type for t in tensors):
            raise ValueError(f"all tensors of a problem must be on {self.device}, where this planner computes")


def _ordinary(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of inference mode cannot be kept for a way back; copies can."""
    return [t.clone() if t.is_inference() else t for t in tensors]
