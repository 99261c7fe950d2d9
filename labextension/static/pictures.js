// JupyterLab prefers a widget's live view to every other form of an output, and once the kernel is gone all that this
// view can say is 'model not found'. Here the output's own text/html takes its place. A prebuilt extension, by hand:
// JupyterLab calls init with the modules that it shares and get for the plugin.

const VIEW = "application/vnd.jupyter.widget-view+json";
let shared = {};

// A module of JupyterLab: each name holds its versions, of which a page runs one.
async function module(name) {
  const [{ get }] = Object.values(shared[name]);
  return (await get())();
}

// The same renderer, which after a failure shows the picture: a live view is a child of it, an error is text.
function withPicture(renderer, createHtml) {
  const renderModel = renderer.renderModel.bind(renderer);
  renderer.renderModel = async (model) => {
    await renderModel(model);
    const failed = renderer.hasClass("jupyter-widgets") && !renderer.widgets.length;
    if (!failed || !model.data["text/html"]) return;
    const picture = createHtml();
    await picture.renderModel(model);
    renderer.node.textContent = "";
    renderer.addWidget(picture);
  };
  return renderer;
}

function watch(_, { content: { rendermime } }) {
  const create = rendermime.createRenderer.bind(rendermime);
  rendermime.createRenderer = (type) =>
    type === VIEW ? withPicture(create(type), () => create("text/html")) : create(type);
}

async function plugin() {
  const { INotebookTracker } = await module("@jupyterlab/notebook");
  const activate = (_, notebooks) => notebooks.widgetAdded.connect(watch);
  return { id: "lab-pictures:plugin", autoStart: true, requires: [INotebookTracker], activate };
}

(window._JUPYTERLAB ??= {})["lab-pictures"] = {
  init: (scope) => void (shared = scope),
  get: async () => {
    const found = await plugin();
    return () => found;
  },
};
