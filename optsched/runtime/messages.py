"""What controller and workers tell each other. Times are seconds from the start of the workload on the machine's one clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from optsched.batching.state import NO_LAW
from optsched.domain.journal import Entry
from optsched.domain.llm import Llm
from optsched.domain.log import EventKind, Steps

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Limits:
    """How a replica batches; the names are those of `optsched.batching.state.Engine`."""

    policy: str
    block_tokens: int
    watermark_blocks: int
    max_batched_tokens: int
    max_sequences: int
    rho_s_per_block: float
    ttft_slo_s: float
    tbt_slo_s: float
    parameters: Float64[Array, " p"]
    law: Float64[Array, " L"] = field(default_factory=lambda: NO_LAW)


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a worker needs to build its replica.

    Attributes
    ----------
    index, num_workers
        Which replica it is, of how many.
    llm, weights
        The shape, and a folder of weights (None: random ones of `seed`).
    seed
        Also of the prompts.
    kv_blocks, limits
        Its pool and how it batches.
    device
        ``cpu`` or ``cuda``.
    rendezvous
        Path of the file through which the workers find each other.
    keep_journal
        Whether to report every event and decision.
    """

    index: int
    num_workers: int
    llm: Llm
    weights: str | None
    seed: int
    kv_blocks: int
    limits: Limits
    device: str
    rendezvous: str
    keep_journal: bool = False


# --- to a worker


@dataclass(frozen=True, slots=True)
class Zero:
    """The workload starts when the machine's monotonic clock shows `monotonic_s`."""

    monotonic_s: float


@dataclass(frozen=True, slots=True)
class StartTurn:
    """A turn arrived for this replica.

    Attributes
    ----------
    conversation, turn, number
        Index of the conversation, index of the turn in the workload, and number of the turn in the conversation.
    arrival_s, new_tokens, output_tokens
        The turn.
    last
        Whether the conversation ends with it.
    stays
        Of a first turn: whether this replica is known to be the decoder too.
    hidden
        Hold it as hidden cache whatever the policy says (never more blocks than it counts on); for calibration.
    """

    conversation: int
    turn: int
    number: int
    arrival_s: float
    new_tokens: int
    output_tokens: int
    last: bool
    stays: bool = True
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Stay:
    """A conversation whose prefill ended decodes where it is."""

    conversation: int


@dataclass(frozen=True, slots=True)
class Send:
    """Hand a prefilled conversation's cache over to another replica, and forget it."""

    conversation: int
    target: int


@dataclass(frozen=True, slots=True)
class Receive:
    """Take a prefilled conversation's cache over from another replica.

    Attributes
    ----------
    first
        Its first turn.
    source
        The replica that prefilled it.
    cache, context
        Kind and tokens of its cache.
    token, token_s
        Its first output token, and when that appeared.
    """

    first: StartTurn
    source: int
    cache: int
    context: int
    token: int
    token_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process."""


ToWorker = Zero | StartTurn | Stay | Send | Receive | Stop

# --- from a worker


@dataclass(frozen=True, slots=True)
class Ready:
    """The replica is built and warm."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker gives up, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Died:
    """A worker's process ended unasked (told by the fleet, not by the worker)."""

    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A first turn's prompt is computed and its first token is out; unless it `stays` or is `over`, it waits for a decoder."""

    conversation: int
    time_s: float
    cache: int
    context: int
    token: int
    over: bool


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """A turn's last token is out."""

    conversation: int
    turn: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """A cache began to leave at `start_s`, and has left."""

    conversation: int
    target: int
    start_s: float


@dataclass(frozen=True, slots=True)
class Received:
    """A cache arrived."""

    conversation: int
    source: int
    end_s: float
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Incident:
    """Something out of the ordinary happened to a conversation."""

    time_s: float
    kind: EventKind
    conversation: int


News = Prefilled | TurnEnded | Sent | Received | Incident


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker did since its last report: enough to go on elsewhere should it die.

    Attributes
    ----------
    news
        What the controller acts on, in order.
    steps
        The steps executed.
    started_turn, started_s
        Turns that were first computed on, and when.
    token_turn, token_number, token_id, token_s
        Output tokens: turn, position among the turn's outputs, id, and time.
    journal
        Every event and decision in order, where one is kept.
    """

    news: tuple[News, ...]
    steps: Steps
    started_turn: Int64[Array, " u"]
    started_s: Float64[Array, " u"]
    token_turn: Int64[Array, " n"]
    token_number: Int64[Array, " n"]
    token_id: Int64[Array, " n"]
    token_s: Float64[Array, " n"]
    journal: tuple[Entry, ...] = ()


FromWorker = Ready | Failed | Died | Report
