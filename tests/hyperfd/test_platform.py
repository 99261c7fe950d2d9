"""What crosses between client and platform: only what the schema names; in one process, over HTTP, from another one."""

import copy
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load

import lab
from lab.core import sealing
from lab.core.data.faces import FaceTask
from lab.core.service import ServiceError
from lab.core.training import seeded
from lab.hyperfd import bounds, serving
from lab.hyperfd.client import PATH, DataOwner, Remote
from lab.hyperfd.learning import Record, RoundConfig
from lab.hyperfd.messages import Offer, Rejected, Shape, Upload, digest
from lab.hyperfd.platform import Platform

from . import small

TOKEN = "a token of the tests"


def faces_client(pictures=37):
    """A client with a telling number of pictures: no tensor that it sends may have that many of anything."""
    task = lab.tasks.faces("small")
    task = FaceTask(learn=task.learn[range(pictures)], held_out=task.held_out[range(4)])
    codes = small.stream().codes()
    how = RoundConfig(R=4, m=16, steps=2)
    return DataOwner(task, codes, lambda rows: [float(row) for row in rows], how), Platform((4, 64, 64), codes, how)


def test_nothing_of_a_picture_and_nothing_per_picture_is_uploaded():
    client, platform = faces_client()
    with seeded(0):
        message, _ = client.upload(platform.offer(), [1, 2, 3], [5.0, 6.0, 7.0])
    tensors = load(message)
    model = {f"w.{name}" for name in platform.shape.weights} | {f"o.{k}" for k in range(len(platform.shape.weights))}
    d = platform.shape.d
    assert set(tensors) - model == {"vectors", "D"}
    assert tensors["vectors"].shape == (4, d) and tensors["D"].shape == (d, d)
    assert all(37 not in x.shape and 74 not in x.shape for x in tensors.values())
    known = {f"w.{name}": size for name, size in platform.shape.weights.items()}
    assert all(tuple(tensors[name].shape) == size for name, size in known.items())
    body = json.loads(json.loads(message[8 : 8 + int.from_bytes(message[:8], "little")])["__metadata__"]["body"])
    assert body == {"model": 0, "space": digest(client.codes), "rows": [1, 2, 3], "results": [5, 6, 7], "pictures": 37,
                    "error": body["error"], "boxes": sum(map(len, client.data.learn.boxes))}  # fmt: skip


def test_pictures_do_not_pass_the_schema_under_any_name():
    client, platform = faces_client()
    with seeded(0):
        message, _ = client.upload(platform.offer(), [1, 2], [5.0, 6.0])
    assert Upload.from_bytes(message, platform.shape).images == 37
    pixels = client.x.flatten()[: 4 * platform.shape.d].view(4, -1)
    for name, x in (("pictures", client.x), ("vectors", client.x[:4]), ("vectors", pixels.repeat(10, 1)[:37])):
        with pytest.raises(Rejected, match=f"upload: tensor '{name}'"):
            Upload.from_bytes(changed(message, **{name: x}), platform.shape)


def changed(message, header=None, body=None, drop=(), **tensors):
    """The message with some of its tensors, fields or header replaced."""
    length = int.from_bytes(message[:8], "little")
    known = json.loads(message[8 : 8 + length])["__metadata__"]
    if body is not None:
        known["body"] = json.dumps({**json.loads(known["body"]), **body})
    kept = {name: x for name, x in {**load(message), **tensors}.items() if name not in drop}
    return sealing.sealed(kept, {**known, **(header or {})})


BAD = {
    "version": (dict(header={"version": "3"}), "has version 3, this side speaks 2: update the older side"),
    "kind": (dict(header={"kind": "offer"}), "is of kind 'offer'"),
    "header": (dict(header={"more": "x"}), "is of kind"),
    "missing": (dict(drop=("D",)), "tensor 'D' is missing"),
    "extra": (dict(picture=torch.zeros(3, 8, 8)), "tensor 'picture' is not in the schema"),
    "shape": (dict(vectors=torch.zeros(5, 128)), r"\(5, 128\): the schema has float32 \(4, 128\)"),
    "type": (dict(D=torch.zeros(128, 128).half()), "torch.float16"),
    "nan": (dict(D=torch.full((128, 128), torch.nan)), "tensor 'D' is not finite"),
    "row": (dict(body={"rows": [0, 99]}), "a configuration is not one of 0..17"),
    "twice": (dict(body={"rows": [1, 1]}), "comes twice"),
    "lengths": (dict(body={"rows": [1]}), "1 configurations and 2 results"),
    "result": (dict(body={"results": [1.0, "x"]}), "not a finite number"),
    "huge result": (dict(body={"results": [1.0, 1e300]}), r"a result=1e\+300 is not a finite number in 0..100"),
    "a result in no percent": (
        dict(body={"results": [1.0, 1e6]}),
        "a result=1000000.0 is not a finite number in 0..100",
    ),
    "negative result": (dict(body={"results": [1.0, -0.5]}), "a result=-0.5 is no"),
    "integer result": (dict(body={"results": [1.0, 10**400]}), r"a result=10000000000000000000 is not a finite number"),
    "huge map": (dict(D=torch.full((128, 128), 3e38)), "tensor 'D' has numbers outside -10000..10000"),
    "huge vectors": (dict(vectors=torch.full((4, 128), 1e5)), "tensor 'vectors' has numbers outside"),
    "huge weights": (dict(**{"w.project.bias": torch.full((64,), -2e4)}), "tensor 'w.project.bias' has numbers"),
    "negative synapses": (dict(**{"o.0": torch.full((64, 3), -1.0)}), r"tensor 'o.0' has numbers outside 0..1e\+09"),
    "huge synapses": (dict(**{"o.0": torch.full((64, 3), 2e9)}), "tensor 'o.0' has numbers outside"),
    "space": (dict(body={"space": "0" * 12}), "its configurations are '000000000000', this side's are"),
    "infinite": (dict(body={"results": [1.0, float("inf")]}), "not a finite number"),
    "field": (dict(body={"boxes_of": [[0, 0, 4, 4]]}), "the body has"),
    "count": (dict(body={"pictures": 0}), "pictures=0: give a count"),
    "bool": (dict(body={"pictures": True}), "pictures is a bool"),
    "error": (dict(body={"error": 5.0}), "error=5.0"),
    "an error that ends all records": (dict(body={"error": 0.5}), "error=0.5 is not a finite number in 0..0.2"),
    "integer error": (dict(body={"error": 10**400}), "error=10000000000000000000 is not a finite number in 0..0.2"),
}


@pytest.fixture(scope="module")
def uploaded():
    platform = small.platform()
    with seeded(0):
        message, _ = small.client().upload(platform.offer(), [0, 1], [5.0, 6.0])
    return platform, message


@pytest.mark.parametrize("name", BAD)
def test_an_upload_that_fails_the_schema_is_one_line_and_changes_nothing(uploaded, name):
    platform, message = uploaded
    before = state(platform)
    spoil, words = BAD[name]
    with pytest.raises(Rejected, match=words) as caught:
        platform.accept(changed(message, **spoil))
    assert "\n" not in str(caught.value) and state(platform) == before


# What is of the right form, and would ruin the platform for all who come later.
RUIN = {
    "no weights": (lambda m: {n: torch.zeros_like(x) for n, x in m.items() if n.startswith("w.")}, "moved by 0"),
    "other weights": (lambda m: {"w.encoder.0.weight": m["w.encoder.0.weight"] + 0.06},
                      "'encoder.0.weight' moved by 0.0"),
    "another extractor": (lambda m: {"w.extractor.each.0.weight": m["w.extractor.each.0.weight"] + 0.002}, "moved by"),
    "one score for all": (lambda m: {n: 0 * x for n, x in m.items() if n.startswith(("w.common", "w.scorer.2"))},
                          "gives all configurations one score"),
    "frozen for ever": (lambda m: {"o.0": m["o.0"] + 1e4}, r"synapses 'o.0' change by 1e\+04"),
    "frozen bit by bit": (lambda m: {n: x + 30 for n, x in m.items() if n.startswith("o.")},
                          "synapses say that a loss of .* was taken off: 100 is the most"),
    "forgotten synapses": (lambda m: {n: 0 * x for n, x in m.items() if n.startswith("o.")},
                           "synapses 'o.0' change by -"),
    "a huge map": (lambda m: {"D": 1e4 * torch.eye(128)},
                   r"the map 'D' stretches by 1e\+04: Card \(9\) gives 10 at most"),
    "a turned memory": (lambda m: {"D": -2 * torch.eye(128)}, "the map 'D' turns 'task 0' by 2.00"),
    "an emptied memory": (lambda m: {"D": -torch.eye(128)}, "the map 'D' turns 'task 0' by 1.00"),
    "a map that misses": (lambda m: {"D": TURN}, "the map 'D' misses its model by 0"),
}  # fmt: skip


# A map that leaves the memory's vectors much as they are, and is none of what the model has learned.
TURN = 1.2 * torch.randn(128, 128, generator=torch.Generator().manual_seed(0)) / 128**0.5


@pytest.fixture(scope="module")
def second():
    """A platform that has learned from one client, and the honest upload of a second."""
    platform = small.platform()
    with seeded(0):
        small.client().run_round(platform, 2, 4)
        client = small.client(1)
        message, _ = client.upload(platform.offer(), [0, 1, 7], client.evaluate([0, 1, 7]))
    return platform, message


@pytest.mark.parametrize("name", RUIN)
def test_an_upload_of_the_right_form_cannot_ruin_the_platform(second, name):
    platform, message = second
    before, (ruin, words) = state(platform), RUIN[name]
    with pytest.raises(Rejected, match=words) as caught:
        platform.accept(changed(message, **ruin(load(message))))
    assert "\n" not in str(caught.value) and state(platform) == before


def test_a_model_that_orders_what_was_tried_the_other_way_round_is_refused():
    codes, ranker = small.stream().codes(), small.platform().ranker
    scores = ranker.scores(torch.zeros(4, 128), codes).mean(0)
    best_first = scores.argsort(descending=True).tolist()
    results = tuple(float(k) for k in range(len(codes), 0, -1))
    record = Record("a", torch.zeros(4, 128), tuple(best_first), results, best=1.0)
    turned = copy.deepcopy(ranker)
    with torch.no_grad():
        turned.common.weight.neg_()
    assert bounds.ordered(ranker, record, codes) == pytest.approx(1)
    bounds.validate_ordering(ranker, [record], codes)
    with pytest.raises(Rejected, match=r"orders what clients tried with NDCG 0.*, where it was 1\.00"):
        bounds.validate_ordering(turned, [record], codes)


def test_an_order_of_two_trials_is_too_short_to_judge_a_model_by():
    """Chance alone turns it over; with twenty trials the same loss is too much."""
    codes, ranker = small.stream().codes(), small.platform().ranker
    best_first = ranker.scores(torch.zeros(4, 128), codes).mean(0).argsort(descending=True).tolist()
    turned = copy.deepcopy(ranker)
    with torch.no_grad():
        turned.common.weight.neg_()
    short = [Record("a", torch.zeros(4, 128), (best_first[0], best_first[-1]), (2.0, 1.0), best=1.0)]
    assert bounds.ordered(turned, short[0], codes) < 0.8
    bounds.validate_ordering(turned, short, codes)
    long = [Record("a", torch.zeros(4, 128), short[0].rows * 10, short[0].results * 10, best=1.0)]
    with pytest.raises(Rejected, match="orders what clients tried"):
        bounds.validate_ordering(turned, long, codes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, {"features": "mean"}, {"features": "frozen"}, {"lr": 0.02}, {"si": 0.0}], ids=str
)
def test_honest_clients_are_never_refused(fields):
    how = replace(small.HOW, steps=20, **fields)
    platform = small.platform(how)
    for which in range(4):
        with seeded(which):
            small.client(which, how, noise=0.1 * (which == 3)).run_round(platform, 2, 6)
    assert platform.version == 4


def test_few_pictures_are_refused_before_anything_is_trained():
    tasks, trained = small.stream(pictures=31), []
    client = DataOwner(tasks.data("set 0"), tasks.codes(), trained.extend, small.HOW)
    with pytest.raises(ValueError, match="would pool 15 of 31 pictures, m=16: fewer than 16 show single ones"):
        client.run_round(small.platform(), 2, 4)
    with pytest.raises(ValueError, match="would pool 8 of 40 pictures, m=8"):
        small.client(how=replace(small.HOW, m=8)).upload(small.platform().offer(), [0, 1], [1.0, 2.0])
    assert not trained


def state(platform):
    return platform.version, len(platform.memory), [w.sum().item() for w in platform.ranker.parameters()]


@pytest.mark.parametrize("content", [b"", b"rubbish" * 9, b"\xff" * 64, (8).to_bytes(8, "little") + b"[[[[[[[["])
def test_rubbish_is_no_message(uploaded, content):
    with pytest.raises(Rejected, match="are no message of HyperFD"):
        uploaded[0].accept(content)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_bit_that_flips_is_told(uploaded, data):
    platform, message = uploaded
    good = bytearray(message)
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    good[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Rejected, match="are no message of HyperFD") as caught:
        Upload.from_bytes(bytes(good), platform.shape)
    assert "\n" not in str(caught.value)


def test_the_lowest_bit_of_a_weight_is_seen_on_both_ways(uploaded):
    platform, message = uploaded
    for kind, content in ((Upload, message), (Offer, platform.offer())):
        with pytest.raises(Rejected, match="their digest is another: send them again"):
            kind.from_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:], platform.shape)


def test_an_offer_is_checked_as_well(uploaded):
    platform, _ = uploaded
    shape = Shape.of(platform.ranker, 4, platform.codes)
    offer = platform.offer()
    assert Offer.from_bytes(offer, shape).version == 0
    with pytest.raises(Rejected, match=r"tensor .v\.0. is not in the schema"):
        Offer.from_bytes(changed(offer, **{"v.0": torch.zeros(4, 128)}), shape)
    with pytest.raises(Rejected, match="its configurations are 'others'"):
        Offer.from_bytes(changed(offer, body={"space": "others"}), shape)
    with pytest.raises(Rejected, match="the message has version 9"):
        Offer.from_bytes(changed(offer, header={"version": "9"}), shape)


def test_a_client_that_vanishes_leaves_the_platform_as_it_was(tmp_path):
    platform = small.platform(folder=tmp_path)
    with seeded(0):
        small.client().run_round(platform, 2, 4)
    before, files = state(platform), sorted(path.name for path in tmp_path.iterdir())
    with seeded(1):
        client = small.client(1)
        client.evaluate = lambda rows: (_ for _ in ()).throw(ConnectionError("gone"))
        with pytest.raises(ConnectionError):
            client.run_round(platform, 2, 4)
    assert state(platform) == before and sorted(path.name for path in tmp_path.iterdir()) == files
    again = small.platform(folder=tmp_path)
    assert state(again) == before
    with pytest.raises(ValueError, match="belongs to a platform"):
        small.platform(RoundConfig(R=5), folder=tmp_path)


def test_a_memory_that_would_not_be_finite_is_refused(uploaded, monkeypatch):
    platform, message = uploaded
    spoiled = Record("task 0", torch.full((4, 128), torch.nan), (0, 1), (1.0, 2.0))
    monkeypatch.setattr("lab.hyperfd.platform.map_records", lambda *_: [spoiled])
    before = state(platform)
    with pytest.raises(Rejected, match="after it 'task 0' would have no finite vectors"):
        platform.accept(message)
    assert state(platform) == before


def test_rows_mean_the_same_on_both_sides_or_nothing_is_taken():
    other = small.client()
    other.codes = other.codes.flip(0)
    with pytest.raises(Rejected, match="rows would mean others"):
        other.recommend(small.platform().offer(), 2)


def test_a_folder_goes_on_with_its_own_round_only(tmp_path):
    platform, client = small.platform(), small.client()
    with seeded(0):
        first, _ = client.upload(platform.offer(), [0, 1], [5.0, 6.0], tmp_path)
        _, again = client.upload(platform.offer(), [0, 1], [5.0, 6.0], tmp_path)
    model = Upload.from_bytes(first, platform.shape).weights
    assert all(torch.equal(model[name], w) for name, w in again.ranker.state_dict().items())
    for rows, results in (([0, 2], [5.0, 6.0]), ([0, 1], [5.0, 7.0])):
        with pytest.raises(ValueError, match="belongs to a client, round"):
            client.upload(platform.offer(), rows, results, tmp_path)
    platform.accept(first)
    with pytest.raises(ValueError, match="give another folder"):
        client.upload(platform.offer(), [0, 1], [5.0, 6.0], tmp_path)


def test_noise_blurs_the_vectors_and_takes_the_map_that_would_tell_them():
    platform = small.platform()
    plain, noisy = (sent(platform, noise) for noise in (0.0, 0.5))
    assert not torch.equal(plain.vectors, noisy.vectors)
    assert plain.D.abs().max() > 0 and noisy.D.abs().max() == 0
    assert noisy.error > plain.error  # measured all the same: the identity misses more than the map
    assert all(torch.equal(plain.weights[name], noisy.weights[name]) for name in plain.weights)
    assert float(plain.vectors.norm(dim=1).max()) <= 1.001


def sent(platform, noise):
    with seeded(3):
        message, _ = small.client(noise=noise).upload(platform.offer(), [0, 1], [1.0, 2.0])
    return Upload.from_bytes(message, platform.shape)


# -- over HTTP ---------------------------------------------------------------------------------------------------------


class Counting(threading.Thread):
    """Passes connections on to a port and keeps all that the client's side sends."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.to, self.sent, self.threads, self.done = port, b"", [], []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]

    def run(self):
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:  # closed
                return
            far = socket.create_connection(("127.0.0.1", self.to))
            for a, b, keep in ((near, far, True), (far, near, False)):
                self.threads.append(threading.Thread(target=self.pump, args=(a, b, keep), daemon=True))
                self.threads[-1].start()

    def pump(self, a, b, keep):
        while data := a.recv(65536):
            self.sent += data if keep else b""
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
        self.done.append(a)

    def close(self):
        for thread in self.threads:
            thread.join(20)
        self.listening.shutdown(socket.SHUT_RDWR)  # a thread that accepts is not woken by `close`
        for each in (self.listening, *self.done):
            each.close()
        self.join(20)
        assert not self.is_alive()


@contextmanager
def running(platform):
    """A platform behind HTTP in this process: its port."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(serving.application(platform, TOKEN), "127.0.0.1", port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(200):
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=1)
            break
        except httpx.HTTPError:
            time.sleep(0.1)
    yield port
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def served():
    """A platform behind HTTP in this process, and its port."""
    platform = small.platform()
    with running(platform) as port:
        yield platform, port


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from lab.core.training import seeded
from lab.hyperfd.client import Remote
from tests.hyperfd import small
side = Remote(sys.argv[1], sys.argv[3])
with seeded(7):
    _, _, size = small.client(2).run_round(side, 2, 4)
print(size, side.sent)
"""


@pytest.mark.slow
def test_a_client_in_another_process_sends_its_two_messages_and_nothing_else(served):
    platform, port = served
    between = Counting(port)
    between.start()
    root = str(lab.__path__[0] + "/..")
    command = [sys.executable, "-c", SCRIPT, f"http://127.0.0.1:{between.port}", root, TOKEN]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    between.close()
    size, counted = map(int, done.stdout.split())
    assert size == counted and platform.version == 1 and len(platform.memory) == 1
    requests = between.sent.split(b"POST /v1/round?ask=")[1:]
    assert [request.split(b" ")[0] for request in requests] == [b"offer", b"upload"]
    head, _, body = requests[1].partition(b"\r\n\r\n")
    assert len(body) == size and set(Upload.from_bytes(body, Shape.of(platform.ranker, 4, platform.codes)).weights)
    assert len(requests[0]) + len(head) < 1000  # what HTTP itself says
    x = small.stream().data("set 2")
    assert x[0].numpy().tobytes() not in between.sent  # and no row of the data


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, (8.0, 1e-5)], ids=["without noise", "with noise"])
def test_a_client_s_whole_life_on_the_wire_holds_no_picture(noise):
    """All bytes that a client of faces sends, from its first to its last: not a row of a picture, a crop or a sample,
    in any of their forms, no vector of one picture, and nothing beside what the schema reads."""
    client, platform = faces_client()
    client = DataOwner(client.data, client.codes, client.evaluate, client.config, noise, secret=1)
    with running(platform) as port:
        between = Counting(port)
        between.start()
        with seeded(0):
            client.run_round(Remote(f"http://127.0.0.1:{between.port}", TOKEN), 2, 4)
        between.close()
    requests = between.sent.split(b"POST /v1/round?ask=")[1:]
    heads, bodies = zip(*(request.split(b"\r\n\r\n", 1) for request in requests), strict=True)
    assert [head[:6] for head in heads] == [b"offer ", b"upload"] and bodies[0] == b"" and max(map(len, heads)) < 500
    upload = Upload.from_bytes(bodies[1], Shape.of(platform.ranker, 4, platform.codes))
    pieces = [piece for piece in pieces_of_pictures(client) if len(set(piece)) > 6]  # black is everywhere
    assert len(pieces) > 250 and not [piece for piece in pieces if piece in between.sent]
    spread = upload.vectors[:, platform.shape.d // 2 :]  # one picture alone would have none
    assert float(spread.norm(dim=1).min()) > 0.05
    with torch.no_grad():
        alone = platform.ranker.extractor(client.x[:, None])
    assert float(alone[:, platform.shape.d // 2 :].norm(dim=1).max()) < 0.01
    assert float((upload.vectors @ alone.T).max()) < 0.999


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=85)
    return file.getvalue()


def pieces_of_pictures(client):
    """What would be found in a stream that holds a picture: parts of its rows, of crops, of samples, of vectors."""
    for image, boxes in zip(client.data.learn.images, client.data.learn.boxes, strict=True):
        yield image[0, 80, 40:72].numpy().tobytes()
        yield image[:, 80, 40:60].T.contiguous().numpy().tobytes()
        yield jpeg(image)[-64:]
        for left, top, right, _ in boxes.int().tolist():
            yield image[0, top + 1, left:right].numpy().tobytes()
    for x in client.x:
        yield x[0, 32, 20:28].numpy().tobytes()
        yield x[0, 32, 20:28].half().numpy().tobytes()
    ranker = client.config.ranker(client.x.shape[1:], client.codes.shape[1])
    with torch.no_grad():
        for z in ranker.extractor.features(client.x):
            yield z[-6:-2].numpy().tobytes()  # the handcrafted ones are the same for every extractor


@pytest.mark.slow
def test_over_http_is_the_same_as_in_one_process(served):
    platform, port = served
    here = small.platform()
    for side in (here, Remote(f"http://127.0.0.1:{port}", TOKEN)):
        with seeded(5):
            small.client(1).run_round(side, 2, 4)
    assert state(here) == state(platform)


def test_what_is_refused_over_http_and_why(served):
    platform, port = served
    url = f"http://127.0.0.1:{port}"
    with pytest.raises(ServiceError, match=r"refused \(401\): the bearer token is wrong"):
        Remote(url, "wrong").offer()
    with pytest.raises(ServiceError, match=r"refused \(400\): upload: 7 bytes are no message"):
        Remote(url, TOKEN).accept(b"rubbish")
    answer = httpx.post(url + PATH, params={"ask": "pictures"}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 400 and "give 'offer' or 'upload'" in answer.json()["error"]
    with pytest.raises(ServiceError, match="ConnectError"):
        Remote("http://127.0.0.1:9", TOKEN).offer()
    assert platform.version == 0


def test_one_command_serves_a_platform(monkeypatch, tmp_path, capsys):
    from lab.__main__ import main

    started = []
    monkeypatch.setattr(serving.service, "serve", lambda app, host, port: started.append((host, port)))
    assert main(["serve", "platform", "--folder", str(tmp_path), "--port", "4321"]) == 0
    assert started == [("127.0.0.1", 4321)] and "serving on http://127.0.0.1:4321" in capsys.readouterr().out
    assert main(["serve", "platform", "--host", "0.0.0.0", "--token", "short"]) == 1
    assert "give --token of 16 characters" in capsys.readouterr().err
