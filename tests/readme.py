"""A block of the README as a reader runs it: in a process that has imported nothing of the lab, which this is."""

import os
import subprocess
import sys
from pathlib import Path

# What a reader waits for is made short here: the settings of each recipe, for whatever a block leaves at its default.
SHORT = {
    "GAL": {"steps": 4, "mask_every": 1, "finetune_steps": 2},
    "Decoupling": {"steps": 3},
    "PAMS": {"steps": 2, "calibration": 1},
    "DQSS": {"steps": 2, "calibration": 8, "candidates": ("max", "mse", "p99.9")},
    "SparseByteNN": {"steps": 2, "regroup_every": 1},
    "FoldGPT": {"gate_steps": 1, "cure_steps": 1},
    "AceNAS": {"budget": 12, "rounds": 2, "top": 3, "epochs": 2, "pretrain_epochs": 1},
    "HybridSD": {"N": 3, "k": 1, "ks": (0, 3), "controls": (), "prompts": 2},
    "HyperFD": {"K": 2, "trials": 4, "R": 2, "m": 16, "steps": 1},
}


def run(block: str, folder: Path) -> str:
    """What went wrong in a block that ran in a fresh process in this folder; '' for nothing."""
    command, root = [sys.executable, "-m", "tests.readme"], str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, input=block, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    return done.stderr if done.returncode else ""


def _execute(block: str) -> None:
    assert "lab" not in sys.modules, "the process is not fresh"
    import lab  # and nothing else of it: a name that another import must bring first is missed here, as by the reader

    for name, fields in SHORT.items():
        if f"lab.{name}(" in block:
            vars(lab)[name] = _shortened(getattr(lab, name), fields)
    lab.Task.measure = lambda task, model: 1.0  # how well it does is what other tests ask
    names = {"lab": lab}
    if not block.startswith("import lab"):
        names |= _given(lab, block)
    exec(compile(block, "README.md", "exec"), names)


def _shortened(recipe: type, fields: dict) -> type:
    """The recipe with other defaults."""
    return type(recipe.__name__, (recipe,), {"__new__": lambda cls, **given: recipe(**{**fields, **given})})


def _given(lab, block: str) -> dict:
    """What a block takes from its reader by name; the files that it reads are put into the working folder."""
    import torch

    given = {}
    if "compile(net, x)" in block:
        given = {"net": lab.nets.mobilenet_v1(width=0.25, classes=10, size=32).eval(), "x": torch.rand(1, 3, 32, 32)}
    if "(batches)" in block:
        x, y, *_ = lab.tasks.digits_data()
        given = {"batches": [(x[:32], y[:32])]}
    if "other]" in block:
        given = {"other": lab.Chain(lab.DQSS(weight_bits=8)).run(progress=False)}
    for name, write in FILES.items():
        if name in block:
            write()
    return given


def _diffusion() -> None:
    from tests.hybridsd import small

    small.sd().save_pretrained("sd-v1-4")
    small.unet(1).save_pretrained("small-unet")
    small.tiny_vae().save_pretrained("taesd")


def _language() -> None:
    from lab.core import store

    Path("path/of/a").mkdir(parents=True)
    Path("path/of/a/model").symlink_to(store.artefact("prose/config.json").parent)
    Path("my.txt").write_text(
        "The statement is executed once, and what it returns is the value of the call.\n\n" * 4000
    )


def _table() -> None:
    kinds = ("nor_conv_3x3", "skip_connect", "avg_pool_3x3", "nor_conv_1x1")
    rows = ["arch_str,c100_test,oneshot_c10,flops_m,params_m"]
    for k in range(16):
        a, b = kinds[k % 4], kinds[k // 4]
        cell = f"|{a}~0|+|{b}~0|none~1|+|{a}~0|none~1|{b}~2|"
        rows.append(f"{cell},{50 + k},{40 + k % 5},{20 + k},{0.1 + k / 100}")
    Path("nb201.csv").write_text("\n".join(rows))


def _faces() -> None:
    from tests.core.data.test_faces import voc

    Path("WIDER").mkdir()
    voc(Path("WIDER"))


FILES = {"sd-v1-4/": _diffusion, "path/of/a/model": _language, "nb201.csv": _table, '"WIDER"': _faces}


if __name__ == "__main__":
    _execute(sys.stdin.read())
