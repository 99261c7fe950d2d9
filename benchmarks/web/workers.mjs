// Node's workers, spoken to as a browser's: what `Network.threaded` is given where there is no page.
import { Worker } from "node:worker_threads";

/** A worker that runs a text. */
export function spawn(text) {
  const port = `const { parentPort } = require("node:worker_threads");
    globalThis.postMessage = (message) => parentPort.postMessage(message);
    parentPort.once("message", (data) => globalThis.onmessage({ data }));`;
  const worker = new Worker(port + text, { eval: true });
  worker.on("message", (data) => worker.onmessage({ data }));
  worker.on("error", (error) => worker.onerror(error));
  return worker;
}
