// Runs packed networks under node: node web_outputs.mjs FOLDER
// FOLDER/jobs.json: [{build, file, image, reference, threads}] -> FOLDER/<i>.f32, and JSON: what was wrong with each file.
import { readFileSync, writeFileSync } from "node:fs";
import { spawn } from "../../benchmarks/web/workers.mjs";
import { builds, measure, Network } from "../../lab/sparsebytenn/static/engine.mjs";

const [folder] = process.argv.slice(2);
const { jobs, wasm } = JSON.parse(readFileSync(`${folder}/jobs.json`));
const read = (path) => Uint8Array.from(readFileSync(path));
const done = [];
for (const [i, { build, file, image, reference, threads }] of jobs.entries()) {
  try {
    const [module, bytes] = [new WebAssembly.Module(read(`${wasm}/${build}.wasm`)), read(`${folder}/${file}`)];
    const together = build === "threads";
    const network = together ? await Network.threaded(module, bytes, threads, spawn) : new Network(module, bytes);
    const x = new Float32Array(read(`${folder}/${image}`).buffer);
    const y = network.run(x, reference);
    for (let n = 1; together && n < (reference ? 3 : 10); n++) {
      if (network.run(x, reference).some((v, at) => !Object.is(v, y[at]))) throw new Error(`run ${n} differs from the first`);
    }
    writeFileSync(`${folder}/${i}.f32`, y);
    const [ms] = await measure([() => network.run(x)], { rounds: 1, budget: 0.01, warm: 0, least: 0 });
    done.push({ wrong: 0, ms, outputs: network.outputs, operators: network.operators });
    network.close();
  } catch (error) {
    done.push({ wrong: error.wrong, message: error.message });
  }
}
process.stdout.write(JSON.stringify({ builds: builds(), done }));
