// Classifies a picture in the reader's own browser and times the network there; the same in a page and in a notebook.
import { builds, measure, Network, sharing } from "./engine.mjs";

const BUILDS = { threads: "relaxed SIMD", relaxed: "relaxed SIMD", simd128: "SIMD128", scalar: "no SIMD" };
const NUMBERS = ["", "one thread", "two threads", "three threads", "four threads"];
const SHOWN = 5;

const make = (tag, className, text = "") => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
};
const keyed = (input, settings) => {
  input.setAttribute("data-lm-suppress-shortcuts", "true"); // else JupyterLab takes its keys
  return Object.assign(input, settings);
};
const ms = (t) => `${t.toFixed(t < 1 ? 3 : t < 10 ? 2 : 1)} ms`;
const percent = (p) => (p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);

function softmax(z) {
  const most = Math.max(...z);
  const e = Array.from(z, (v) => Math.exp(v - most));
  const sum = e.reduce((a, b) => a + b);
  return e.map((v) => v / sum);
}

/** The middle of an image in the network's height and width, drawn on the canvas. */
function fit(image, canvas) {
  const scale = Math.max(canvas.width / image.width, canvas.height / image.height);
  const [w, h] = [image.width * scale, image.height * scale];
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#fff"; // behind what is transparent
  pen.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(pen, { imageSmoothingEnabled: true, imageSmoothingQuality: "high" });
  pen.drawImage(image, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
  return pen.getImageData(0, 0, canvas.width, canvas.height).data;
}

/** The canvas's bytes as the network takes them: (v / 255 - mean) / std, pixels or planes, grey for one channel. */
function numbers(rgba, network, { mean, std }) {
  const { channels, interleaved } = network;
  const pixels = rgba.length / 4;
  const x = new Float32Array(pixels * channels);
  for (let p = 0; p < pixels; p++) {
    const at = 4 * p;
    for (let c = 0; c < channels; c++) {
      const v = channels === 1 ? 0.299 * rgba[at] + 0.587 * rgba[at + 1] + 0.114 * rgba[at + 2] : rgba[at + c];
      x[interleaved ? p * channels + c : c * pixels + p] = (v / 255 - mean[c]) / std[c];
    }
  }
  return x;
}

/** A horizontal bar with its name and its value as text; `show(share, text)` moves it. */
function bar(name, className = "") {
  const row = make("div", `bar ${className}`);
  const fill = make("span", "fill");
  const value = make("span", "value");
  const track = make("span", "track");
  track.append(fill);
  row.append(make("span", "name", name), track, value);
  const show = (share, text) => {
    fill.style.width = `${100 * share}%`;
    value.textContent = text;
  };
  return { row, show };
}

/** Where a picture is chosen, dropped, or taken from the samples; `open(blob or image, name)` gets it. */
function chooser(setup, canvas, open) {
  const box = make("div", "chooser");
  const pick = make("label", "pick", "Choose a picture");
  const input = keyed(make("input"), { type: "file", accept: "image/*" });
  input.addEventListener("change", () => input.files[0] && open(input.files[0], input.files[0].name));
  pick.append(input);
  const drop = make("div", "drop");
  drop.addEventListener("dragover", (event) => (event.preventDefault(), drop.classList.add("over")));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    drop.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) open(file, file.name);
  });
  const samples = make("div", "samples");
  for (const [i, source] of setup.samples.entries()) {
    const button = keyed(make("button"), { type: "button", title: `sample picture ${i + 1}` });
    const image = Object.assign(make("img"), { src: source, alt: `sample picture ${i + 1}` });
    button.append(image);
    button.addEventListener("click", () => open(image, `sample picture ${i + 1}`));
    samples.append(button);
  }
  drop.append(canvas, make("p", "hint", "or drop one here"));
  box.append(pick, drop, samples);
  return box;
}

/** The output: the likeliest classes as bars. */
function classBars(labels) {
  const box = make("section");
  const list = make("div", "answers");
  list.setAttribute("aria-live", "polite");
  box.append(make("h3", "", "What the sparse network sees"), list);
  const show = (z) => {
    const p = softmax(z);
    const best = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, SHOWN);
    list.replaceChildren(
      ...best.map((i) => {
        const { row, show } = bar(labels[i] ?? `class ${i}`);
        show(p[i], percent(p[i]));
        return row;
      }),
    );
    return { label: labels[best[0]] ?? `class ${best[0]}`, probability: p[best[0]] };
  };
  return { box, show };
}

/** The times: a bar for each network, and how much faster the sparse one is. */
function clock(names, again) {
  const box = make("section", "times");
  const bars = Object.fromEntries(names.map((name) => [name, bar(name, name)]));
  const verdict = make("p", "verdict");
  const detail = make("p", "detail");
  const button = keyed(make("button", "again", "Measure again"), { type: "button", disabled: true });
  button.addEventListener("click", again);
  box.append(make("h3", "", "Time for one picture, here"), ...names.map((name) => bars[name].row), verdict, detail, button);
  const progress = (share) => {
    button.disabled = share < 1;
    button.textContent = share < 1 ? `Measuring … ${Math.round(100 * share)} %` : "Measure again";
  };
  const show = (times, build, threads) => {
    const longest = Math.max(...Object.values(times));
    for (const name of names) bars[name].show(times[name] / longest, ms(times[name]));
    verdict.textContent = times.dense ? `${(times.dense / times.sparse).toFixed(2)}× as fast as dense` : "";
    detail.textContent = `WebAssembly, ${BUILDS[build]}, ${NUMBERS[threads]}; lower quartile of runs that take turns`;
  };
  return { box, progress, show };
}

/**
 * Fill `el`. `setup`: title, labels, mean, std, samples (addresses of pictures), facts (pairs of texts), networks
 * (the files of sparse and perhaps dense), threads (the most that are worth it, up to 4, where the page can share memory);
 * `part(name)` gives the bytes of a file; `report` hears what was seen and measured.
 */
export async function classifier(el, setup, part, report = () => {}, signal = undefined) {
  const message = make("p", "message");
  message.setAttribute("role", "status");
  const names = Object.keys(setup.networks);
  const networks = {};
  const threads = sharing() ? Math.min(setup.threads, navigator.hardwareConcurrency) : 1;
  const canvas = make("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "the picture as the network gets it");
  let build;
  let x;

  const guarded = (act) => async (...given) => {
    try {
      await act(...given);
    } catch (error) {
      if (!signal?.aborted) message.textContent = error.message;
    }
  };
  const open = guarded(async (source, name) => {
    if (!x) throw new Error("the network is still being loaded: try again in a moment");
    const image = await createImageBitmap(source).catch(() => {
      throw new Error(`${name} is no picture that this browser can read: choose a PNG, JPEG or WebP file`);
    });
    message.textContent = "";
    x = numbers(fit(image, canvas), networks.sparse, setup);
    report({ seen: classes.show(networks.sparse.run(x)) });
  });
  const time = guarded(async () => {
    times.progress(0);
    const calls = names.map((name) => () => networks[name].run(x));
    const taken = await measure(calls, { progress: times.progress, signal });
    const quartiles = Object.fromEntries(names.map((name, i) => [name, taken[i]]));
    times.show(quartiles, build, threads);
    report({ times: quartiles, build });
  });
  const classes = classBars(setup.labels);
  const times = clock(names, time);

  const columns = make("div", "columns");
  const right = make("div", "right");
  const facts = make("p", "facts", setup.facts.map(([name, text]) => `${name}: ${text}`).join(" · "));
  right.append(classes.box, times.box);
  columns.append(chooser(setup, canvas, open), right);
  el.classList.add("lab-classify");
  el.replaceChildren(make("h2", "", setup.title), columns, message, facts);

  await guarded(async () => {
    message.textContent = "Loading the network …";
    if (!globalThis.WebAssembly) throw new Error("this browser has no WebAssembly: open the page in a newer one");
    build = threads > 1 ? "threads" : builds()[0];
    const module = await WebAssembly.compile(await part(`${build}.wasm`));
    for (const name of names) {
      const file = await part(setup.networks[name]);
      networks[name] = threads > 1 ? await Network.threaded(module, file, threads) : new Network(module, file);
    }
    signal?.addEventListener("abort", () => names.forEach((name) => networks[name].close()));
    Object.assign(canvas, { width: networks.sparse.width, height: networks.sparse.height });
    canvas.classList.toggle("coarse", canvas.width < 100);
    x = new Float32Array(networks.sparse.channels * networks.sparse.height * networks.sparse.width);
    message.textContent = "";
    const [first] = el.querySelectorAll(".samples img");
    if (first) {
      await first.decode();
      await open(first, "the sample picture");
    }
    await time();
  })();
}

/** In a notebook: what Python handed over comes as traits. */
export default {
  render({ model, el }) {
    const end = new AbortController();
    const part = async (name) => {
      const { buffer, byteOffset, byteLength } = model.get("parts")[name];
      return new Uint8Array(buffer, byteOffset, byteLength);
    };
    const report = (seen) => {
      for (const [name, value] of Object.entries(seen)) model.set(name, value);
      model.save_changes();
    };
    classifier(el, model.get("setup"), part, report, end.signal);
    return () => end.abort();
  },
};
