// The engine in a browser or in node: which build runs here, networks in it, and how long they take.

// Three tiny modules, each with one instruction of its set: the engine that accepts it has the set.
const header = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0]; // one function () -> ()
const body = (...code) => Uint8Array.from([...header, 10, code.length + 4, 1, code.length + 2, 0, ...code, 11]);
const zero = [253, 12, ...Array(16).fill(0)]; // v128.const 0
const PROBES = {
  relaxed: body(...zero, ...zero, ...zero, 253, 133, 2, 26), // f32x4.relaxed_madd, drop
  simd128: body(...zero, 26),
  scalar: body(),
};

/** The builds for one thread that can run here, best first. */
export const builds = () => Object.keys(PROBES).filter((name) => WebAssembly.validate(PROBES[name]));

/** Whether the build "threads" can run here: in a browser a page must be cross-origin isolated to share memory. */
export const sharing = () => globalThis.crossOriginIsolated === true && WebAssembly.validate(PROBES.relaxed);

// A worker's whole life: it waits for its turns, and has its part in each. `turn`: turns begun, workers that are through,
// and whether the plain C kernels run. A page ends it by terminating it.
const WORK = `onmessage = ({ data: { module, memory, stack, at, before, behind } }) => {
  const { run_part, __stack_pointer } = new WebAssembly.Instance(module, { env: { memory } }).exports;
  __stack_pointer.value = stack;
  const turn = new Int32Array(memory.buffer, at, 3);
  postMessage("ready");
  for (let seen = 0; ; ) {
    while (Atomics.load(turn, 0) === seen) Atomics.wait(turn, 0, seen);
    seen = Atomics.load(turn, 0);
    run_part(...before, ...behind, turn[2]);
    Atomics.add(turn, 1, 1);
  }
};`;

/** A worker that runs a text; one from elsewhere, as node's, is given to `Network.threaded`. */
const spawned = (text) => {
  const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  const worker = new Worker(address);
  URL.revokeObjectURL(address);
  return worker;
};

const PAGE = 65536;
const FIRST_PAGES = 16; // what the build "threads" begins with
const STACK = PAGE;

const WRONG = [
  "",
  "it is cut short",
  "it does not begin as a packed network does",
  "it has another version",
  "its checksum does not fit: it was changed or damaged",
  "a feature map is malformed",
  "an operator is malformed",
  "shapes do not go together",
  "a section lies outside of it",
  "its block counts or columns do not fit",
  "its arena is too small",
  "its arena is larger than its maps need, or than 4 GiB",
  "a map is read that nothing wrote before, or that was written over",
  "its row sums are not those of its weights",
  "its description is malformed",
  "an operator's table leads outside of a feature map",
];

/** A packed network in an instance of its own; `run(x)` gives its output for one image. */
export class Network {
  #wasm;
  #memory;
  #file;
  #arena;
  #x;
  #y;
  #workers = [];
  #turn; // as WORK has it
  #part; // this thread's arguments of run_part

  /**
   * A network that `threads` threads run together, this one among them, each picture: of the build "threads", where
   * `sharing()`. `spawn(text)` makes a worker. `close()` ends the workers.
   */
  static async threaded(module, file, threads, spawn = spawned) {
    const head = new DataView(file.buffer, file.byteOffset, file.length);
    const arena = file.length < 36 ? 0 : head.getUint32(32, true); // floats, if it is a network
    const bytes = file.length + 4 * arena * (threads + 2) + threads * (STACK + 256); // inputs and outputs are within the arena
    const maximum = Math.min(65536, FIRST_PAGES + Math.ceil(bytes / PAGE));
    let memory;
    try {
      memory = new WebAssembly.Memory({ initial: FIRST_PAGES, maximum, shared: true });
    } catch {
      throw new Error(`the browser has no ${maximum / 16} MB of memory to share among threads`);
    }
    const network = new Network(module, file, memory);
    try {
      await network.#hire(module, threads, spawn);
    } catch (error) {
      network.close();
      throw error;
    }
    return network;
  }

  /**
   * `module`: a compiled build; `file`: the packed network's bytes; `memory`: of the build "threads", which `threaded`
   * makes. Throws a one-line Error for a file that is none.
   */
  constructor(module, file, memory = undefined) {
    this.#wasm = new WebAssembly.Instance(module, memory ? { env: { memory } } : {}).exports;
    this.#memory = memory ?? this.#wasm.memory;
    this.#file = this.#allocate(file.length);
    new Uint8Array(this.#memory.buffer).set(file, this.#file);
    const wrong = this.#wasm.check(this.#file, file.length);
    if (wrong) throw Object.assign(new Error(`this is not a packed network that can be run: ${WRONG[wrong]}`), { wrong });
    this.#arena = this.#allocate(4 * this.#wasm.arena(this.#file));
    const head = new Uint32Array(this.#memory.buffer, this.#file, 16);
    const map = (i) => new Uint32Array(this.#memory.buffer, this.#file + head[6] + 32 * i, 6);
    const inputs = head[12] & 0xffff;
    const ends = new Uint32Array(this.#memory.buffer, this.#file + head[11], inputs + (head[12] >>> 16));
    const floats = (maps) => maps.reduce((sum, i) => sum + map(i)[0] * map(i)[1] * map(i)[2], 0);
    const [c, h, w, , , interleaved] = map(ends[0]);
    Object.assign(this, { channels: c, height: h, width: w, interleaved: interleaved === 1 });
    [this.inputs, this.outputs] = [floats(ends.slice(0, inputs)), floats(ends.slice(inputs))];
    this.operators = head[5];
    this.#x = this.#allocate(4 * this.inputs);
    this.#y = this.#allocate(4 * this.outputs);
  }

  /** Workers for all threads but this one; each has a stack and an arena of its own. */
  async #hire(module, threads, spawn) {
    const [meeting, at] = [this.#allocate(16), this.#allocate(12)];
    const behind = [threads, this.#x, this.#y];
    this.#turn = new Int32Array(this.#memory.buffer, at, 3);
    this.#part = [this.#file, this.#arena, this.#arena, meeting, 0, ...behind];
    const ready = Array.from({ length: threads - 1 }, (_, i) => {
      const stack = this.#allocate(STACK) + STACK; // it grows downwards
      const local = this.#allocate(4 * this.#wasm.arena(this.#file));
      const worker = spawn(WORK);
      this.#workers.push(worker);
      const before = [this.#file, this.#arena, local, meeting, i + 1];
      worker.postMessage({ module, memory: this.#memory, stack, at, before, behind });
      return new Promise((resolve, reject) => {
        worker.onmessage = resolve;
        worker.onerror = () => reject(new Error("a worker of this network could not be started"));
      });
    });
    await Promise.all(ready);
  }

  /** End the workers; the network can't run any more. */
  close() {
    for (const worker of this.#workers) worker.terminate();
  }

  #allocate(bytes) {
    const at = this.#wasm.alloc(bytes) >>> 0;
    if (!at) throw new Error(`the browser has no ${Math.ceil(bytes / 2 ** 20)} MB of memory left for the network`);
    return at;
  }

  #floats(at, n) {
    return new Float32Array(this.#memory.buffer, at, n);
  }

  /** All outputs, one behind the other, for all inputs likewise, an image alone; `reference` runs the plain C kernels. */
  run(x, reference = false) {
    const n = this.inputs;
    if (x.length !== n) throw new Error(`the picture has ${x.length} numbers: this network takes ${n}`);
    this.#floats(this.#x, n).set(x);
    if (this.#turn) this.#runTogether(Number(reference));
    else this.#wasm.run(this.#file, this.#arena, this.#x, this.#y, Number(reference));
    return this.#floats(this.#y, this.outputs).slice();
  }

  /** One turn of all threads. A page's own thread may not sleep, so it looks until the others are through. */
  #runTogether(reference) {
    const turn = this.#turn;
    turn[2] = reference;
    Atomics.store(turn, 1, 0);
    Atomics.add(turn, 0, 1);
    Atomics.notify(turn, 0);
    this.#wasm.run_part(...this.#part, reference);
    while (Atomics.load(turn, 1) < this.#workers.length);
  }

  /** One operator alone, on what the last run left behind. */
  step(operator, reference = false) {
    this.#wasm.step(this.#file, this.#arena, operator, Number(reference));
  }
}

const quartile = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 2];
const breath = () => new Promise((next) => setTimeout(next)); // lets the page draw and answer

/**
 * Milliseconds of each call over rounds in which all of them take turns, one way and back: at least `rounds` of them,
 * and as many as `budget` ms hold. The lower quartile counts: what else the machine does only ever adds. `warm` ms go by
 * first, since a browser compiles again what runs often. A sample is as many calls as fill `least` ms, for its clock is
 * coarse. `progress` hears the share done; an aborted `signal` ends it with an error.
 */
export async function measure(calls, options = {}) {
  const { rounds = 15, budget = 1500, warm = 600, least = 4, progress = () => {}, signal } = options;
  const sample = (call, times) => {
    const start = performance.now();
    for (let i = 0; i < times; i++) call();
    return (performance.now() - start) / times;
  };
  for (const end = performance.now() + warm; performance.now() < end; await breath()) calls.forEach((call) => call());
  const turns = calls.map((call) => {
    return { call, times: Math.ceil(Math.max(least, 0.001) / Math.max(sample(call, 3), 0.005)), samples: [] };
  });
  const start = performance.now();
  for (let done = 0, round = 1; done < 1; round++) {
    for (const turn of round % 2 ? turns : [...turns].reverse()) turn.samples.push(sample(turn.call, turn.times));
    done = Math.min(1, round / rounds, (performance.now() - start) / budget);
    progress(done);
    await breath();
    signal?.throwIfAborted();
  }
  return turns.map(({ samples }) => quartile(samples));
}
