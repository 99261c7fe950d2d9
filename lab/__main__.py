"""The `lab` command: start the notebooks, look at the machine, run a recipe or a benchmark, serve others.

Its exit status is 0 for done, 1 for work that failed, 2 for what is not there or not allowed, before any work is begun,
and 130 for stopped by Ctrl-C. What went wrong is one line.
"""

import argparse
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import types
import typing
from pathlib import Path

import lab

from . import settings
from .core.distribution import NAME, clash, install
from .core.errors import meant

PACKAGE = Path(__file__).parent
FIRST = "00_tour.ipynb"


STATUS = "exit status: 0 done; 1 the work failed; 2 not there or not allowed, nothing was begun; 130 stopped by Ctrl-C"


class CommandError(Exception):
    """What the user asked for cannot be done; the message is one line."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are."""

    def error(self, message: str) -> typing.NoReturn:
        raise CommandError(f"{message}; `{self.prog} --help` says what there is")


class _RunHelp(argparse.Action):
    """The help of `lab run`, with the fields of the recipe that is named."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        method = getattr(namespace, "method", None)
        if method and not method.endswith(".toml"):
            print(settings.explained(_recipe(method)), end="\n\n")
        parser.print_help()
        parser.exit()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        if not hasattr(lab, "_RECIPES"):  # another project's lab/__init__.py has been put over ours
            raise CommandError(
                clash() or f"{lab.__file__} is not the lab's: install {NAME} into an environment of its own"
            )
        options = parser().parse_args(arguments)
        return options.do(options) or 0
    except CommandError as error:
        return _say(error, 2)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        return _say("stopped; what --checkpoint stored is kept, and the same command goes on from there", 130)


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = _Parser(prog="lab", description="Make neural networks smaller, faster or easier to read.", epilog=STATUS)
    top.add_argument("--version", action="version", version=f"lab {lab.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    start = commands.add_parser("start", help="copy the notebooks to a folder and open JupyterLab there")
    start.add_argument("folder", nargs="?", default="lab-notebooks", type=Path, help="default: lab-notebooks")
    start.add_argument("--no-open", action="store_true", help="copy the notebooks, do not start JupyterLab")
    start.set_defaults(do=start_command)

    doctor = commands.add_parser("doctor", help="what this machine has, what is missing and how to get it")
    doctor.set_defaults(do=doctor_command)

    run = commands.add_parser("run", help="run a recipe, or a chain of them, and print the report", add_help=False)
    run.add_argument("-h", "--help", action=_RunHelp, nargs=0, help="this; `lab run gal --help` lists GAL's fields")
    run.add_argument("method", help="a recipe's name, such as gal, or a file, such as chain.toml")
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the recipe; repeat")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--device", help="such as cpu or cuda")
    run.add_argument("--out", type=folder, metavar="DIR", help="save the outcome there, for lab.load(DIR)")
    run.add_argument("--checkpoint", type=folder, metavar="DIR", help="keep the run's state there: it survives a kill")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    run.set_defaults(do=run_command)

    load = commands.add_parser("load", help="print the report of an outcome that was saved")
    load.add_argument("folder", metavar="DIR", help="what `lab run --out DIR` wrote, or hf://owner/name of the hub")
    load.set_defaults(do=load_command)

    bench = commands.add_parser("bench", help="measure what the lab claims: benchmarks/<method>.py")
    bench.add_argument("method", nargs="?", help="one method; left out, all that have a benchmark")
    bench.add_argument("--quick", action="store_true", help="under two minutes a method")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write all figures, settings, seeds and the machine")
    bench.set_defaults(do=bench_command)

    course = commands.add_parser("course", help="grade the exercises of executed notebooks, offline")
    course.add_argument("what", choices=["check"], help="check: count the right answers that are stored in them")
    course.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="files, or folders of them")
    course.add_argument("--run", action="store_true", help="run them first: their code does here what it likes")
    course.set_defaults(do=course_command)

    serve = commands.add_parser("serve", help="run a half of a method on this machine, for others to ask")
    serve.add_argument("what", choices=["cloud", "platform"],
                       help="cloud: the first steps of Hybrid SD; platform: HyperFD's recommender")  # fmt: skip
    serve.add_argument("--model", help="a diffusers folder or hub id; left out, the embedded models")
    serve.add_argument("--folder", type=Path, metavar="DIR", help="platform: keep its state there, and go on from it")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8765)
    serve.add_argument("--token", default=os.environ.get("LAB_TOKEN"),
                       help="asked of every request; left out, LAB_TOKEN's or a new one, which is printed")  # fmt: skip
    serve.add_argument("--name", action="append", default=[], metavar="HOST",
                       help="a further name that it is asked by, such as a proxy's; repeat")  # fmt: skip
    serve.add_argument("--device", help="cloud: where it computes, such as cuda; left out, the CPU")
    serve.add_argument("--lora", metavar="DIR", help="cloud: a LoRA adapter that is added to the model")
    serve.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="cloud: requests of equal shapes that share a call of the model; their last bits may differ",
    )
    serve.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"],
                       help="cloud: what it computes in")  # fmt: skip
    serve.set_defaults(do=serve_command)

    back = commands.add_parser("rollback", help="give a served platform an older state, which its folder keeps")
    back.add_argument("folder", type=Path, metavar="DIR", help="the folder that `lab serve platform` was given")
    back.add_argument("--to", type=int, metavar="VERSION", help="left out, the one before the newest")
    back.set_defaults(do=rollback_command)

    keys = commands.add_parser("clients", help="who has a key to a served platform; give one, take one back")
    keys.add_argument("folder", type=Path, metavar="DIR", help="the folder that `lab serve platform` was given")
    change = keys.add_mutually_exclusive_group()
    change.add_argument("--add", metavar="NAME", help="make a key for a client and print it, once")
    change.add_argument("--revoke", metavar="NAME", help="take a client's key back, at once")
    keys.set_defaults(do=clients_command)
    return top


def course_command(options: argparse.Namespace) -> int:
    """Grade notebooks, a line for each."""
    for line in lab.course.graded(options.notebooks, run=options.run):
        print(line, flush=True)
    return 0


def serve_command(options: argparse.Namespace) -> int:
    """Serve until stopped."""
    where = (options.host, options.port, options.token, options.name)
    if options.what == "platform":
        lab.hyperfd.serving.serve(options.folder, *where)
    else:
        how = {"device": options.device, "dtype": options.dtype, "lora": options.lora, "batch": options.batch}
        lab.hybridsd.cloud.serve(options.model, *where, **how)
    return 0


def rollback_command(options: argparse.Namespace) -> int:
    """Make an older state of a platform its newest."""
    old, new = lab.hyperfd.platform.rollback(options.folder, options.to)
    print(f"version {new} is what version {old} was: start the platform again")
    return 0


def clients_command(options: argparse.Namespace) -> int:
    """The clients of a platform and their keys."""
    keys = lab.hyperfd.database
    if options.add:
        key = keys.add_client(options.folder, options.add)
        print(f"the key of {options.add}, which is shown this once; who has it runs first:\n    export LAB_TOKEN={key}")
    elif options.revoke:
        keys.revoke_client(options.folder, options.revoke)
        print(f"{options.revoke} has no key any more; what it taught stays: `lab rollback` gives an older state")
    else:
        print("\n".join(keys.clients(options.folder)) or "no client has a key of its own: all share the token")
    return 0


def start_command(options: argparse.Namespace) -> int:
    """Copy the notebooks, keeping what is there, and put JupyterLab in this process's place."""
    source, folder = _brought("notebooks"), options.folder
    if folder.resolve() != source.resolve():
        try:
            new, kept = copy_notebooks(source, folder)
        except OSError as error:
            raise CommandError(f"{folder}: {error.strerror or error}: name another folder") from error
        note = f", {kept} that were there are kept" if kept else ""
        print(f"working folder {folder.resolve()}: {new} notebooks copied{note}", flush=True)
    if not options.no_open:
        if importlib.util.find_spec("jupyterlab") is None:
            raise CommandError(f"JupyterLab is not in this environment: {install('notebook')}")
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a busy neighbour makes two threads ten times slower than one
        command = jupyter(folder)
        os.execv(command[0], command)
    return 0


def copy_notebooks(source: Path, folder: Path) -> tuple[int, int]:
    """Copy what `folder` has not got: (files copied, files left as they were)."""
    files = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
    folder.mkdir(parents=True, exist_ok=True)
    missing = [path for path in files if not (folder / path.name).exists()]
    for path in missing:
        shutil.copyfile(path, folder / path.name)
    return len(missing), len(files) - len(missing)


def jupyter(folder: Path) -> list[str]:
    """The command that serves a folder on loopback, behind a token, and opens the tour where it is there."""
    port = os.environ.get("LAB_PORT", "")
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise CommandError(f"LAB_PORT={port!r} is not a port: give a number from 1 to 65535")
    return [
        *(sys.executable, "-m", "jupyterlab"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={folder.resolve()}",
        f"--LabApp.default_url=/lab{f'/tree/{FIRST}' if (folder / FIRST).exists() else ''}",
        "--Application.log_level=WARN",  # leaves the lines with the URL and its token
        "--LabApp.news_url=None",  # asks nobody for news, nor the reader whether to
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        *([f"--ServerApp.port={port}", "--ServerApp.port_retries=0"] if port else []),
        *(["--no-browser"] if os.environ.get("LAB_NO_BROWSER", "") not in ("", "0") else []),
        *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
    ]


def doctor_command(options: argparse.Namespace) -> int:
    """Print what the machine has; exit status 1 if something that the lab cannot do without is missing."""
    from .doctor import examine

    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        remedy = f"; to get it: {finding.remedy}" if finding.remedy else ""
        print(f"{finding.name:<{width}}  {finding.state}{remedy}")
    return int(any(finding.essential and finding.remedy for finding in findings))


def run_command(options: argparse.Namespace) -> int:
    """Run a recipe or a chain, print its report, save its outcome."""
    recipe, task = chain(options) if options.method.endswith(".toml") else (_recipe(options.method), None)
    if isinstance(recipe, type):
        recipe = made(recipe, options.set)
    validate_start(options.seed, options.device)
    if options.out:
        validate_room(options.out)  # before the run, not after it
    outcome = recipe.run(
        task and task(),
        seed=options.seed, device=options.device, progress=not options.quiet, checkpoint=options.checkpoint,
    )  # fmt: skip
    print(outcome)
    if options.out:
        print(f"saved: lab.load({str(saved(outcome, options.out))!r})")
    return 0


def made(recipe: type, texts: list[str]) -> typing.Any:
    """The recipe with fields as `--set` gives them."""
    try:
        return recipe(**dict(settings.parse_field(recipe, text) for text in texts))
    except ValueError as error:
        raise CommandError(error) from error


def validate_start(seed: int, device: str | None) -> None:
    """Refuse a seed that is none, and a device that this machine has not."""
    from .core.machine import device_of
    from .core.training import seeded

    try:
        with seeded(seed):
            if device is not None:
                device_of(device)
    except ValueError as error:
        raise CommandError(f"--{error}") from error


def chain(options: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
    """The chain in a file, and the function that makes its task, None for the chain's own."""
    if options.set:
        raise CommandError("--set is for one recipe: write a chain's fields into its file")
    try:
        recipe, name = lab.chain.files.read(options.method, lab.RECIPES)
    except ValueError as error:
        raise CommandError(error) from error
    if name is None:
        return recipe, None
    have = [task for task, make in vars(lab.tasks).items() if _makes_a_task(make)]
    if name not in have:
        raise CommandError(f"{options.method}: no task {name!r}{meant(name, have)}; there are {', '.join(have)}")
    return recipe, getattr(lab.tasks, name)


def _makes_a_task(make: typing.Any) -> bool:
    """Whether a name of `lab.tasks` is a function that gives a task without being given anything."""
    if not isinstance(make, types.FunctionType) or make.__module__ != "lab.core.tasks":
        return False
    is_task = typing.get_type_hints(make).get("return") is lab.Task
    return is_task and all(p.default is not p.empty for p in inspect.signature(make).parameters.values())


def load_command(options: argparse.Namespace) -> int:
    """Print the report of a saved outcome."""
    try:
        print(lab.chain.loading.report_of(options.folder))
    except (ValueError, FileNotFoundError) as error:
        raise CommandError(error) from error
    return 0


def folder(text: str) -> Path:
    """The folder of this name, which must not be empty: that would be the working folder."""
    if not text:
        raise CommandError("'' is not a folder: give its name")
    return Path(text)


def validate_room(folder: Path) -> None:
    """Refuse a folder that the outcome cannot be saved to."""
    from .core import store

    try:
        store.validate_replaceable(folder)
    except OSError as error:
        raise CommandError(f"--out {folder}: {error}") from error


def saved(outcome: typing.Any, folder: Path) -> Path:
    """Where the outcome was saved: in the folder or, if that has become impossible, in a temporary one."""
    try:
        outcome.save(folder)
    except OSError as error:
        _say(error, 1)
        folder = Path(tempfile.mkdtemp(prefix="lab-")) / "outcome"
        outcome.save(folder)
    return folder


def bench_command(options: argparse.Namespace) -> int:
    """Run benchmarks/<method>.py, one or all of them."""
    folder = _brought("benchmarks")
    names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    if options.method and options.method.lower() not in names:
        have = f"there are {', '.join(names)}" if names else "there are none yet"
        raise CommandError(f"no benchmark {options.method!r}{meant(options.method, names)}; {have}")
    chosen = [options.method.lower()] if options.method else names
    if not chosen:
        raise CommandError(f"no benchmark in {folder} yet")
    if options.json and len(chosen) > 1:
        raise CommandError(f"--json writes one benchmark's figures: name one of {', '.join(names)}")
    extra = [*(["--quick"] if options.quick else []), *(["--json", str(options.json)] if options.json else [])]
    return max(subprocess.call([sys.executable, str(folder / f"{name}.py"), *extra]) for name in chosen)


def _recipe(name: str) -> type:
    recipes = {recipe.__name__.lower(): recipe for recipe in lab.RECIPES}
    if name.lower() not in recipes:
        names = [recipe.__name__ for recipe in lab.RECIPES]
        raise CommandError(f"no method {name!r}{meant(name, names)}; there are {', '.join(names)}")
    return recipes[name.lower()]


def _brought(folder: str) -> Path:
    """A folder that travels with the lab: inside the installed package, or beside it in a checkout."""
    for path in (PACKAGE / folder, PACKAGE.parent / folder):
        if path.is_dir():
            return path
    raise CommandError(f"the lab's {folder} are missing: install the package again")


def _say(error: object, status: int) -> int:
    print(f"lab: {' '.join(str(error).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
