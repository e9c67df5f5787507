"""The closed union of messages. Every integer and every length is bounded here, before other code sees it.

    gateway -> verifier  Open, Resume, Cancel        verifier -> gateway  Tokens, PromptLogprobs, Finished, Failed
    verifier -> drafter  Open, Commit, Features, Correction, Hint, Close
    drafter -> verifier  Draft                       all   Ping, Pong

``seq`` ids are random and never reused. ``epoch`` names an incarnation of the verifier: messages of another
one are ignored. ``base`` is a length of prompt + output in tokens.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

MAX_TOKENS = 1 << 20
MAX_NODES = 1024
MAX_FRAME = 16 << 20
MAX_LOGPROBS = 20
MAX_MESSAGE = 4096  # characters of an error
MAX_WIDTH = 1 << 18  # numbers of a token's features: three layers of the widest models
MAX_FEATURES = 8 << 20  # bytes of the features of a message
MAX_GRAMMAR = 1 << 20  # characters: 128 tools of several KB each
MAX_STOPS = 64

_INT = (1 << 63) - 1
Seq = Annotated[int, Meta(ge=0, le=_INT)]
Epoch = Annotated[int, Meta(ge=0, le=_INT)]
Seed = Annotated[int, Meta(ge=0, le=_INT)]
Token = Annotated[int, Meta(ge=0, lt=1 << 31)]
Length = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
TokenList = Annotated[list[Token], Meta(max_length=MAX_TOKENS)]
StopList = Annotated[list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(max_length=MAX_STOPS)]
FewTokens = Annotated[list[Token], Meta(max_length=64)]
Unit = Annotated[float, Meta(ge=0.0, le=1.0)]


class _Message(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages: immutable, tagged by class name, unknown fields refused."""


class Sampling(Struct, frozen=True, forbid_unknown_fields=True):
    """How to sample one choice of one request. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch a filter off.

    ``presence`` and ``frequency`` are OpenAI's penalties, ``bias`` is added to the logits of tokens; ``logprobs``: how
    many likeliest tokens to report beside each (-1: no logprobs at all). ``repetition`` divides the positive logits,
    and multiplies the negative ones, of tokens among the last ``repetition_last`` of prompt and output (0: all of them;
    Keskar et al. 2019). The output has ``min_tokens`` at least: until then no token that ends a text is sampled.
    """

    temperature: Annotated[float, Meta(ge=0.0, le=100.0)]
    top_k: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    min_p: Unit = 0.0
    seed: Seed = 0
    choice: Annotated[int, Meta(ge=0, lt=1 << 16)] = 0
    presence: Annotated[float, Meta(ge=-100.0, le=100.0)] = 0.0
    frequency: Annotated[float, Meta(ge=-100.0, le=100.0)] = 0.0
    bias: Annotated[list[tuple[Token, Annotated[float, Meta(ge=-1e4, le=1e4)]]], Meta(max_length=1024)] = []
    logprobs: Annotated[int, Meta(ge=-1, le=MAX_LOGPROBS)] = -1
    repetition: Annotated[float, Meta(ge=0.01, le=100.0)] = 1.0
    repetition_last: Length = 0
    min_tokens: Length = 0


class Thinking(Struct, frozen=True, forbid_unknown_fields=True):
    """Where an output reasons before it answers: between the token ``begin`` (-1: none is known) and the text ``end``;
    ``opened``: the prompt ends within it. After ``budget`` tokens of it (-1: no bound) the tokens ``closing``
    follow."""

    end: Annotated[str, Meta(min_length=1, max_length=64)]
    begin: Annotated[int, Meta(ge=-1, lt=1 << 31)] = -1
    opened: bool = False
    budget: Annotated[int, Meta(ge=-1, le=MAX_TOKENS)] = -1
    closing: FewTokens = []


class Open(_Message, frozen=True):
    """A sequence begins. To a drafter, ``committed`` holds the output so far; from a gateway it is empty. The output
    obeys ``grammar`` (``sampling.grammar``), if there is one, after its ``thinking``; ``plain``: no speculation is
    wanted. It ends with a token of ``stop_ids``, too; with ``ignore_end`` not with those the model ends a text with.
    Control tokens among ``shown``, or any (``special``), are text by their names. ``prompt_logprobs``: how many
    likeliest tokens to report beside each of the prompt (-1: none at all). ``prediction``: what the output may be
    like. ``owner``: whose it is; what others were told is never proposed to them."""

    seq: Seq
    epoch: Epoch
    prompt: Annotated[list[Token], Meta(min_length=1, max_length=MAX_TOKENS)]
    committed: TokenList
    sampling: Sampling
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    stop: StopList
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR)] = ""
    plain: bool = False
    stop_ids: FewTokens = []
    ignore_end: bool = False
    shown: FewTokens = []
    special: bool = False
    thinking: Thinking | None = None
    prompt_logprobs: Annotated[int, Meta(ge=-1, le=MAX_LOGPROBS)] = -1
    prediction: TokenList = []
    owner: Annotated[str, Meta(max_length=64)] = ""


class Resume(_Message, frozen=True):
    """Go on with a sequence from ``opening.committed``, whether the verifier still knows it or not."""

    opening: Open


class Cancel(_Message, frozen=True):
    """The client is gone: free everything of the sequence."""

    seq: Seq


class Commit(_Message, frozen=True):
    """Tokens the target decided, from position ``base`` on. ``due``: seconds in which the window in flight should
    end (0: none is in flight)."""

    seq: Seq
    epoch: Epoch
    base: Length
    tokens: TokenList
    due: Annotated[float, Meta(ge=0.0, le=3600.0)]


class Features(_Message, frozen=True):
    """The target's hidden states of the tokens from position ``base`` on, where it evaluated them as prompt or output:
    ``width`` numbers each, in float16 with the lowest byte first."""

    seq: Seq
    epoch: Epoch
    base: Length
    width: Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
    values: Annotated[bytes, Meta(max_length=MAX_FEATURES)]


class Correction(_Message, frozen=True):
    """For drafters that learn: the target's ``likely`` tokens behind the first ``base`` ones, best first, with natural
    ``logprobs`` at temperature 1; most often where the likeliest draft token was wrong."""

    seq: Seq
    epoch: Epoch
    base: Length
    likely: FewTokens
    logprobs: Annotated[list[Annotated[float, Meta(ge=-1e4, le=0.0)]], Meta(max_length=64)]


class Hint(_Message, frozen=True):
    """What the target's early exit says of a window in flight, below the first ``base`` tokens: row i holds
    ``tokens[i]`` (row 0 the newest committed one), hangs on row ``parents[i]`` (-1 for row 0), and
    ``likely[i]`` are its likeliest next tokens, best first."""

    seq: Seq
    epoch: Epoch
    base: Length
    parents: Annotated[list[Annotated[int, Meta(ge=-1, lt=MAX_NODES)]], Meta(max_length=MAX_NODES)]
    tokens: Annotated[list[Token], Meta(max_length=MAX_NODES)]
    likely: Annotated[list[Annotated[list[Token], Meta(max_length=16)]], Meta(max_length=MAX_NODES)]


class Close(_Message, frozen=True):
    """The sequence ended; its draft state can go."""

    seq: Seq
    epoch: Epoch


class Draft(_Message, frozen=True):
    """One drafted subtree, stateless: below the first ``base`` tokens node i has ``tokens[i]``, hangs on node
    ``parents[i]`` (-1: the newest of those tokens), and the target takes it there with chance ``chances[i]``, as
    calibrated by the drafter. ``seconds``: of the draft step that made it."""

    seq: Seq
    epoch: Epoch
    base: Length
    parents: Annotated[list[Annotated[int, Meta(ge=-1, lt=MAX_NODES)]], Meta(max_length=MAX_NODES)]
    tokens: Annotated[list[Token], Meta(max_length=MAX_NODES)]
    chances: Annotated[list[Unit], Meta(max_length=MAX_NODES)]
    seconds: Annotated[float, Meta(ge=0.0, le=3600.0)]


class Logprob(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Natural log of the model's probability of a committed token, and the likeliest tokens with theirs, best first."""

    token: Token
    value: float
    top: Annotated[list[tuple[Token, float]], Meta(max_length=MAX_LOGPROBS)]


class Round(Struct, frozen=True, forbid_unknown_fields=True):
    """The window that brought tokens: how many draft tokens it held and how many were accepted; milliseconds of its
    forward, of the wait before it, and of the draft steps since the window before."""

    drafted: Count
    accepted: Count
    forward_ms: float
    waited_ms: float
    draft_ms: float


class Tokens(_Message, frozen=True):
    """Output tokens from position ``base`` on, and the text they release; ``logprobs`` of each, where asked for.
    ``round`` is None when they are sent again."""

    seq: Seq
    epoch: Epoch
    base: Length
    tokens: TokenList
    text: str
    logprobs: Annotated[list[Logprob], Meta(max_length=MAX_TOKENS)] = []
    round: Round | None = None


class PromptLogprobs(_Message, frozen=True):
    """What the model thinks of the prompt's tokens from position ``base`` on (of the first it thinks nothing)."""

    seq: Seq
    epoch: Epoch
    base: Length
    logprobs: Annotated[list[Logprob], Meta(max_length=MAX_TOKENS)]


class Stats(Struct, frozen=True, forbid_unknown_fields=True):
    """What a sequence cost: counts of tokens and target forwards, times in milliseconds.

    ``resumed_n`` output tokens were decided by an earlier verifier; times and drafts are those since.
    ``plain_n`` tokens were decided with speculation switched off because it lost, ``alone_n`` while there was no
    drafter; ``waited_ms``: time the sequence was held back for a draft; ``cached_n`` prompt tokens were taken from a
    cached prefix. ``drafts_n`` windows held draft tokens; in ``accepted_at[i]`` of them draft token i of the path was
    accepted. ``plain_token_ms``: what a token costs without speculation, 0 where it was not measured. ``sources``: by
    who proposed them, how many draft tokens were checked, and how many of those accepted.
    """

    prompt_n: Count
    prompt_ms: float
    predicted_n: Count
    predicted_ms: float
    draft_n: Count
    draft_n_accepted: Count
    forwards_n: Count
    resumed_n: Count
    plain_n: Count
    waited_ms: float
    alone_n: Count = 0
    cached_n: Count = 0
    drafts_n: Count = 0
    accepted_at: Annotated[list[Count], Meta(max_length=MAX_NODES)] = []
    plain_token_ms: float = 0.0
    sources: Annotated[dict[Annotated[str, Meta(max_length=32)], tuple[Count, Count]], Meta(max_length=32)] = {}


class Finished(_Message, frozen=True):
    """The sequence ended at ``base`` tokens; ``reason`` is "stop" or "length", ``text`` the last it releases, ``stop``
    the stop string that ended it, if one did."""

    seq: Seq
    epoch: Epoch
    base: Length
    reason: Annotated[str, Meta(max_length=64)]
    text: str
    stats: Stats
    stop: Annotated[str, Meta(max_length=1024)] = ""


class Failed(_Message, frozen=True):
    """The sequence cannot go on; ``code`` is a stable word, ``message`` one line."""

    seq: Seq
    epoch: Epoch
    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)]


class Ping(_Message, frozen=True):
    """A peer lives: the worker (``role``, ``index``), or a gateway. A drafter adds the length it holds of each sequence
    (``[seq, length]`` pairs), how wide the ``features`` are that it drafts from (0: none), whether it ``learns``."""

    role: Annotated[str, Meta(max_length=16)]
    epoch: Epoch
    lengths: Annotated[list[tuple[Seq, Length]], Meta(max_length=65536)]
    index: Annotated[int, Meta(ge=0, lt=1 << 10)] = 0
    features: Annotated[int, Meta(ge=0, le=MAX_WIDTH)] = 0
    learns: bool = False


class Pong(_Message, frozen=True):
    """The verifier's answer to a Ping, with its own epoch."""

    epoch: Epoch


Message: TypeAlias = (
    Open
    | Resume
    | Cancel
    | Commit
    | Features
    | Correction
    | Hint
    | Close
    | Draft
    | Tokens
    | PromptLogprobs
    | Finished
    | Failed
    | Ping
    | Pong
)
