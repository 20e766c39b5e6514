"""Collect imported conversations in compact arrays and make one workload of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from optsched.domain.workload import Workload
from optsched.errors import SpecError
from optsched.traces.options import ImportOptions
from optsched.traces.records import Record

Array = np.ndarray
Turn = tuple[int, int, float]
"""New tokens, output tokens, and the gap before the turn in seconds."""

_DROP = "fix the record, or leave such requests out with --drop-empty"


class WorkloadBuilder:
    """Conversations in the order of the file, to be sorted by arrival at the end.

    Parameters
    ----------
    file
        Where they come from; named in errors.
    options
        Of them, only `drop_empty` is used here.
    arrivals_known
        Whether the source records arrival times.
    prefixes
        Whether the source records shared-prefix blocks.
    """

    def __init__(self, file: Path, options: ImportOptions, *, arrivals_known: bool = True, prefixes: bool = False) -> None:
        self._file, self._options, self._known = file, options, arrivals_known
        self._ids, self._arrivals, self._sizes = array("q"), array("d"), array("q")
        self._new, self._output, self._gaps = array("q"), array("q"), array("d")
        self._blocks: array[int] | None = array("q") if prefixes else None
        self._num_blocks = array("q")

    def __len__(self) -> int:
        """Return the number of conversations collected so far."""
        return len(self._ids)

    def add(self, conversation: int, arrival_s: float, turns: Iterable[Turn], blocks: Sequence[Sequence[int]] = ()) -> None:
        """Add one conversation.

        Parameters
        ----------
        conversation
            Its identifier in the source.
        arrival_s
            When its first turn arrived, on any clock; 0 where the source has no arrivals.
        turns
            Its turns, in order.
        blocks
            The shared-prefix blocks of each turn, where the source has them.
        """
        size = 0
        for new, output, gap_s in turns:
            self._new.append(new)
            self._output.append(output)
            self._gaps.append(gap_s if size else 0.0)
            size += 1
        self._ids.append(conversation)
        self._arrivals.append(arrival_s)
        self._sizes.append(size)
        if self._blocks is not None:
            for turn in blocks:
                self._blocks.extend(turn)
                self._num_blocks.append(len(turn))

    def add_request(
        self, record: Record, conversation: int, arrival_s: float, prompt: str, output: str, blocks: Sequence[int] = ()
    ) -> None:
        """Add a conversation of one turn whose token counts stand in two fields of a record.

        Raises
        ------
        SpecError
            If a count is no number or, unless such requests are left out, 0.
        """
        least = 0 if self._options.drop_empty else 1
        new = record.integer(prompt, least, knob=_DROP)
        generated = record.integer(output, least, knob=_DROP)
        if new and generated:
            self.add(conversation, arrival_s, [(new, generated, 0.0)], [blocks])

    def add_dialogue(self, record: Record, conversation: int, turns: Sequence[tuple[int, int]]) -> None:
        """Add a conversation of counted texts.

        Raises
        ------
        SpecError
            If it has no answered turn, an answer or the first prompt is empty, and such ones are not left out.
        """
        if turns and turns[0][0] and all(output for _, output in turns):
            self.add(conversation, 0.0, [(new, output, 0.0) for new, output in turns])
        elif not self._options.drop_empty:
            raise record.error(None, "no answered prompt, or an empty text; leave such conversations out with --drop-empty")

    def build(self) -> Workload:
        """Return the workload: sorted by arrival (ties in the order of the file), the first arrival at 0.

        Raises
        ------
        SpecError
            If there is no conversation.
        """
        if not self._ids:
            raise SpecError("has no requests; was another file meant?", file=self._file)
        arrivals = np.array(self._arrivals)
        order = np.argsort(arrivals, kind="stable")
        turn_order, sizes = _turns_of(order, np.array(self._sizes))
        prefix_offset = prefix_blocks = None
        if self._blocks is not None:
            block_order, lengths = _turns_of(turn_order, np.array(self._num_blocks))
            prefix_offset = np.concatenate([[0], np.cumsum(lengths)])
            prefix_blocks = np.array(self._blocks, dtype=np.int64)[block_order]
        return Workload(
            conversation_id=np.array(self._ids)[order],
            arrival_s=arrivals[order] - arrivals[order[0]],
            first_turn=np.concatenate([[0], np.cumsum(sizes)]),
            new_tokens=np.array(self._new)[turn_order],
            output_tokens=np.array(self._output)[turn_order],
            gap_s=np.array(self._gaps)[turn_order],
            prefix_offset=prefix_offset,
            prefix_blocks=prefix_blocks,
            arrivals_known=self._known,
        )


def _turns_of(order: Int64[Array, " C"], sizes: Int64[Array, " C"]) -> tuple[Int64[Array, " T"], Int64[Array, " C"]]:
    """Return the items of groups in a new order of the groups, and the groups' sizes in that order."""
    starts = np.cumsum(sizes) - sizes
    moved = sizes[order]
    new_starts = np.cumsum(moved) - moved
    return np.repeat(starts[order] - new_starts, moved) + np.arange(int(moved.sum())), moved
