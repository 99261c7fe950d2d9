"""Hybrid SD's service under faults: a thousand requests, every one answered, by the edge alone where it must be.

    python benchmarks/hybridsd_faults.py [--quick] [--json FILE] [--work FILE] [--requests 1000] [--clients 4]

A real service (`lab serve cloud`'s own, in another process, on loopback) is asked through a relay that does harm:
kills it in the midst of the work, stops it (SIGSTOP) for longer than the client waits, lies in six ways, cuts requests
and answers off, makes the link slow, leads to another model or to nobody; and clients hang up. Several clients ask at a
time, so a fault of one meets the others too. What comes back is held, bit for bit, against the same steps taken in one
process. One thing no edge can see: a well-made answer of a cloud that computes with other weights than it should.

Lines in --work are kept: a run that was broken off goes on behind them. --quick asks 40 times.
"""

import argparse
import http.client
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import diffusers
import torch

from lab.core import service, store
from lab.core.machine import machine
from lab.hybridsd import cloud, prompts
from lab.hybridsd.handoff import Handoff
from lab.hybridsd.pipeline import HybridPipeline

TOKEN, WAIT, N = "a token of the benchmark", 6.0, 6  # seconds that a client waits, steps
ORDERS = (((2, 4), (0, 1)), ((4, 2), (1, 0)), ((2, 2, 2), (0, 1, 0)))  # cloud first, edge first, three turns
KINDS = {"service": {}, "other latents": {"side": 16}, "other schedule": {"solver": "euler"}}


# -- the clouds --------------------------------------------------------------------------------------------------------


def models(side: int = 8, solver: str = "dpm++") -> HybridPipeline:
    """Two random U-Nets of SD's blocks, cloud and edge, beside the embedded words and decoder."""
    parts, unets = prompts.embedded(solver=solver), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=side, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=2,
            cross_attention_dim=parts.unets[0].config.cross_attention_dim,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        unets.append(unet.eval())
    return HybridPipeline(unets, parts.scheduler, parts.text, parts.vae)


def serve(port: int, kind: str) -> None:
    """A process that serves a cloud until it is killed, or nobody is there any more who would."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(0)), daemon=True).start()  # type: ignore[union-attr]
    service.serve(cloud.application(models(**KINDS[kind]), TOKEN), "127.0.0.1", port)


class Served:
    """A cloud in a process of its own, which starts again when it was killed."""

    def __init__(self, kind: str) -> None:
        self.kind, self.starting = kind, threading.Lock()
        self.start()

    def start(self) -> None:
        """Start it on a port that nobody has, and wait until it answers."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lab.hybridsd.cloud", "diffusers", "transformers"])
        for _ in range(5):  # another may take the port before it does
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
            self.process = context.Process(target=serve, args=(self.port, self.kind), daemon=True)
            self.process.start()
            while self.process.is_alive():
                with suppress(OSError, http.client.HTTPException):
                    with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)) as connection:
                        connection.request("GET", "/health")
                        connection.getresponse().read()
                    return
                time.sleep(0.1)
        raise RuntimeError("the service would not start")

    def signalled(self, number: int) -> None:
        """Send its process a signal."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, number)

    def alive(self) -> None:
        """Start it again if it is dead."""
        with self.starting:
            if not self.process.is_alive():
                self.start()


# -- the relay that does harm ------------------------------------------------------------------------------------------


class Relay(BaseHTTPRequestHandler):
    """One client's way to the cloud; `server.harm(self, body)` does what it does."""

    def do_POST(self) -> None:
        """Hand the request to the fault."""
        with suppress(OSError, http.client.HTTPException):
            self.server.harm(self, self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def asked(self, body: bytes, served: Served | None = None, path: str = "") -> tuple[int, bytes]:
        """What the cloud, or another one, answers."""
        port = (served or self.server.served).port  # type: ignore[attr-defined]
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            connection.request("POST", path or self.path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()

    def answer(self, status: int, content: bytes, size: int = -1) -> None:
        """Send an answer, which claims to have `size` bytes."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if size < 0 else size))
        self.end_headers()
        self.wfile.write(content)


def none(relay: Relay, body: bytes) -> None:
    relay.answer(*relay.asked(body))


def killed(relay: Relay, body: bytes) -> None:
    served = relay.server.served  # type: ignore[attr-defined]
    threading.Timer(random.uniform(0, 0.1), served.signalled, [signal.SIGKILL]).start()
    try:
        none(relay, body)
    finally:
        served.process.join(5)


def stopped(relay: Relay, body: bytes) -> None:
    served = relay.server.served  # type: ignore[attr-defined]
    served.signalled(signal.SIGSTOP)
    threading.Timer(WAIT + 2, served.signalled, [signal.SIGCONT]).start()
    none(relay, body)


def another_answer(relay: Relay, body: bytes) -> None:
    state = Handoff.from_bytes(body)
    other = Handoff(**{**vars(state), "seed": 77}).to_bytes()
    relay.answer(*relay.asked(other))


def another_step(relay: Relay, body: bytes) -> None:
    until = int(relay.path.partition("until=")[2].partition("&")[0])
    relay.answer(*relay.asked(body, path=relay.path.replace(f"until={until}", f"until={until - 1}")))


def flipped(relay: Relay, body: bytes) -> None:
    status, content = relay.asked(body)
    at = random.randrange(len(content))
    relay.answer(status, content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :])


def not_finite(relay: Relay, body: bytes) -> None:
    status, content = relay.asked(body)
    state = Handoff.from_bytes(content)
    state.latent[..., 0] = math.nan
    with suppress(ValueError):
        content = state.to_bytes()
    relay.answer(status, content)


def rubbish(relay: Relay, body: bytes) -> None:
    relay.answer(random.choice([200, 200, 500, 503]), random.randbytes(random.randrange(3000)))


def endless(relay: Relay, body: bytes) -> None:
    relay.send_response(200)
    relay.end_headers()
    until = time.monotonic() + 2 * WAIT
    while time.monotonic() < until:
        relay.wfile.write(bytes(1 << 20))


def request_cut_off(relay: Relay, body: bytes) -> None:
    served = relay.server.served  # type: ignore[attr-defined]
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as raw:
        head = f"POST {relay.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])


def answer_cut_off(relay: Relay, body: bytes) -> None:
    status, content = relay.asked(body)
    relay.answer(status, content[: random.randrange(len(content))], len(content))


def no_answer(relay: Relay, body: bytes) -> None:
    relay.asked(body)


def hung_up(relay: Relay, body: bytes) -> None:
    """Another client asks and does not wait; then all is well."""
    with suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", 0, timeout=0.05)) as connection:
        connection.port = relay.server.served.port  # type: ignore[attr-defined]
        connection.request("POST", relay.path, body, {"Authorization": f"Bearer {TOKEN}"})
    none(relay, body)


def slowly(relay: Relay, content: bytes, status: int, seconds: float) -> None:
    relay.send_response(status)
    relay.send_header("Content-Length", str(len(content)))
    relay.end_headers()
    part = -(-len(content) // 10)
    for at in range(0, len(content), part):
        time.sleep(seconds / 10)
        relay.wfile.write(content[at : at + part])


def slow(relay: Relay, body: bytes) -> None:
    status, content = relay.asked(body)
    slowly(relay, content, status, 0.5)


def too_slow(relay: Relay, body: bytes) -> None:
    status, content = relay.asked(body)
    slowly(relay, content, status, WAIT + 2)


def other_latents(relay: Relay, body: bytes) -> None:
    relay.answer(*relay.asked(body, relay.server.others["other latents"]))  # type: ignore[attr-defined]


def other_schedule(relay: Relay, body: bytes) -> None:
    relay.answer(*relay.asked(body, relay.server.others["other schedule"]))  # type: ignore[attr-defined]


# by name: what is done, how many of a thousand meet it, and whether the edge can only draw alone then
FAULTS: dict[str, tuple[Callable[[Relay, bytes], None], int, bool]] = {
    "none": (none, 210, False),
    "killed": (killed, 30, False),
    "stopped": (stopped, 40, False),
    "lying: another's answer": (another_answer, 60, True),
    "lying: another step": (another_step, 60, True),
    "lying: one bit": (flipped, 100, True),
    "lying: not finite": (not_finite, 60, True),
    "lying: rubbish": (rubbish, 60, True),
    "lying: endless": (endless, 20, True),
    "cut off: request": (request_cut_off, 60, True),
    "cut off: answer": (answer_cut_off, 60, True),
    "cut off: no answer": (no_answer, 40, True),
    "a client hangs up": (hung_up, 60, False),
    "slow link": (slow, 40, False),
    "link too slow": (too_slow, 20, True),
    "wrong model: latents": (other_latents, 30, True),
    "wrong model: schedule": (other_schedule, 30, True),
    "nobody": (none, 20, True),
}


@contextmanager
def way(harm: Callable[[Relay, bytes], None], clouds: dict[str, Served]) -> Iterator[str]:
    """The address of a relay that does harm."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    server.harm, server.served, server.others, server.block_on_close = harm, clouds["service"], clouds, False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# -- the requests ------------------------------------------------------------------------------------------------------


def fault_of(number: int, total: int) -> str:
    """Which fault a request meets: as many as their shares say, in an order drawn once."""
    names = [name for name, (_, share, _) in FAULTS.items() for _ in range(max(1, share * total // 1000))]
    names = (names * -(-total // len(names)))[:total]
    random.Random(24).shuffle(names)
    return names[number]


@cache
def together(prompt: str, steps: tuple[int, ...], order: tuple[int, ...], seed: int) -> torch.Tensor:
    """The latent (1, C, h, w) of these steps in one process."""
    return models_here().draw(prompt, steps=steps, order=order, guidance=4.0, seed=seed).latent


@cache
def models_here() -> HybridPipeline:
    """Cloud and edge in this process, made once."""
    return models()


def answered(number: int, total: int, clouds: dict[str, Served]) -> dict[str, Any]:
    """One request under its fault: what became of it."""
    name = fault_of(number, total)
    harm, _, is_alone = FAULTS[name]
    (steps, order), here = ORDERS[number % len(ORDERS)], models_here()
    prompt, seed = ("one red circle", "two blue squares")[number % 2], number % 5
    clouds["service"].alive()  # whom a kill meets is asking already
    start = time.perf_counter()
    with way(harm, clouds) as url:
        client = cloud.CloudClient(url if name != "nobody" else "http://127.0.0.1:1", TOKEN, WAIT)
        client.mark = cloud.fingerprint(here)
        edge = HybridPipeline([here.unets[1]], here.scheduler, here.text, here.vae, client)
        samples = edge.draw(prompt, steps=steps, order=order, guidance=4.0, seed=seed)
    taken = together(prompt, samples.steps, (*order, 1)[: len(samples.steps)], seed)
    is_right = torch.equal(taken, samples.latent) and sum(samples.steps) == N
    is_right &= bool(samples.notes) or not is_alone
    return {
        "number": number, "fault": name, "right": is_right, "steps": list(samples.steps), "notes": list(samples.notes),
        "seconds": time.perf_counter() - start, "memory": memory(os.getpid()),
        "cloud_memory": memory(clouds["service"].process.pid or 0),
    }  # fmt: skip


def memory(process: int) -> float:
    """MB of a process that are in memory, 0 of one that is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 requests")
    parser.add_argument("--json", type=Path, help="write the figures, settings and the machine here")
    parser.add_argument("--work", type=Path, help="keep a line for each request here, and go on behind them")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4, help="how many ask at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "the cloud did not answer")
    total = 40 if options.quick else options.requests
    rows = kept(options.work)
    left = [n for n in range(total) if n not in {row["number"] for row in rows}]
    models_here()  # not by two threads at a time, which loading cannot bear
    clouds, lock = {kind: Served(kind) for kind in KINDS if left}, threading.Lock()

    def ask(number: int) -> None:
        row = answered(number, total, clouds)
        with lock:
            rows.append(row)
            if options.work is not None:
                with options.work.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(row) + "\n")
            if len(rows) % 50 == 0 or not row["right"]:
                print(len(rows), json.dumps(row), flush=True)

    with ThreadPoolExecutor(options.clients) as clients:
        for done in [clients.submit(ask, number) for number in left]:
            done.result()
    report = {"figures": figures(rows), "settings": {"requests": total, "clients": options.clients, "seconds": WAIT}}
    report |= {"machine": machine("diffusers", "httpx", "uvicorn")}
    print(json.dumps(report["figures"], indent=1))
    for served in clouds.values():
        served.signalled(signal.SIGKILL)
    if options.json is not None:
        store.write(options.json, (json.dumps(report, indent=1) + "\n").encode())


def kept(path: Path | None) -> list[dict[str, Any]]:
    """The whole lines of a file."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals, what became of each fault, and how memory grew from the first fifth of the requests to the last."""
    by = {name: [row for row in rows if row["fault"] == name] for name in FAULTS}
    faults = {
        name: {
            "requests": len(some),
            "alone": sum(bool(row["notes"]) for row in some),
            "wrong": sum(not row["right"] for row in some),
            "longest_seconds": max(row["seconds"] for row in some),
        }
        for name, some in by.items()
        if some
    }
    fifth = max(1, len(rows) // 5)
    first, last = rows[:fifth], rows[-fifth:]
    most = {side: [max(row[side] for row in part) for part in (first, last)] for side in ("memory", "cloud_memory")}
    return {
        "requests": len(rows),
        "answered": len(rows),
        "wrong": sum(not row["right"] for row in rows),
        "alone": sum(bool(row["notes"]) for row in rows),
        "memory_mb_first_and_last_fifth": most["memory"],
        "cloud_memory_mb_first_and_last_fifth": most["cloud_memory"],
        "faults": faults,
    }


if __name__ == "__main__":
    main()
