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
    """How a replica batches; the names are those of `optsched.batching.state.Engine`. A token of `stops` ends a turn early."""

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
    stops: tuple[int, ...] = ()


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
    secret
        What a worker must say before another hands a cache to it.
    host
        Address that this worker listens on for others.
    patience_s
        How long it waits for another worker before it calls the link lost.
    keep_journal
        Whether to report every event and decision.
    tp
        Ranks that share the replica.
    double
        Compute in float64 whatever the llm's data type, so that no two ways of computing a token can differ.
    gpus
        On ``cuda``: the GPU of each rank, among those that its process sees.
    """

    index: int
    num_workers: int
    llm: Llm
    weights: str | None
    seed: int
    kv_blocks: int
    limits: Limits
    device: str
    secret: bytes = b""
    host: str = "127.0.0.1"
    patience_s: float = 60.0
    keep_journal: bool = False
    tp: int = 1
    double: bool = False
    gpus: tuple[int, ...] = ()


# --- to a worker


@dataclass(frozen=True, slots=True)
class Zero:
    """The workload starts when the worker's monotonic clock shows `monotonic_s`."""

    monotonic_s: float


@dataclass(frozen=True, slots=True)
class StartTurn:
    """A turn arrived for this replica, or goes on here from where another replica was lost.

    Attributes
    ----------
    conversation, turn, number
        Index of the conversation, index of the turn in the workload, and number of the turn in the conversation.
    arrival_s, new_tokens, output_tokens
        The turn.
    last
        Whether the conversation ends with it.
    stays
        Whether this replica is known to be the decoder too, if the conversation is new here.
    hidden
        Hold it as hidden cache whatever the policy says (never more blocks than it counts on); for calibration.
    tokens
        Ids of all tokens that this replica does not know yet; None: the turn's prompt, drawn from the seed.
    emitted
        How many of them, at their end, are output tokens of this turn.
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
    tokens: Int64[Array, " n"] | None = None
    emitted: int = 0


@dataclass(frozen=True, slots=True)
class Stay:
    """A conversation whose prefill ended decodes where it is."""

    conversation: int


@dataclass(frozen=True, slots=True)
class Park:
    """Take a conversation between two turns out of the queue: its next turn is computed elsewhere."""

    conversation: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a conversation, whatever is known of it here, and say when that is done (`number` tells one such from another)."""

    conversation: int
    number: int


@dataclass(frozen=True, slots=True)
class Send:
    """Offer a conversation's cache to another replica, and forget it once it is there.

    Attributes
    ----------
    transfer
        Number of the hand-over.
    conversation, target
        Whose cache, and to which replica.
    kept
        Tokens of it, from the first, that the target has.
    keep
        Keep a copy.
    """

    transfer: int
    conversation: int
    target: int
    kept: int = 0
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Receive:
    """Fetch a conversation's cache from another replica.

    Attributes
    ----------
    transfer
        Number of the hand-over.
    first
        The turn; its tokens are all that the conversation consists of so far.
    source, address
        The replica that offers it, and where that listens.
    cache, context
        Kind and tokens of its cache.
    token_s
        When its last output token appeared (when the turn arrived if it has none).
    kept
        Tokens of it, from the first, that are here in a copy.
    """

    transfer: int
    first: StartTurn
    source: int
    address: tuple[str, int]
    cache: int
    context: int
    token_s: float
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Ping:
    """Say that you are alive."""

    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process."""


ToWorker = Zero | StartTurn | Stay | Park | Drop | Send | Receive | Ping | Stop

# --- from a worker


@dataclass(frozen=True, slots=True)
class Ready:
    """The replica is built and warm, and listens for others at an address."""

    address: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a `Ping`, and whether a cache is on its way here."""

    number: int
    fetching: bool


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
    """What a conversation brought here is computed and the next token is out; unless it `stays` or is `over`, it waits."""

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

    transfer: int
    conversation: int
    target: int
    start_s: float


@dataclass(frozen=True, slots=True)
class Received:
    """A cache arrived; it belongs to a turn."""

    transfer: int
    conversation: int
    turn: int
    source: int
    end_s: float
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Unreceived:
    """A cache did not arrive, and why."""

    transfer: int
    conversation: int
    source: int
    reason: str


@dataclass(frozen=True, slots=True)
class Parked:
    """A conversation was taken out of the queue; kind and tokens of its cache (0: it was evicted)."""

    conversation: int
    time_s: float
    cache: int
    context: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """Nothing is left here of a conversation."""

    conversation: int
    number: int


@dataclass(frozen=True, slots=True)
class Incident:
    """Something out of the ordinary happened to a conversation."""

    time_s: float
    kind: EventKind
    conversation: int


News = Prefilled | TurnEnded | Sent | Received | Unreceived | Parked | Dropped | Incident


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


FromWorker = Ready | Pong | Failed | Died | Report
