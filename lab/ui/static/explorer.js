// The explorer in the browser: shows the controls, puts the picture in place and reports what the reader moved.
// Python (or, in a saved page, a table of ready states) draws; nothing is computed here.

const make = (tag, className, text = "") => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
};

// JupyterLab would take the keys of a focused control (arrows walk through cells, D D deletes one); not of these.
const keepKeys = (input) => input.setAttribute("data-lm-suppress-shortcuts", "true");

// The box into which a text that is not in the list can be typed; Enter or leaving it takes the text.
function typing(spec, choose) {
  const input = Object.assign(make("input", "typed"), { type: "text", placeholder: "or type your own", maxLength: 300 });
  input.setAttribute("aria-label", `${spec.label}, typed`);
  keepKeys(input);
  const take = () => {
    const text = input.value.trim();
    if (text) choose(text);
  };
  input.addEventListener("change", take);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) take(); // in JupyterLab no change follows Enter
  });
  return input;
}

// A native range or select for one control: {name, label, texts, values, slider, free}; a free one has a box beside it.
function control(spec, id, choose) {
  const box = make("span", "control");
  const label = make("label", "", spec.label);
  const input = make(spec.slider ? "input" : "select");
  const shown = make("output");
  label.htmlFor = input.id = id;
  input.name = spec.name;
  keepKeys(input);
  box.append(label, input);
  if (spec.slider) {
    Object.assign(input, { type: "range", min: 0, max: spec.values.length - 1, step: 1 });
    box.append(shown);
  } else {
    spec.texts.forEach((text, i) => input.append(Object.assign(make("option", "", text), { value: i })));
  }
  const typed = spec.free ? typing(spec, choose) : null;
  if (typed) box.append(typed);
  const show = (value) => {
    const i = spec.values.indexOf(value);
    input.value = i; // -1 shows an empty list
    shown.textContent = spec.texts[i];
    if (spec.slider) input.setAttribute("aria-valuetext", spec.texts[i] ?? value); // a list says its text itself
    if (typed) typed.value = i < 0 ? value : "";
  };
  input.addEventListener(spec.slider ? "input" : "change", () => {
    show(spec.values[Number(input.value)]);
    choose(spec.values[Number(input.value)]);
  });
  return { box, show };
}

// The place of the point nearest to point `from` in a direction [dx, dy] of the screen; `from` where nothing lies there.
function nearest(points, from, [dx, dy]) {
  const distance = ({ x, y }) => {
    const [right, down] = [x - points[from].x, y - points[from].y];
    const along = right * dx + down * dy;
    return along > 1 ? along + 2 * Math.abs(right * dy - down * dx) : Infinity;
  };
  const best = points.reduce((k, point, i) => (distance(point) < distance(points[k]) ? i : k), from);
  return distance(points[best]) < Infinity ? best : from;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Elements of the picture with data-set='{"control": value}' are buttons: a click, Enter or Space sets those controls.
// One of each <svg> is reached with Tab, the others from there with the arrows. Returns what puts a new picture in place.
function clickable(picture, choose) {
  const targets = () => [...picture.querySelectorAll("[data-set]")];
  const focus = (target) => target?.focus({ preventScroll: true });
  const press = (target) => choose(JSON.parse(target.dataset.set));
  const walk = (target, arrow) => {
    const all = targets();
    const middle = (one) => {
      const box = one.getBoundingClientRect();
      return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
    };
    focus(all[nearest(all.map(middle), all.indexOf(target), arrow)]);
  };
  keepKeys(picture);
  picture.addEventListener("click", (event) => {
    const target = event.target.closest("[data-set]");
    if (target) press(target);
  });
  picture.addEventListener("keydown", (event) => {
    const target = event.target.closest("[data-set]");
    if (!target || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") press(target);
    else if (event.key in ARROWS) walk(target, ARROWS[event.key]);
    else return;
    event.preventDefault();
  });
  return (svg) => {
    const old = targets().indexOf(document.activeElement);
    const set = document.activeElement?.dataset?.set;
    picture.innerHTML = svg;
    const all = targets();
    const seen = new Map(); // the one of each <svg> that Tab reaches: the pressed one, or the first
    for (const one of all) {
      one.setAttribute("role", "button");
      one.setAttribute("tabindex", "-1");
      const pressed = one.getAttribute("aria-pressed") === "true";
      if (pressed || !seen.has(one.ownerSVGElement)) seen.set(one.ownerSVGElement, one);
    }
    for (const one of seen.values()) one.setAttribute("tabindex", "0");
    if (old >= 0) focus(all.find((one) => one.dataset.set === set) ?? all[Math.min(old, all.length - 1)]);
  };
}

let count = 0;
const ENDED = "The kernel that drew this has ended: run the cell again.";

function render({ model, el }) {
  const spec = model.get("spec");
  const id = `lab-explorer-${(count += 1)}`;
  const picture = make("div", "picture");
  const facts = make("div", "facts");
  const message = make("div", "message");
  const controls = make("div", "controls");
  message.setAttribute("role", "status");
  facts.setAttribute("aria-live", "polite");
  el.replaceChildren();
  el.classList.add("lab-explorer");
  if (spec.title) el.append(make("div", "title", spec.title));
  el.append(controls, picture, facts, message);

  const undo = [];
  const listen = (event, update) => {
    model.on(event, update);
    undo.push(() => model.off(event, update));
  };
  const follow = (name, update) => {
    listen(`change:${name}`, update);
    update();
  };
  let ended = false;
  const choose = (values) => {
    if (ended) return;
    for (const { name, values: allowed, free } of spec.controls) {
      if (name in values && (free || allowed.includes(values[name]))) model.set(name, values[name]);
    }
    model.save_changes();
  };
  for (const one of spec.controls) {
    const { box, show } = control(one, `${id}-${one.name}`, (value) => choose({ [one.name]: value }));
    controls.append(box);
    follow(one.name, () => show(model.get(one.name)));
  }
  const buttons = spec.actions.map((name) => {
    const button = make("button", "", name);
    button.type = "button";
    keepKeys(button);
    button.addEventListener("click", () => model.send({ press: name }));
    controls.append(button);
    return button;
  });
  follow("busy", () => {
    for (const button of buttons) {
      button.disabled = model.get("busy") !== "";
      button.textContent = button.textContent.replace(/ …$/, "");
      if (button.textContent === model.get("busy")) button.textContent += " …";
    }
  });
  const put = clickable(picture, choose);
  follow("frame", () => {
    const frame = model.get("frame");
    put(frame.svg);
    facts.replaceChildren(
      ...frame.facts.map(([name, value]) => {
        const fact = make("span", "", `${name} `);
        fact.append(make("b", "", value));
        return fact;
      }),
    );
  });
  follow("message", () => (message.textContent = model.get("message")));
  listen("comm_live_update", () => {
    // the widget manager has cut the line to the kernel: nothing will answer, so nothing may be moved
    ended = true;
    for (const input of controls.querySelectorAll("input, select, button")) input.disabled = true;
    message.textContent = ENDED;
  });
  return () => undo.forEach((stop) => stop());
}

// A model for a page without a kernel: `state` as Python had it, `frames` ready under "index,index,...". Pictures that
// several frames show are kept once, and stand there as data:lab,NUMBER.
function replay({ state, frames, pictures = [] }) {
  const whole = (frame) => ({ ...frame, svg: frame.svg.replace(/data:lab,(\d+)/g, (_, number) => pictures[number]) });
  state.frame = whole(state.frame);
  const listeners = {};
  const emit = (name) => (listeners[`change:${name}`] ?? []).forEach((update) => update());
  const key = () => state.spec.controls.map((c) => c.values.indexOf(state[c.name])).join();
  return {
    get: (name) => state[name],
    set: (name, value) => {
      state[name] = value;
      emit(name);
    },
    save_changes: () => {
      state.frame = whole(frames[key()]);
      emit("frame");
    },
    send: () => {},
    on: (name, update) => (listeners[name] ??= []).push(update),
    off: (name, update) => (listeners[name] = (listeners[name] ?? []).filter((one) => one !== update)),
  };
}

// The states of a saved page are gzip in base64.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

export default { render, replay, unpack, nearest };
