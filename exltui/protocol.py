"""What the app and the engine say to each other: frozen dataclasses of plain values, and nothing else.

Commands go down, events come up. A command returns nothing; every answer is an event that carries its id. Every ``Submit`` ends in
exactly one ``Done`` or ``Failed``; every ``Load`` in exactly one ``Loaded`` or ``LoadFailed``. ``Text`` events are coalesced to at most
30 a second, so a slow screen never slows the engine. Everything here survives ``from_json(to_json(message))``: a recorded event log is
a list of JSON lines, and the app cannot tell it from a live engine.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field

from exltui.meter import DeviceMeter as DeviceMeter  # noqa: PLC0414  part of the protocol
from exltui.meter import Meter as Meter  # noqa: PLC0414  part of the protocol
from exltui.meter import StepTimes as StepTimes  # noqa: PLC0414  part of the protocol
from exltui.wire import build


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model. ``None`` means: decide from the model and the machine."""

    device: str | None = None  # "cpu", "cuda:0"; None: the first GPU if there is one
    length: int | None = None  # context in tokens; None: the model's own, at most 8,192
    cache_tokens: int | None = None  # that all jobs together may have in the cache; None: as many as the context
    cache: str = "fp16"  # "fp16", "q8", "q6", "q4", or "K,V" bits
    chunk_size: int = 4096  # prompt tokens per forward pass; on a CPU fewer
    reproducible: bool = False  # a seed gives the same tokens whatever else runs; slower (docs/sampling.md)
    max_batch: int = 32  # jobs that run at once; the others wait
    threads: int | None = None  # CPU threads; None: physical cores
    rope_scale: float | None = None  # linear position scale
    rope_alpha: float | None = None  # NTK alpha
    rope_yarn: float | None = None  # YaRN factor, from the trained context on
    load_as: str | None = None  # plain weights on the CPU: "q4", "q8", "f16" (as they are); None: q4 where nothing is lost
    host_cache: float = 0.0  # GB of host memory for pages that the cache has no room for
    draft_model: str | None = None  # directory of a small model with the same vocabulary, which guesses ahead
    ngram_draft: bool = False  # guess from what the text had before
    activations: str | None = None  # of quantised weights on the CPU: "int8", "fp32"; None: int8
    lora: tuple[str, ...] = ()  # adapters to load with the model: "DIR" or "DIR:SCALE"


@dataclass(frozen=True, slots=True)
class Sampling:
    """One set of sampler settings, plain values. Ranges and help: exltui/sampling.py; formulas: docs/sampling.md."""

    temperature: float = 0.8  # 0: greedy; off at 1
    temperature_last: bool = False  # after the cuts
    min_temp: float = 0.0  # dynamic temperature; off unless max_temp is higher
    max_temp: float = 0.0
    temp_exponent: float = 1.0
    smoothing_factor: float = 0.0  # off at 0
    top_n_sigma: float = 0.0  # off at 0
    top_k: int = 50  # off at 0
    top_p: float = 0.9  # off at 1 (0 also means off)
    top_a: float = 0.0  # off at 0
    min_p: float = 0.05  # off at 0
    tfs: float = 0.0  # off at 0 and 1
    typical: float = 0.0  # off at 0 and 1
    mirostat: bool = False
    mirostat_tau: float = 1.5  # bits
    mirostat_eta: float = 0.1
    mirostat_mu: float | None = None  # None: 2 tau
    adaptive_target: float = 1.0  # off at 1
    adaptive_decay: float = 0.9
    xtc_probability: float = 0.0  # off at 0
    xtc_threshold: float = 0.1
    xtc_ignore_tokens: str = "\n"  # characters
    skew: float = 0.0  # off at 0
    token_repetition_penalty: float = 1.0  # off at 1
    token_presence_penalty: float = 0.0  # off at 0
    token_frequency_penalty: float = 0.0  # off at 0
    token_repetition_range: int = -1  # how many of the last tokens the penalties see; -1: all
    token_repetition_decay: int = 0  # and over how many more they fade
    dry_multiplier: float = 0.0  # off at 0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0  # 0: all
    dry_max_ngram: int = 20
    dry_sequence_breakers: str = '.,!?<>[](){}\n\t"'  # characters
    cfg_scale: float = 1.0  # guidance away from the job's negative prompt; off at 1
    order: str = ""  # names of stages with commas; "": the order of sampling.ORDER
    seed: int | None = None  # None: drawn afresh and reported in Done


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One thing to generate. Exactly one of ``prompt`` and ``prompt_ids`` is given."""

    id: str
    prompt: str | None = None  # text; special tokens in it are recognised when ``parse_special``
    prompt_ids: tuple[int, ...] | None = None
    parse_special: bool = True
    add_bos: bool | None = None  # None: as the tokenizer wants it (never for a rendered chat template)
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None  # None: until the context is full
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()  # added to the model's own
    adapters: tuple[tuple[str, float], ...] | None = None  # (name, scale); None: all that are loaded, each with its own scale
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, what is added to its logit
    banned_tokens: tuple[int, ...] = ()  # ids that are never drawn
    allowed_tokens: tuple[int, ...] | None = None  # only these ids are drawn
    min_new_tokens: int = 0  # stop tokens are not drawn before; stop strings still end the reply
    priority: int = 0  # a job with a higher one is admitted first and reads first, and takes the place of lower ones
    token_healing: bool = False  # draw the prompt's last token again, together with what follows it
    banned_strings: tuple[str, ...] = ()  # in any case of letters; the job goes back to before one
    negative_prompt: str | None = None  # what Sampling.cfg_scale steers away from
    negative_prompt_ids: tuple[int, ...] | None = None
    loop_window: int = 0  # the reply ends when so many tokens are one passage, loop_repeats times or more; 0: off
    loop_repeats: int = 3
    scores: bool = False  # a Scores event for each token
    top_tokens: int = 0  # with that many of the likeliest tokens in it
    logits: bool = False  # and with the model's logits
    keep: bool = False  # its tokens' logits stay in the engine for Inspect and Explain, as long as there is room for them
    json_schema: str | None = None  # the reply is JSON that this schema, as JSON, allows
    regex: str | None = None  # or it matches this
    choices: tuple[str, ...] = ()  # or it is one of these
    grammar: str | None = None  # or it follows this Lark or GBNF grammar
    session: str = ""  # whose prompt and reply this is: a name for KeepPages
    draft: bool = True  # speculate, where the model was loaded with a way to


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Load:
    id: str
    model_dir: str
    options: LoadOptions = field(default_factory=LoadOptions)


@dataclass(frozen=True, slots=True)
class Unload:
    id: str


@dataclass(frozen=True, slots=True)
class Submit:
    job: JobSpec


@dataclass(frozen=True, slots=True)
class Cancel:
    id: str  # of a job or a load


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Load the LoRA adapter in ``adapter_dir`` beside the model, under ``name`` (its directory's, if ""). With no directory, give the
    loaded adapter ``name`` another scale. Jobs that run go on with what they began with.
    """

    id: str
    adapter_dir: str = ""
    name: str = ""
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class DropAdapter:
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Inspect:
    """Say how likely each token of a job was that was submitted with ``keep``. Answered by Inspected or QueryFailed."""

    id: str
    job: str
    top: int = 8  # so many of the likeliest tokens beside each


@dataclass(frozen=True, slots=True)
class Explain:
    """Say what the sampler makes of a kept token's logits, stage by stage. Answered by Explained or QueryFailed; no model call."""

    id: str
    job: str
    position: int  # of the token in prompt and reply
    sampling: Sampling | None = None  # None: the job's own
    top: int = 16  # how many of the likeliest tokens are followed


@dataclass(frozen=True, slots=True)
class KeepPages:
    """Write the keys and values of the last job of ``session`` to ``file``, so that they need not be computed again after a restart.

    Files beside it that were used least recently are removed until all have at most ``limit`` bytes. One sent before Quit is still done.
    """

    id: str
    session: str
    file: str
    limit: int


@dataclass(frozen=True, slots=True)
class RecallPages:
    """Take what KeepPages wrote: a prompt that begins with it is not read again."""

    id: str
    file: str


@dataclass(frozen=True, slots=True)
class Peek:
    """Say how much of each of these prompts need not be computed. Answered by Peeked or QueryFailed."""

    id: str
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Quit:
    pass


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class HostUp:
    """The engine thread has imported torch and is listening."""

    torch_version: str
    devices: tuple[str, ...]  # "cpu", "cuda:0", ...
    native: bool  # the native extension is there
    note: str = ""  # why it is not, and the command that mends it


@dataclass(frozen=True, slots=True)
class LoadProgress:
    id: str
    stage: str  # "extension", "weights", "warm-up"
    done: int  # bytes, or steps where total_unit is not "B"
    total: int
    unit: str = "B"


@dataclass(frozen=True, slots=True)
class Loaded:
    id: str
    model_dir: str
    name: str
    architecture: str
    format: str  # "f16", "bf16", "f32", "exl2", "gptq", "q4", "q8"
    bits_per_weight: float
    parameters: int
    context: int  # tokens that the cache holds
    trained_context: int
    device: str
    weight_bytes: int
    cache_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()  # what the user should know, a sentence each


@dataclass(frozen=True, slots=True)
class LoadFailed:
    id: str
    error: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Unloaded:
    id: str


@dataclass(frozen=True, slots=True)
class AdapterLoaded:
    """Also after a change of scale."""

    id: str
    name: str
    scale: float
    rank: int
    targets: tuple[str, ...]
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class AdapterDropped:
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class AdapterFailed:
    id: str
    error: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class PagesKept:
    id: str
    file: str
    tokens: int
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class PagesRecalled:
    id: str
    file: str
    tokens: int


@dataclass(frozen=True, slots=True)
class PagesFailed:
    """Pages were not kept, or not recalled: written by another model, with another cache, RoPE or adapters, or damaged."""

    id: str
    error: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Queued:
    id: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Prefill:
    id: str
    done: int  # prompt tokens computed or found in the cache
    total: int
    cached: int


@dataclass(frozen=True, slots=True)
class Text:
    id: str
    text: str
    tokens: int  # new tokens since the last Text of this job


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely a token of a reply was: in what it was drawn from (after the sampler), and to the model itself (raw)."""

    id: str
    position: int  # of the token in prompt and reply
    token: int
    probability: float
    raw_probability: float
    top: tuple[tuple[int, float], ...] = ()  # ids and probabilities, the likeliest first
    raw_top: tuple[tuple[int, float], ...] = ()
    logits: tuple[float, ...] = ()  # the model's, for every id


@dataclass(frozen=True, slots=True)
class Inspected:
    """The kept tokens of a job in their order, the stop token among them. ``top`` of the scores is empty: Explain tells it."""

    id: str
    job: str
    scores: tuple[Scores, ...]


@dataclass(frozen=True, slots=True)
class StageOf:
    """What one stage left. ``name``: "raw" (the model's own distribution), "penalties" (with bias, bans and grammar), or a stage's."""

    name: str
    left: int  # tokens that can still be drawn
    removed: float  # the probability that those had which it took away
    probabilities: tuple[float, ...]  # of the tokens that are followed


@dataclass(frozen=True, slots=True)
class Explained:
    """The way from the model's distribution to what a token is drawn from, for the tokens ``ids``, the likeliest to the model first."""

    id: str
    job: str
    position: int
    token: int  # that was drawn
    ids: tuple[int, ...]
    stages: tuple[StageOf, ...]


@dataclass(frozen=True, slots=True)
class Peeked:
    """``cached``: for each prompt, how many of its first tokens are in the cache or in host memory, under the adapters of now."""

    id: str
    cached: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QueryFailed:
    id: str
    error: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Rewound:
    """A job took tokens back. None of their text was in a Text event."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    cause: str  # the banned string


@dataclass(frozen=True, slots=True)
class Stats:
    """The figures of a finished job.

    ``stop_reason``: stop_token, stop_string, max_new_tokens, context_full, loop_detected, grammar_end or cancelled.
    """

    stop_reason: str
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    seed: int
    queued_seconds: float = 0.0
    cached_pages: int = 0  # found whole in the cache
    accepted_drafts: int = 0  # tokens that speculation foresaw
    rejected_drafts: int = 0
    stop_token: int | None = None  # what ended the reply
    stop_string: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    id: str
    stats: Stats
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    id: str
    error: str
    hint: str = ""


Query = Inspect | Explain | Peek
AboutPages = PagesKept | PagesRecalled | PagesFailed
Command = Load | Unload | Submit | Cancel | LoadAdapter | DropAdapter | Query | KeepPages | RecallPages | Quit
AboutAdapters = AdapterLoaded | AdapterDropped | AdapterFailed
AboutJobs = Queued | Prefill | Text | Scores | Rewound | Done | Failed
Answer = Inspected | Explained | Peeked | QueryFailed
Event = HostUp | LoadProgress | Loaded | LoadFailed | Unloaded | AboutAdapters | AboutPages | AboutJobs | Answer | Meter

_TYPES = {t.__name__: t for t in (*typing.get_args(Command), *typing.get_args(Event))}


def to_json(message: Command | Event) -> str:
    """One line of JSON: the type's name under ``"is"`` beside the fields."""
    return json.dumps({"is": type(message).__name__, **dataclasses.asdict(message)}, ensure_ascii=False, separators=(",", ":"))


def from_json(line: str) -> Command | Event:
    """The message that ``to_json`` wrote. Raises ValueError for an unknown type and TypeError for wrong fields."""
    fields = json.loads(line)
    name = fields.pop("is", None)
    if name not in _TYPES:
        raise ValueError(f"not a protocol message: {line[:80]}")
    return typing.cast("Command | Event", build(_TYPES[name], fields))
