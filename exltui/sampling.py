"""Every sampler setting as data: what it is called, its range, where it is off, and one line of help. No torch.

The values of one job are ``protocol.Sampling``, whose fields have these names and the defaults. The command line makes its flags from this
table, the app its pane, and the engine refuses what lies outside it. The formulas: docs/sampling.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from exltui.errors import SamplingError
from exltui.protocol import Sampling

Kind = Literal["number", "whole", "switch", "text"]
Value = float | int | bool | str | None

# The stages that shape the distribution, in the order in which they run unless a job says another one. The kernels number them so too.
ORDER = (
    "top_n_sigma",
    "smoothing",
    "temperature",
    "top_k",
    "top_p",
    "top_a",
    "min_p",
    "tfs",
    "typical",
    "mirostat",
    "dynamic_temperature",
    "xtc",
    "adaptive",
)
LAST_TEMPERATURE = tuple(
    stage for name in ORDER if name != "temperature" for stage in (("temperature", name) if name == "dynamic_temperature" else (name,))
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of ``Sampling``. ``off`` is a value at which it does nothing (None: it has none, or belongs to the setting before it).

    ``step`` is a sensible difference between two values to try, ``unit`` what a value counts ("" for a plain number).
    """

    name: str
    label: str
    group: str
    help: str
    kind: Kind = "number"
    low: float = 0.0
    high: float = 1.0
    step: float = 0.05
    off: Value = None
    unit: str = ""

    @property
    def default(self) -> Value:
        value: Value = getattr(Sampling(), self.name)
        return value

    def check(self, value: object) -> None:
        """Raise SamplingError if ``value`` is of another kind or outside the range. None is a value where it is the default."""
        hint = "docs/sampling.md explains each setting"
        if value is None and self.default is None:
            return
        kinds: dict[str, Any] = {"number": (int, float), "whole": int, "switch": bool, "text": str}
        if not isinstance(value, kinds[self.kind]) or (isinstance(value, bool) and self.kind != "switch"):
            raise SamplingError(f"{self.name} is {value!r}, it must be {KINDS[self.kind]}", hint)
        if isinstance(value, (int, float)) and self.kind != "switch" and not (math.isfinite(value) and self.low <= value <= self.high):
            raise SamplingError(f"{self.name} is {value}, it must lie between {self.low:g} and {self.high:g}", hint)


KINDS = {"number": "a number", "whole": "a whole number", "switch": "true or false", "text": "a text"}
TOKENS = 100_000_000  # more than any history has

SETTINGS = (
    Setting(
        "temperature",
        "temperature",
        "temperature",
        "Higher is more surprising, lower more certain; 0 takes the likeliest.",
        high=100,
        off=1.0,
    ),
    Setting(
        "temperature_last", "temperature last", "temperature", "Apply the temperature after the cuts, not before.", "switch", off=False
    ),
    Setting(
        "min_temp", "dynamic minimum", "temperature", "Temperature where the model is certain; used if the maximum is higher.", high=100
    ),
    Setting(
        "max_temp",
        "dynamic maximum",
        "temperature",
        "Temperature where the model is unsure; 0 turns dynamic temperature off.",
        high=100,
        off=0.0,
    ),
    Setting(
        "temp_exponent",
        "dynamic exponent",
        "temperature",
        "How the dynamic temperature grows with the uncertainty.",
        low=0.01,
        high=100,
        off=None,
    ),
    Setting(
        "smoothing_factor",
        "smoothing",
        "temperature",
        "Bends the scores so that the best ones come closer and the rest fall off.",
        high=100,
        off=0.0,
    ),
    Setting(
        "top_n_sigma",
        "top-n-sigma",
        "cuts",
        "Keep scores within this many standard deviations of the best.",
        high=100,
        step=0.1,
        off=0.0,
        unit="standard deviations",
    ),
    Setting("top_k", "top-k", "cuts", "Only the k likeliest tokens stay.", "whole", high=1_000_000, step=5, off=0, unit="tokens"),
    Setting("top_p", "top-p", "cuts", "Only the likeliest tokens that together reach this probability stay.", off=1.0, unit="probability"),
    Setting("top_a", "top-a", "cuts", "Tokens below this times the square of the likeliest one's probability go.", off=0.0),
    Setting("min_p", "min-p", "cuts", "Tokens below this share of the likeliest one's probability go.", step=0.01, off=0.0, unit="share"),
    Setting("tfs", "tail free", "cuts", "Cuts the tail where the curve of probabilities becomes flat; 1 is off too.", off=0.0),
    Setting(
        "typical",
        "typical",
        "cuts",
        "Keep the tokens whose surprise is nearest to the expected one; 1 is off too.",
        off=0.0,
        unit="probability",
    ),
    Setting("mirostat", "mirostat", "targets", "Steer the surprise of the reply towards a target.", "switch", off=False),
    Setting("mirostat_tau", "mirostat target", "targets", "The surprise that mirostat aims at.", low=0.01, high=100, step=0.1, unit="bits"),
    Setting("mirostat_eta", "mirostat rate", "targets", "How fast mirostat follows.", low=0.0, high=10, step=0.01),
    Setting(
        "mirostat_mu",
        "mirostat start",
        "targets",
        "Where mirostat's bound starts; empty: twice the target.",
        high=1000,
        step=0.1,
        unit="bits",
    ),
    Setting(
        "adaptive_target",
        "adaptive-p target",
        "targets",
        "Favour tokens whose probability is near this, on average.",
        off=1.0,
        unit="probability",
    ),
    Setting(
        "adaptive_decay",
        "adaptive-p memory",
        "targets",
        "How long adaptive-p remembers: about 1 / (1 - decay) tokens.",
        high=0.99,
        step=0.01,
    ),
    Setting("xtc_probability", "XTC probability", "chance", "How often the best choices are left out.", off=0.0, unit="probability"),
    Setting("xtc_threshold", "XTC threshold", "chance", "What counts as a best choice.", step=0.01, unit="probability"),
    Setting("xtc_ignore_tokens", "XTC spares", "chance", "Characters whose tokens XTC leaves alone, beside special tokens.", "text"),
    Setting("skew", "skew", "chance", "Above 0 the draw leans to the tail, below 0 to the likeliest.", low=-10, high=10, step=0.1, off=0.0),
    Setting(
        "token_repetition_penalty", "repetition", "penalties", "Lowers the score of tokens that occurred.", low=0.01, high=100, off=1.0
    ),
    Setting("token_presence_penalty", "presence", "penalties", "Taken off a token that occurred.", low=-100, high=100, step=0.1, off=0.0),
    Setting(
        "token_frequency_penalty", "frequency", "penalties", "Taken off for each time it occurred.", low=-100, high=100, step=0.1, off=0.0
    ),
    Setting(
        "token_repetition_range",
        "range",
        "penalties",
        "How many last tokens the penalties see; -1: all.",
        "whole",
        -1,
        TOKENS,
        64,
        unit="tokens",
    ),
    Setting(
        "token_repetition_decay",
        "decay",
        "penalties",
        "Over how many tokens more the penalties fade out.",
        "whole",
        0,
        TOKENS,
        64,
        0,
        "tokens",
    ),
    Setting("dry_multiplier", "DRY", "DRY", "Lowers tokens that would go on repeating a passage.", high=100, step=0.1, off=0.0),
    Setting("dry_base", "DRY base", "DRY", "How steeply it grows with the length of the passage.", low=1, high=10),
    Setting("dry_allowed_length", "DRY allowed", "DRY", "Passages shorter than this may repeat.", "whole", 1, 1000, 1, unit="tokens"),
    Setting("dry_range", "DRY range", "DRY", "How many last tokens it searches; 0: all.", "whole", 0, TOKENS, 64, unit="tokens"),
    Setting("dry_max_ngram", "DRY longest", "DRY", "Longer passages count as this long.", "whole", 1, 1000, 1, unit="tokens"),
    Setting("dry_sequence_breakers", "DRY breakers", "DRY", "Characters whose tokens end a passage, beside special tokens.", "text"),
    Setting(
        "cfg_scale", "guidance", "guidance", "Above 1 the reply moves away from the negative prompt.", low=-100, high=100, step=0.1, off=1.0
    ),
    Setting("order", "order", "order", "Names of the stages to run, in their order, with commas; empty: the usual order.", "text", off=""),
    Setting("seed", "seed", "chance", "The same seed and settings give the same reply; empty: a fresh one.", "whole", 0, 2**63 - 1, 1),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


def validate(sampling: Sampling) -> None:
    """Raise SamplingError for a value of the wrong kind, outside its range, or an order that names no stages."""
    for field in fields(sampling):
        BY_NAME[field.name].check(getattr(sampling, field.name))
    stages(sampling)


def stages(sampling: Sampling) -> tuple[str, ...]:
    """The stages in the order in which this job runs them. One that an order of its own leaves out does not run. Raises SamplingError."""
    if not sampling.order:
        return LAST_TEMPERATURE if sampling.temperature_last else ORDER
    named = tuple(part.strip() for part in sampling.order.split(",") if part.strip())
    strange = next((name for name in named if name not in ORDER), None)
    if strange is not None:
        raise SamplingError(f"order names {strange!r}, which is no stage", f"the stages are {', '.join(ORDER)}")
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise SamplingError(f"order names {twice} twice", "name each stage once")
    return named
