// A network, and beside MobileNet-v1 one product, under node, one thread, in turns: ours, onnxruntime-web, and tfjs.
//     node race.mjs FOLDER ROUNDS BASELINES    FOLDER as benchmarks/sparsebytenn_web.py fills it, BASELINES where npm
//                                               has installed them; prints JSON
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { spawn } from "./workers.mjs";

const [folder, rounds, baselines] = process.argv.slice(2);
const plan = JSON.parse(readFileSync(`${folder}/plan.json`));
const { builds, Network } = await import(new URL("engine.mjs", plan.static));
const require = createRequire(`${baselines}/package.json`);
const bytes = (name) => readFileSync(`${folder}/${name}`);
const floats = (name) => new Float32Array(Uint8Array.from(bytes(name)).buffer);
const compiled = (build) => new WebAssembly.Module(readFileSync(new URL(`${build}.wasm`, plan.static)));

async function onnx() {
  const ort = require("onnxruntime-web");
  Object.assign(ort.env.wasm, { numThreads: 1, proxy: false });
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
  const session = await ort.InferenceSession.create(Uint8Array.from(bytes("dense.onnx")), options);
  const input = new ort.Tensor("float32", floats("planes.f32"), [1, ...plan.shape]);
  return async () => (await session.run({ input })).output.data;
}

async function tfjs() {
  const tf = require("@tensorflow/tfjs-core");
  const { setThreadsCount } = require("@tensorflow/tfjs-backend-wasm");
  setThreadsCount(1);
  tf.env().set("WASM_HAS_MULTITHREAD_SUPPORT", false);
  await tf.setBackend("wasm");
  await tf.ready();
  const [c, h, w] = plan.shape;
  const input = tf.tensor(floats("pixels.f32"), [1, h, w, c]);
  const steps = plan.layers.map((layer) => {
    const bias = tf.tensor1d(floats(`${layer.file}.bias`));
    const filter = tf.tensor(floats(`${layer.file}.weight`), layer.shape);
    const { stride: strides, pad, activation } = layer;
    if (layer.kind === "linear") return (x) => tf.add(tf.matMul(tf.mean(x, [1, 2]), filter), bias);
    const convolve = layer.kind === "depthwise" ? tf.fused.depthwiseConv2d : tf.fused.conv2d;
    return (x) => convolve({ x, filter, bias, strides, pad, activation });
  });
  return async () => tf.tidy(() => steps.reduce((x, step) => step(x), input).dataSync());
}

function ours(build, file) {
  const network = new Network(compiled(build), bytes(file));
  const picture = floats("pixels.f32");
  return async () => network.run(picture);
}

/** One picture on one thread and on more, by the share of blocks that are zero. */
async function together(share) {
  const picture = floats("pixels.f32");
  const file = bytes(`${share}.sbnn`);
  const many = await Network.threaded(compiled("threads"), file, plan.threads, spawn);
  const one = new Network(compiled("relaxed"), file);
  if (many.run(picture).some((v, i) => !Object.is(v, one.run(picture)[i]))) throw new Error("threads give other numbers");
  const calls = { 1: async () => one.run(picture), [plan.threads]: async () => many.run(picture) };
  await race(calls, Math.ceil(Number(rounds) / 3));
  const { 1: alone, [plan.threads]: shared } = await race(calls, Number(rounds));
  many.close();
  return { alone: alone.wall, shared: shared.wall };
}

function product(build, reference) {
  const network = new Network(compiled(build), bytes("product.sbnn"));
  network.run(new Float32Array(network.channels * network.height * network.width).fill(0.5));
  return async () => network.step(0, reference);
}

/** Each contestant's times over the rounds, CPU ms and wall ms; their order changes from round to round. */
async function race(contestants, rounds) {
  const names = Object.keys(contestants);
  const found = Object.fromEntries(names.map((name) => [name, { cpu: [], wall: [] }]));
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < names.length; i++) {
      const name = names[(i + round) % names.length];
      const [wall, cpu] = [performance.now(), process.cpuUsage()];
      await contestants[name]();
      const used = process.cpuUsage(cpu);
      found[name].wall.push(performance.now() - wall);
      found[name].cpu.push((used.user + used.system) / 1000);
    }
  }
  return found;
}

const here = builds();
const [fastest] = here;
const networks = { "onnxruntime-web": await onnx() };
if (plan.layers) networks.tfjs = await tfjs();
const dense = [...Object.keys(networks), `ours 0 % ${fastest}`];
for (const share of plan.shares) {
  for (const build of here.filter((build) => build !== "scalar")) {
    networks[`ours ${share} % ${build}`] = ours(build, `${share}.sbnn`);
  }
}
const outputs = {};
for (const name of dense) outputs[name] = Array.from(await networks[name]());
const products = Object.fromEntries(plan.layers ? here.map((build) => [build, product(build, false)]) : []);
await race(networks, Math.ceil(Number(rounds) / 3)); // engines compile what runs often, once more and in the background
await race(products, 30);
const threads = {};
for (const share of here.includes("relaxed") ? plan.shares : []) threads[share] = await together(share);
const result = { builds: here, outputs, networks: await race(networks, Number(rounds)), products: await race(products, 60), threads };
process.stdout.write(JSON.stringify({ ...result, node: process.version, v8: process.versions.v8 }));
