"""The training loop: one run, or a gang of them over one frozen base, from the first update to the best checkpoints.

A gang's batch is its members' batches end to end. The base sees one large batch; what is trained is stacked over runs, so
run k meets only its own examples (methods/stacked.py). A mean loss is taken within each run and summed over runs, so
gradients never mix; rate, schedule, decay, clipping, Adam step, dropout and early stop are each run's own. A member
that is done or broken leaves, and the others go on as they would have without it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lorascope.methods.base import Method, Moment
from lorascope.methods.dropout import dropout_key
from lorascope.methods.stacked import stacked_names
from lorascope.training.buckets import bucket_count, choose_buckets, rounding_to
from lorascope.training.checkpoint import Checkpointer, save_together
from lorascope.training.feed import Batch, Feed, gang_batch
from lorascope.training.flat import FlatParameters
from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory
from lorascope.training.meters import GangClock
from lorascope.training.optimiser import GangOptimiser
from lorascope.training.stepper import CapturedStepper, Stepper

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorascope.methods.dropout import DropoutStreams
    from lorascope.training.member import Member

Prepare = Callable[[Sequence["Member"]], "tuple[PreTrainedModel, DropoutStreams]"]
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Departure:
    """A member that left the gang. model: its own one-run model with its best weights, None if it broke. problem: why
    it broke."""

    member: Member
    model: PreTrainedModel | None
    problem: Exception | None = None


class Gang:
    """Trains the members together on one device. prepare: a model for these members, ready to train, and its dropout.

    is_captured: replay updates as CUDA graphs where the device is one (`problem` says why not, if a model cannot be).
    compiles: whether fusing the blocks' kernels too pays for these members. states: where another gang of some of these
    members stopped (`rescue`); the others begin.

    members: the runs under way. places: the run each row of the stacked weights belongs to; a captured gang keeps the
    places of those that left, idle, until half are empty, because a gang of another size is captured anew.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        prepare: Prepare,
        is_captured: bool = True,
        compiles: Callable[[Sequence[Member]], bool] = lambda members: False,
        states: Mapping[Member, dict[str, Any]] | None = None,
    ) -> None:
        self.members = list(members)
        self.device = members[0].reading.device
        self._prepare, self._compiles = prepare, compiles
        self._is_captured = is_captured and self.device.startswith("cuda")
        self.problem: str | None = None
        self.remark: str | None = None
        self._pending: list[Tensor] = []
        self._feed: Feed | None = None
        self._states: Mapping[Member, dict[str, Any]] | None = states
        self._build_up(states)

    # ------------------------------------------------------------------------------------------------------- running

    def run(self, checkpointers: Sequence[Checkpointer] | None = None) -> Generator[Departure]:
        """Trains every member to its end, its early stop, or its failure; each is yielded the moment it leaves.

        checkpointers: one a member; a member that has not begun goes on from its checkpoint.
        """
        saving = dict(zip(self.members, checkpointers, strict=True)) if checkpointers is not None else {}
        self._resume(saving)
        reset_peak_memory(self.device)
        self._clock = GangClock(self.device)
        try:
            self._look(is_taken_up=True)
            yield from self._leave()
            while self.members:
                self.advance()
                is_save_due = bool(saving) and saving[self.members[0]].due()
                if is_save_due or self._is_time_to_look():
                    self._look()
                    yield from self._leave()
                if is_save_due:
                    self._save(saving)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the thread that builds batches."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def rescue(self) -> dict[Member, dict[str, Any]]:
        """Takes the gang apart after it ran out of memory: the state of every member still in it, on the CPU, to go on
        from. An update that was not finished has changed nothing."""
        if self._states is not None:  # it happened while the gang was built anew
            return _to_cpu(self._states)
        self._note_losses()
        del self.stepper, self.model, self.views  # graphs and activations: the copies need room
        if self.device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()
        return {member: _to_cpu(self._state(member)) for member in self.members}

    def advance(self) -> Tensor:
        """One update of every member on its next batch; returns the mean losses, one a place, on the device."""
        if self._feed is None:
            self._feed = Feed(self._build_batch, {m: m.progress.update for m in self.members})
        batch = self._feed.take({member: member.last_update for member in self.members})
        updates = [place.progress.update for place in self.places]
        rates = [p.rate(u) if p in self.members else 0.0 for p, u in zip(self.places, updates, strict=True)]
        if type(self.places[0].method).before_step is not Method.before_step:
            self.moment.set(updates)
        losses = self.stepper.update(batch.micro_batches, self._keys(updates, batch), rates)
        for member in self.members:
            run = self.places.index(member)
            member.progress.update += 1
            member.method.after_step(self.views[run], step=member.progress.update)
            member.meters.count(real_tokens=batch.real_tokens[run], padded_tokens=batch.padded_tokens)
        self._pending.append(losses)
        return losses

    def accumulate_gradients(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Gradients of the mean losses over `rows` (one array a member), without an update; returns those losses."""
        batch = gang_batch(self.places, rows, **self._shape)
        self.flat.gradients.zero_()
        return self.stepper.accumulate(batch.micro_batches, self._keys([0] * len(rows), batch))

    def rehearse(self, rows: Sequence[np.ndarray]) -> None:
        """An update on `rows` at a rate of 0 and without a trace in the members: for what it costs."""
        batch = gang_batch(self.places, rows, **self._shape)
        self.stepper.update(batch.micro_batches, self._keys([0] * len(rows), batch), [0.0] * len(rows))

    def describe_step(self) -> dict[str, Any]:
        """How updates were computed. problem: why they were not captured where they could have been; remark: why blocks
        were not compiled where they should have been."""
        problem = self.stepper.problem or self.problem
        is_captured = self._is_captured and problem is None
        is_compiled = is_captured and self.stepper.is_compiled
        remark = self.stepper.remark or self.remark
        return {"captured": is_captured, "compiled": is_compiled, "problem": problem, "remark": remark}

    def _keys(self, updates: Sequence[int], batch: Batch) -> list[list[int]]:
        return [
            [dropout_key(m.seeds.dropout, u, micro) for m, u in zip(self.places, updates, strict=True)]
            for micro in range(len(batch.micro_batches))
        ]

    def _build_batch(self, updates: Mapping[Member, int]) -> Batch:
        rows = [p.rows(updates[p]) if p in updates else np.array([p.columns.lengths.argmin()]) for p in self.places]
        return gang_batch(self.places, rows, **self._shape)

    # ------------------------------------------------------------------------------------------------------ evaluating

    def _is_time_to_look(self) -> bool:
        if any(member.is_due or member.is_to_be_observed for member in self.members):
            return True
        return time.perf_counter() - self._looked_at >= _SECONDS_BETWEEN_LOOKS

    def _look(self, *, is_taken_up: bool = False) -> None:
        """Books the time, reads the losses, scores who is due. What befalls a member on the way is its `problem`."""
        self._clock.book([member.meters for member in self.members], "training", updates=len(self._pending))
        preparation, self.stepper.preparation_seconds = self.stepper.preparation_seconds, 0.0
        for member in self.members:
            member.meters.preparation_seconds += preparation / len(self.members)
            if self._pending:
                member.meters.largest_gang = max(member.meters.largest_gang, len(self.members))
        self._note_losses()
        for member in self.members:
            with _blaming(member):
                member.report(is_taken_up=is_taken_up)
        due = [member for member in self.members if member.is_due and member.problem is None]
        for member in due:
            with _blaming(member):
                if member.note_scores(member.validate(self.views[self.places.index(member)])):
                    self._keep_best(member)
        if due:
            self._clock.book([member.meters for member in due], "evaluation")
        observed = [member for member in self.members if member.is_to_be_observed and member.problem is None]
        for member in observed:
            with _blaming(member):
                member.note_snapshot(self.views[self.places.index(member)])
        if observed:
            self._clock.book([], "other")
        self._looked_at = time.perf_counter()

    def _note_losses(self) -> None:
        losses = torch.stack(self._pending, dim=1).float().cpu().tolist() if self._pending else []
        self._pending.clear()
        for place, own in zip(self.places, losses, strict=False):
            if place in self.members:
                with _blaming(place):
                    place.note_losses(own)

    def _keep_best(self, member: Member) -> None:
        best = member.best_weights
        for name, weights in self._weights(member).items():
            if name not in best or best[name].shape != weights.shape:
                pin = self.device.startswith("cuda")
                best[name] = torch.empty(weights.shape, dtype=weights.dtype, pin_memory=pin)
            best[name].copy_(weights)

    def _weights(self, member: Member) -> dict[str, Tensor]:
        return self.flat.row(self.flat.values[self.places.index(member)])

    # --------------------------------------------------------------------------------------------------------- leaving

    def _leave(self) -> Iterator[Departure]:
        leaving = [member for member in self.members if member.problem is not None or member.is_done]
        if not leaving:
            return
        peak = peak_memory_bytes(self.device)
        for member in leaving:
            member.meters.peak_memory_bytes = max(member.meters.peak_memory_bytes, peak)
            if member.problem is not None:
                yield Departure(member, None, member.problem)
                continue
            if member.keep is not None:
                member.keep({**member.state(), **self._state(member)})
            run = self.places.index(member)
            with torch.no_grad():
                self.flat.load_row(self.flat.values[run], member.best_weights)
            yield Departure(member, self.views[run])
        self.members = [member for member in self.members if member not in leaving]
        self.close()
        keeps_places = isinstance(self.stepper, CapturedStepper) and 2 * len(self.members) > len(self.places)
        if self.members and not keeps_places:
            self._states = {member: self._state(member) for member in self.members}
            self._tear_down()
            self._build_up(self._states)
        self._clock.book([], "other")

    def _build_up(self, states: Mapping[Member, dict[str, Any]] | None) -> None:
        """The model, optimiser and stepper for the present members, at the weights of `states` if there are any."""
        members = self.members
        self.places = list(members)
        self.model, streams = self._prepare(members)
        self.model.train()
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        method = members[0].method
        stacked = stacked_names(self.model)
        self.flat = FlatParameters(method.param_groups(self.model), names, runs=len(members), stacked=stacked)
        self.views = [member.method.view(self.model, run) for run, member in enumerate(members)]
        self.optimiser = GangOptimiser(self.flat, [member.train for member in members])
        self.kept, self.moment = (
            method.state(self.model),
            Moment.of([m.total_updates for m in members], device=self.device),
        )
        for member in members:
            if states is not None and member in states:  # not of one that joined those that were rescued
                self._load(member, states[member])
        is_captured = self._is_captured and self.problem is None
        parts: dict[str, Any] = {
            "reading": members[0].reading.to(members[0].train.precision),
            "streams": streams,
            "flat": self.flat,
            "optimiser": self.optimiser,
            "method": method,
            "moment": self.moment,
        }
        if is_captured:
            self.stepper = CapturedStepper(self.model, is_compiled=self._compiles(members), **parts)
        else:
            self.stepper = Stepper(self.model, **parts)
        self._shape: dict[str, Any] = {
            "round_up": self._rounding() if is_captured else members[0].reading.padded,
            "is_fixed_size": is_captured,
            "pin": self.device.startswith("cuda"),
        }
        self._states = None

    def _rounding(self) -> Callable[[int], int]:
        """Lengths that pad an epoch of the gang's batches least."""
        remaining = max(member.last_update - member.progress.update for member in self.members)
        an_epoch = max(member.updates_per_epoch for member in self.members)
        longest = [
            max(int(m.columns.lengths[m.rows(u % m.updates_per_epoch)].max()) for m in self.members)
            for u in range(min(remaining, an_epoch))
        ]
        limit = max(int(member.columns.lengths.max()) for member in self.members)
        multiple = self.members[0].task.inputs.multiple
        return rounding_to(choose_buckets(longest, longest=limit, count=bucket_count(remaining), multiple=multiple))

    def _tear_down(self) -> None:
        self.problem = self.stepper.problem or self.problem
        self.remark = self.stepper.remark or self.remark
        del self.model, self.views, self.flat, self.optimiser, self.stepper

    # ---------------------------------------------------------------------------------------------------- kill, resume

    def _state(self, member: Member) -> dict[str, Any]:
        weights = {name: t.clone() for name, t in self._weights(member).items()}
        run = self.places.index(member)
        kept = {name: tensor[run].clone() for name, tensor in self.kept.items()}
        return {"weights": weights, "optimiser": self.optimiser.state(run), **({"method": kept} if kept else {})}

    def _load(self, member: Member, state: dict[str, Any]) -> None:
        run = self.places.index(member)
        with torch.no_grad():
            self.flat.load_row(self.flat.values[run], state["weights"])
            self.optimiser.restore(run, state["optimiser"])
            for name, tensor in self.kept.items():
                tensor[run].copy_(state["method"][name])

    def _save(self, saving: Mapping[Member, Checkpointer]) -> None:
        save_together((saving[member], {**member.state(), **self._state(member)}) for member in self.members)
        self._clock.book([], "other")

    def _resume(self, saving: Mapping[Member, Checkpointer]) -> None:
        for member in self.members:
            state = saving[member].load(self.device) if member in saving and member.progress.update == 0 else None
            if state is not None:
                member.restore(state)
                member.progress.resumed += 1
                self._load(member, state)


@contextmanager
def _blaming(member: Member) -> Iterator[None]:
    """What fails within is this member's problem alone; only a lack of memory is the gang's."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        member.problem = member.problem or error


def _to_cpu(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _to_cpu(value) for key, value in state.items()}
    return state.cpu() if isinstance(state, Tensor) else state
