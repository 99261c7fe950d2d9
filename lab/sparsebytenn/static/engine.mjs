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

/** The builds that can run here, best first. */
export const builds = () => Object.keys(PROBES).filter((name) => WebAssembly.validate(PROBES[name]));

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
  #file;
  #arena;
  #x;
  #y;

  /** `module`: a compiled build; `file`: the packed network's bytes. Throws a one-line Error for a file that is none. */
  constructor(module, file) {
    this.#wasm = new WebAssembly.Instance(module, {}).exports;
    this.#file = this.#allocate(file.length);
    new Uint8Array(this.#wasm.memory.buffer).set(file, this.#file);
    const wrong = this.#wasm.check(this.#file, file.length);
    if (wrong) throw Object.assign(new Error(`this is no packed network that can be run: ${WRONG[wrong]}`), { wrong });
    this.#arena = this.#allocate(4 * this.#wasm.arena(this.#file));
    const head = new Uint32Array(this.#wasm.memory.buffer, this.#file, 16);
    const map = (i) => new Uint32Array(this.#wasm.memory.buffer, this.#file + head[6] + 32 * i, 6);
    const inputs = head[12] & 0xffff;
    const ends = new Uint32Array(this.#wasm.memory.buffer, this.#file + head[11], inputs + (head[12] >>> 16));
    const floats = (maps) => maps.reduce((sum, i) => sum + map(i)[0] * map(i)[1] * map(i)[2], 0);
    const [c, h, w, , , interleaved] = map(ends[0]);
    Object.assign(this, { channels: c, height: h, width: w, interleaved: interleaved === 1 });
    [this.inputs, this.outputs] = [floats(ends.slice(0, inputs)), floats(ends.slice(inputs))];
    this.operators = head[5];
    this.#x = this.#allocate(4 * this.inputs);
    this.#y = this.#allocate(4 * this.outputs);
  }

  #allocate(bytes) {
    const at = this.#wasm.alloc(bytes) >>> 0;
    if (!at) throw new Error(`the browser has no ${Math.ceil(bytes / 2 ** 20)} MB of memory left for the network`);
    return at;
  }

  #floats(at, n) {
    return new Float32Array(this.#wasm.memory.buffer, at, n);
  }

  /** All outputs, one behind the other, for all inputs likewise, an image alone; `reference` runs the plain C kernels. */
  run(x, reference = false) {
    const n = this.inputs;
    if (x.length !== n) throw new Error(`the picture has ${x.length} numbers: this network takes ${n}`);
    this.#floats(this.#x, n).set(x);
    this.#wasm.run(this.#file, this.#arena, this.#x, this.#y, Number(reference));
    return this.#floats(this.#y, this.outputs).slice();
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
