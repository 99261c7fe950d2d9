"""The sparse engine's C code under libFuzzer: damaged packed networks, with address and undefined-behaviour sanitizers.

    python -m tests.sparsebytenn.fuzzing [--minutes 20] [--folder build/fuzz]

Needs clang-19 with its runtime: apt-get install clang-19 libclang-rt-19-dev. The corpus begins with 60 networks drawn
over all operators, packed in each form, and grows in the folder, where a second start goes on. A damaged copy is
refused, or it runs, with any instruction set of this machine, on one thread or on two together. Whatever the sanitizers
find ends it, with the input kept in the folder and a non-zero exit status; so does a run of over ten seconds, and one
that takes over 2 GiB.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from lab.sparsebytenn import compiler, packed

from . import graphs
from .native import HERE, ROOT, every_kind, rolled
from .test_graphs import KINDS

KERNELS = ("ref", "avx2", "avx512", "neon")  # no branch of theirs depends on what a file says and is not checked before
BRANCHES = (
    "check",
    "check_tables",
    "text",
    "engine",
    "operators",
    "dispatch",
)  # here libFuzzer watches where a file leads
FLAGS = ("-O1", "-g1", "-DLIBFUZZER", "-fno-sanitize-recover=all")
WATCHED, CHECKED = "-fsanitize=address,undefined,fuzzer", "-fsanitize=address,undefined"
CLANG, NETWORKS = "clang-19", 60


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="the corpus, and what is found")
    options = parser.parse_args(argv)
    if lacking := missing():
        print(f"{lacking}: apt-get install clang-19 libclang-rt-19-dev", file=sys.stderr)
        return 1
    corpus = options.folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    begin(corpus)
    program = built(options.folder / "fuzz")
    limits = [f"-max_total_time={round(60 * options.minutes)}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"]
    command = [program, *limits, "-print_final_stats=1", f"-artifact_prefix={options.folder}/", corpus]
    return subprocess.run(list(map(str, command))).returncode


def missing() -> str:
    """What of the compiler is not here, "" where all is."""
    if not shutil.which(CLANG):
        return f"{CLANG} is needed"
    command = [CLANG, "-print-resource-dir"]
    folder = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return "" if any(folder.rglob("libclang_rt.fuzzer*")) else f"{CLANG} has no libFuzzer in {folder}"


def built(program: Path) -> Path:
    """The harness with all kernels, under the sanitizers; a minute."""
    flags = [CLANG, *FLAGS, f"-I{ROOT / 'ckernels'}"]
    objects = [str(program.with_name(f"{name}.o")) for name in KERNELS]
    for name, made in zip(KERNELS, objects, strict=True):
        subprocess.run([*flags, CHECKED, "-c", str(ROOT / "ckernels" / f"{name}.c"), "-o", made], check=True)
    code = [*(str(ROOT / "ckernels" / f"{name}.c") for name in BRANCHES), str(HERE / "fuzz.c")]
    subprocess.run([*flags, WATCHED, *code, *objects, "-lm", "-lpthread", "-o", str(program)], check=True)
    return program


def begin(corpus: Path) -> None:
    """Networks to begin with: all kinds of operators by hand, and graphs drawn at random."""
    for name, network in {"every kind": every_kind(), "every kind, rolled": rolled(every_kind())}.items():
        (corpus / name).write_bytes(packed.write(network))

    made = iter(range(NETWORKS))

    @seed(0)
    @settings(max_examples=NETWORKS, phases=[Phase.generate], database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(graphs.network(KINDS))
    def keep(network) -> None:
        net, inputs = network
        compiled = compiler.compile(net, inputs[0] if len(inputs) == 1 else inputs)
        (corpus / f"graph {next(made)}").write_bytes(packed.write(compiled))

    keep()


if __name__ == "__main__":
    sys.exit(main())
