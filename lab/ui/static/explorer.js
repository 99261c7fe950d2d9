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

// A native range or select for one control: {name, label, texts, values, slider}.
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
  const show = (value) => {
    const i = spec.values.indexOf(value);
    input.value = i;
    shown.textContent = spec.texts[i];
    input.setAttribute("aria-valuetext", spec.texts[i]);
  };
  input.addEventListener(spec.slider ? "input" : "change", () => {
    show(spec.values[Number(input.value)]);
    choose(spec.values[Number(input.value)]);
  });
  return { box, show };
}

let count = 0;

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
  const follow = (name, update) => {
    model.on(`change:${name}`, update);
    undo.push(() => model.off(`change:${name}`, update));
    update();
  };
  for (const one of spec.controls) {
    const { box, show } = control(one, `${id}-${one.name}`, (value) => {
      model.set(one.name, value);
      model.save_changes();
    });
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
  follow("frame", () => {
    const frame = model.get("frame");
    picture.innerHTML = frame.svg;
    facts.replaceChildren(
      ...frame.facts.map(([name, value]) => {
        const fact = make("span", "", `${name} `);
        fact.append(make("b", "", value));
        return fact;
      }),
    );
  });
  follow("message", () => (message.textContent = model.get("message")));
  return () => undo.forEach((stop) => stop());
}

// A model for a page without a kernel: `state` as Python had it, `frames` ready under "index,index,...".
function replay({ state, frames }) {
  const listeners = {};
  const emit = (name) => (listeners[`change:${name}`] ?? []).forEach((update) => update());
  const key = () => state.spec.controls.map((c) => c.values.indexOf(state[c.name])).join();
  return {
    get: (name) => state[name],
    set: (name, value) => (state[name] = value),
    save_changes: () => {
      state.frame = frames[key()];
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

export default { render, replay, unpack };
