"""How much memory a fold takes, in models of 300 million parameters: peaks of processes of their own.

    python benchmarks/foldgpt_memory.py [--json FILE] [--millions 300]

A Llama-shaped random model in bfloat16 is saved in shards, folded with a short cure, saved and read again. Each number
is by how much the process's highest resident memory stands above what it held with its libraries, over the bytes of the
model's file; pages of a file that is being read count too. Linux alone keeps the marks that are read here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from lab.core.machine import machine

PARTS = ("load", "run", "run, states computed again", "load folded")
CHILD = """
import re, sys, warnings
from pathlib import Path
import torch
import lab
from transformers import AutoModelForCausalLM
warnings.simplefilter("ignore")
torch.set_num_threads(1)
part, folder, out = sys.argv[1:]
about = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
lab.FoldGPT, lab.Task, torch.randn(64, 64) @ torch.randn(64, 64)
Path("/proc/self/clear_refs").write_text("5")  # the highest mark so far is forgotten
before = about("VmRSS")
if part == "load folded":
    net = lab.core.pretrained.language_model(out, torch.bfloat16)
else:
    net = lab.core.pretrained.language_model(folder, torch.bfloat16)
x = torch.arange(1, 17)[None]  # few tokens: what is measured is weights
if part.startswith("run"):
    task = lab.Task(model=net, batches=[x] * 2, score=lab.core.data.text.perplexity([x]), metric="perplexity", unit="")
    recipe = lab.FoldGPT(ranking="influence", cure_steps=2, gradient_checkpointing=part != "run")
    recipe.run(task, progress=False).save(out)
else:
    with torch.no_grad():
        net(x)
print("peak", about("VmHWM") - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the peaks, the sizes and the machine here")
    parser.add_argument("--millions", type=int, default=300, help="parameters of the model, about")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = made(options.millions, f"{folder}/whole")
        peaks = {part: peak(part, f"{folder}/whole", f"{folder}/folded") for part in PARTS}
        folded = sum(path.stat().st_size for path in Path(f"{folder}/folded").glob("*.safetensors"))
    report = {
        "bytes": size, "folded_bytes": folded, "peak": peaks, "models": {k: v / size for k, v in peaks.items()},
        "machine": machine("transformers"),
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def made(millions: int, folder: str) -> int:
    """Save a random model in shards; its bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers = max(4, round((millions * 1e6 - 2 * 8192 * 1024) / 12.8e6))  # 12.8 million parameters a block
    config = LlamaConfig(
        vocab_size=8192, hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers, num_attention_heads=16,
        max_position_embeddings=256, dtype="bfloat16",
    )  # fmt: skip
    net = LlamaForCausalLM(config).to(torch.bfloat16)
    net.save_pretrained(folder, max_shard_size="100MB")
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def peak(part: str, whole: str, folded: str) -> int:
    """Bytes by which a process of its own grows."""
    done = subprocess.run([sys.executable, "-c", CHILD, part, whole, folded], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("peak ")]
    if not lines:
        raise RuntimeError(f"{part} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    print(part, lines[0], flush=True)
    return int(lines[0].split()[1])


if __name__ == "__main__":
    main()
