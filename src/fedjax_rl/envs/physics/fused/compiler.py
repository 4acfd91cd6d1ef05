"""The C++ compiler that makes the programs, and what it is told. Imports no simulator.

No -ffast-math: it divides by the processor's own estimate of a reciprocal and re-associates sums. -ffp-contract=off:
products are fused where the text says so and nowhere else. Then all compilers and vector widths give the same bits.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax

from fedjax_rl.envs.physics.fused import cache
from fedjax_rl.host.cores import cpu_flags

STATES = 3  # qpos, qvel, qacc_warmstart: the inputs that a step also gives out
_CHUNK = 4  # vectors that a thread takes at a time
_BLOCK = 32  # simulations of a block of a GPU
_FLAGS = (
    "-std=c++17",
    "-O2",
    "-fno-fast-math",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fno-tree-vectorize",
)
_LIBRARY = ("-shared", "-fPIC", "-s")
# A vector wider than the register takes 30 times as long, and a minute to compile.
_MACHINE = {16: ("-mavx512f", "-mfma"), 8: ("-mavx2", "-mfma"), 1: ("-mfma",)}
# No product is fused that the text does not fuse; quotients, roots and denormal numbers are IEEE's by default.
_CUDA = ("-std=c++17", "-O3", "-fmad=false", "-x", "cu", "-shared", "-Xcompiler", "-fPIC")
_NEEDS = {16: {"avx512f", "fma"}, 8: {"avx2", "fma"}}
_IDLE = "FN void run(const float* const*, float* const*, long, long, long, int) {}"  # a kernel that does nothing


class Unavailable(Exception):
    """Why this machine cannot make programs, in one line."""


class Compiler(NamedTuple):
    """command: its words; version: what it says of itself; width: W, lanes of a vector (1 for nvcc)."""

    command: tuple[str, ...]
    version: str
    width: int

    def build(self, text: str) -> Path:
        """The shared object of a text, from the cache where it is there.

        Raises:
          RuntimeError: the compiler's first line of error.
        """
        is_cuda = Path(self.command[0]).name == "nvcc"
        own = _CUDA if is_cuda else (*_FLAGS, *_LIBRARY, *_MACHINE[self.width])
        options = [*own, f"-DW={self.width}"]
        # its header has the version of the interface, which an older jaxlib does not load
        header = hashlib.sha256(Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_bytes()).hexdigest()
        parts = [text, header, self.version, *self.command, *options, *sorted(cpu_flags())]
        return cache.kept(f"{digest(*parts)}.so", lambda path: self._compile(text, options, path))

    def _compile(self, text: str, options: list[str], path: Path) -> None:
        source = path.with_suffix(".cc")
        source.write_text(text, encoding="utf-8")
        words = [*self.command, *options, f"-I{jax.ffi.include_dir()}", "-o", str(path), str(source)]
        done = subprocess.run(words, capture_output=True, text=True, env=_environment())
        if done.returncode:
            raise RuntimeError(_first_error(done.stderr))


def digest(*parts: str) -> str:
    """A name for what was made of the parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def whole_text(kernel: str, columns: Sequence[int]) -> str:
    """A kernel with what it stands on and what XLA calls: one translation unit, for CPUs and for nvcc.

    columns: of every input.
    """
    folder = resources.files("fedjax_rl.envs.physics.fused")
    names = ("lanes.h", "handler.h", "cuda.h", "threads.h")
    lanes, handler, cuda, threads = (folder.joinpath(name).read_text(encoding="utf-8") for name in names)
    facts = f"enum {{ INPUTS = {len(columns)}, STATES = {STATES}, CHUNK = {_CHUNK}, BLOCK = {_BLOCK} }};\n"
    facts += f"static const long COLUMNS[INPUTS] = {{{', '.join(map(str, columns))}}};\n"
    launch = ["#ifdef __CUDACC__", cuda, "#else", threads, "#endif\n"]
    return "\n".join([lanes, facts, "namespace {", kernel, "}", handler, *launch])


@functools.cache
def find() -> Compiler:
    """The first compiler that makes a program which this process can load.

    Raises:
      Unavailable: there is none, or the processor has no fused multiply-add in vectors.
    """
    widths = [width for width, needed in _NEEDS.items() if needed <= cpu_flags()]
    if not widths:
        raise Unavailable("no x86 processor with AVX2 and FMA")
    remarks = []
    for command in candidates():
        try:
            version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
            found = Compiler(command, version.strip(), widths[0])
            ctypes.CDLL(str(found.build(whole_text(_IDLE, [1] * STATES))))
            return found
        except FileNotFoundError:
            continue
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            remarks.append(f"{shlex.join(command)}: {error}")
    raise Unavailable(
        remarks[0]
        if remarks
        else "no C++ compiler; g++ or `pip install 'fedjax-rl[compiler]'` makes it ten times as fast"
    )


@functools.cache
def find_cuda(arch: str = "native") -> Compiler:
    """nvcc of $PATH or of the wheels that come with `jax[cuda13]`, for GPUs of an architecture.

    Raises:
      Unavailable: there is none.
    """
    wheels = importlib.util.find_spec("nvidia")
    places = wheels.submodule_search_locations or () if wheels else ()
    for nvcc in (shutil.which("nvcc"), *(str(x) for place in places for x in Path(place).glob("cu*/bin/nvcc"))):
        if nvcc:
            version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
            return Compiler((nvcc, f"-arch={arch}"), version.strip(), 1)
    raise Unavailable("no nvcc; `pip install nvidia-cuda-nvcc nvidia-cuda-runtime` will do")


def candidates() -> Iterator[tuple[str, ...]]:
    """Commands to try: $CXX, g++, c++, clang++, and Clang of the `ziglang` wheel."""
    try:
        own = shlex.split(os.environ.get("CXX", ""))
    except ValueError:  # a quotation without an end: no command
        own = []
    if own:
        yield tuple(own)
    for name in ("g++", "c++", "clang++"):
        yield (name,)
    if importlib.util.find_spec("ziglang"):
        yield (sys.executable, "-m", "ziglang", "cc", "-x", "c++")


def _environment() -> dict[str, str]:
    """Zig keeps files of its own, which need a place where HOME is not set."""
    place = str(cache.directory() / "zig")
    return {"ZIG_GLOBAL_CACHE_DIR": place, "ZIG_LOCAL_CACHE_DIR": place} | os.environ


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "it failed and said nothing")
