"""A loaded model with everything that generating with it takes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from exltui.engine.cores import physical_cores
from exltui.engine.generate.drafts import Drafter, ModelDrafter, NgramDrafter, stretch
from exltui.engine.generate.generator import MAX_BATCH, Generator
from exltui.engine.generate.room import pages_for
from exltui.engine.model.loading import load_model, resolve_device
from exltui.engine.ops import native
from exltui.engine.run.cache import KVCache, parse_cache_mode
from exltui.engine.run.runner import Runner
from exltui.errors import BuildError, DeviceError, ModelError
from exltui.protocol import LoadOptions
from exltui.tokenizer import Tokenizer

MAX_THREADS = 1024  # more than any machine has use for; far more would end the process
DEFAULT_THREADS = min(physical_cores(), torch.get_num_threads())  # torch obeys OMP_NUM_THREADS
CPU_CHUNK = 256  # prompt tokens in a step on the CPU: about half a second on two cores, the longest that a cancel waits


class Progress(Protocol):
    def __call__(self, stage: str, done: int, total: int, unit: str = "B") -> None: ...


@dataclass(slots=True)
class Session:
    runner: Runner
    generator: Generator
    tokenizer: Tokenizer
    directory: Path
    options: LoadOptions
    problem: str = ""  # why there are no native kernels, and the command that mends it

    def close(self) -> None:
        """Let go of weights and cache; their memory goes back to the system. The session must not be used any more."""
        on_gpu = self.runner.model.device.type == "cuda"
        del self.runner, self.generator
        gc.collect()  # what refers to itself holds memory until then
        if on_gpu:
            torch.cuda.empty_cache()
        with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed blocks of up to 32 MB unless it is asked not to
            ctypes.CDLL(None).malloc_trim(0)


def use_threads(count: int | None) -> None:
    """Compute on ``count`` CPU threads (None: one for each physical core). Raises DeviceError."""
    if count is not None and not 1 <= count <= MAX_THREADS:
        raise DeviceError(f"{count:,} threads are impossible, it must be 1 to {MAX_THREADS:,}", "leave --threads out to use all cores")
    torch.set_num_threads(DEFAULT_THREADS if count is None else count)


def open_session(directory: Path, options: LoadOptions, progress: Progress, cancelled: Callable[[], bool]) -> Session:
    """Load a model, its tokenizer and a cache for ``options.length`` tokens. Raises an ExltuiError."""
    if not directory.is_dir():
        raise ModelError(f"{directory}: there is no such directory", "exltui models list shows what there is")
    if not 0 <= options.host_cache < 1e6:
        raise ModelError(
            f"a host cache of {options.host_cache:g} GB is impossible", "give --host-cache a number of gigabytes, or leave it out"
        )
    if options.cache_tokens is not None and options.cache_tokens < 1:
        raise ModelError(
            f"a cache of {options.cache_tokens} tokens is impossible", "give --cache-tokens a positive number, or leave it out"
        )
    if options.chunk_size < 1:
        raise ModelError(f"chunks of {options.chunk_size} tokens are impossible", "give --chunk-size a positive number, or leave it out")
    if not 1 <= options.max_batch <= MAX_BATCH:
        raise ModelError(f"{options.max_batch} jobs at once are impossible", f"give --max-batch a number from 1 to {MAX_BATCH}")
    tokenizer = Tokenizer(directory)
    bits = parse_cache_mode(options.cache)
    device = resolve_device(options.device)
    use_threads(options.threads)
    problem = ""
    try:
        native.register(device.type, lambda done, total: progress("extension", done, total, "files"))
    except BuildError as error:  # the references run instead
        problem = f"{error}; {error.hint}"
    model = load_model(directory, options, progress, cancelled)
    cache = KVCache(model.spec, pages_for(options.cache_tokens or model.context), bits, device)
    runner = Runner(model, cache, reproducible=options.reproducible)
    chunk = min(options.chunk_size, CPU_CHUNK) if device.type == "cpu" else options.chunk_size
    drafter = _drafter(options, tokenizer, runner, progress, cancelled)
    return Session(
        runner,
        Generator(runner, tokenizer, model.context, chunk, drafter, int(options.host_cache * 1e9), options.max_batch),
        tokenizer,
        directory,
        options,
        problem,
    )


def _drafter(
    options: LoadOptions, tokenizer: Tokenizer, runner: Runner, progress: Progress, cancelled: Callable[[], bool]
) -> Drafter | None:
    """What guesses ahead, if anything: a draft model with a cache of as many pages, or n-grams. Raises an ExltuiError."""
    if options.draft_model is None:
        return NgramDrafter() if options.ngram_draft else None
    if options.ngram_draft:
        raise ModelError("a draft model and n-gram drafts exclude each other", "ask for one of them")
    directory = Path(options.draft_model).expanduser()
    if not directory.is_dir():
        raise ModelError(f"{directory}: there is no such directory", "--draft-model takes the directory of a model")
    if not tokenizer.same_ids(Tokenizer(directory)):
        raise ModelError(f"{directory.name} has another vocabulary", "a draft model must have the same tokenizer as the model")
    model = runner.model
    given = replace(options, length=model.context, rope_scale=None, rope_alpha=None, rope_yarn=None)
    draft = load_model(directory, given, progress, cancelled)
    alpha = stretch(draft.spec.trained_context, model.context)
    if alpha is not None:
        draft = load_model(directory, replace(given, rope_alpha=alpha), progress, cancelled)
    return ModelDrafter(Runner(draft, KVCache(draft.spec, runner.cache.pages, (16, 16), model.device)))
