"""What the devices say about themselves: memory, load, temperature. From nvidia-smi, rocm-smi and /proc; unknown is None."""

from __future__ import annotations

import functools
import json
import mmap
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from exltui.protocol import DeviceMeter

TIMEOUT = 5.0  # seconds that a driver's tool may take
NVIDIA = "uuid,name,memory.total,memory.used,utilization.gpu,temperature.gpu,power.draw"


@dataclass(slots=True)
class Meters:
    """``read`` takes one sample. CPU load is measured from one sample to the next, so the first has none."""

    _busy: float | None = None
    _total: float = 0.0
    _nvidia: str | None = field(default_factory=lambda: shutil.which("nvidia-smi"))
    _rocm: str | None = field(default_factory=lambda: shutil.which("rocm-smi"))

    def read(self) -> tuple[DeviceMeter, ...]:
        """Every GPU, or the CPU and its memory where there is none."""
        gpus = (*self._read_nvidia(), *self._read_rocm())
        return gpus or (self._read_cpu(),)

    def _read_nvidia(self) -> tuple[DeviceMeter, ...]:
        lines = _output(self._nvidia, f"--query-gpu={NVIDIA}", "--format=csv,noheader,nounits").splitlines()
        rows = [[part.strip() for part in line.split(",")] for line in lines]
        found = {row[0].removeprefix("GPU-"): _nvidia_meter(row[1:]) for row in rows if len(row) == 7}
        seen = seen_gpus() if found else ()
        if not seen:
            return tuple(found.values())
        return tuple(found.get(uuid) or DeviceMeter(name, "cuda") for uuid, name in seen)

    def _read_rocm(self) -> tuple[DeviceMeter, ...]:
        text = _output(self._rocm, "--showmeminfo", "vram", "--showuse", "--showtemp", "--showpower", "--showproductname", "--json")
        try:
            cards = json.loads(text) if text else {}
        except ValueError:
            return ()
        return tuple(_rocm_meter(card) for name, card in sorted(cards.items()) if name.startswith("card"))

    def _read_cpu(self) -> DeviceMeter:
        total, available = _memory()
        used = None if total is None or available is None else total - available
        return DeviceMeter(
            _cpu_name(), "cpu", memory_total=total, memory_used=used, utilisation=self._load(), temperature=_cpu_temperature()
        )

    def _load(self) -> float | None:
        """Percent of all cores' time since the last sample."""
        try:
            ticks = [float(part) for part in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        total, busy = sum(ticks), sum(ticks) - ticks[3] - ticks[4]  # less idle and waiting for input
        before, span = self._busy, total - self._total
        self._busy, self._total = busy, total
        return None if before is None or span <= 0 else 100.0 * (busy - before) / span


def _output(program: str | None, *arguments: str) -> str:
    """What a driver's tool prints, or "" if it is not there, fails or hangs."""
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None  # "[N/A]"


def _scaled(value: float | None, unit: int) -> int | None:
    return None if value is None else int(value * unit)


def _nvidia_meter(row: list[str]) -> DeviceMeter:
    total, used, load, temperature, power = (_number(part) for part in row[1:])
    return DeviceMeter(
        row[0],
        "cuda",
        memory_total=_scaled(total, 1 << 20),
        memory_used=_scaled(used, 1 << 20),
        utilisation=load,
        temperature=temperature,
        power=power,
    )


def _rocm_meter(card: dict[str, str]) -> DeviceMeter:
    def find(*words: str) -> float | None:
        return next((_number(value) for key, value in card.items() if all(word in key.lower() for word in words)), None)

    name = next((value for key, value in card.items() if "card series" in key.lower()), "AMD GPU")
    total, used = find("vram total memory"), find("vram total used")
    return DeviceMeter(
        name,
        "rocm",
        memory_total=_scaled(total, 1),
        memory_used=_scaled(used, 1),
        utilisation=find("gpu use"),
        temperature=find("temperature", "edge"),
        power=find("power"),
    )


def _memory() -> tuple[int | None, int | None]:
    """Bytes of memory in all and available."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None, None
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith("kB")}
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


@functools.cache
def seen_gpus() -> tuple[tuple[str, str], ...]:
    """(UUID, name) of the GPUs that this program may use, in the order of its device numbers.

    The driver's tool lists all, in the order of their places on the bus; CUDA_VISIBLE_DEVICES hides some, and CUDA puts the fastest first.
    A part of a GPU (MIG) has a UUID of its own, of which the tool's table knows nothing.
    """
    import torch

    if not torch.cuda.is_available():
        return ()
    facts = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple((str(each.uuid).removeprefix("GPU-"), each.name) for each in facts)


def held_memory(kind: str, index: int) -> int | None:
    """Bytes that this program holds on a device: of a GPU what torch has taken, of main memory what is resident."""
    if kind == "cuda":
        import torch

        return torch.cuda.memory_reserved(index)
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return None


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def _cpu_temperature() -> float | None:
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        try:
            if "cpu" in (zone / "type").read_text().lower() or "x86_pkg" in (zone / "type").read_text():
                return int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):
            continue
    return None
