// Explorers and figures of the site. Both are loaded when the reader comes near them; nothing is asked of another machine.
(() => {
  const place = document.documentElement.dataset.content_root + "_static/";
  const waiting = {};
  // A file of states calls this: a page opened from a disk may load a script, but may not fetch a file.
  window.labStates = (name, packed) => waiting[name](packed);

  const load = (file) =>
    new Promise((resolve, reject) => {
      const script = Object.assign(document.createElement("script"), { src: place + file, onload: resolve, onerror: reject });
      document.head.append(script);
    });

  async function move(el) {
    const { render, replay, unpack } = window.labExplorer;
    const name = el.dataset.states;
    const packed = await new Promise((resolve) => {
      waiting[name] = resolve;
      load(`states/${name}.js`);
    });
    render({ model: replay(await unpack(packed)), el });
    el.classList.add("lab-moves");
  }

  let plotly;
  async function draw(el) {
    plotly ??= load("plotly.min.js");
    await plotly;
    const { data, layout } = JSON.parse(el.dataset.figure);
    const style = getComputedStyle(el);
    const size = { width: Math.min(layout.width ?? 760, el.clientWidth), height: layout.height ?? 380 };
    const font = { ...layout.template?.layout?.font, ...layout.font, color: style.color };
    const clear = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    window.Plotly.newPlot(el, data, { ...layout, ...size, ...clear, font }, { displayModeBar: false, staticPlot: false });
    el.drawn = true;
  }

  const inks = () => {
    for (const el of document.querySelectorAll(".lab-figure")) {
      if (el.drawn) window.Plotly.relayout(el, { "font.color": getComputedStyle(el).color });
    }
  };

  // What scrolls sideways must be reached by the keyboard.
  const reach = () => {
    for (const el of document.querySelectorAll("pre, .table-wrapper, .output, .math, .lab-explorer .picture, .lab-scroll")) {
      if (el.scrollWidth > el.clientWidth + 1) el.tabIndex = 0;
    }
  };

  // What the theme leaves unsaid: the level of the captions in its list of pages, and which of two sidebars is which.
  document.querySelectorAll(".caption[role=heading]").forEach((el) => el.setAttribute("aria-level", "2"));
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");

  // An empty corner of a table heads nothing.
  for (const th of document.querySelectorAll("th")) {
    if (!th.textContent.trim()) th.replaceWith(document.createElement("td"));
  }

  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        if (target.classList.contains("lab-live")) move(target);
        else draw(target);
      }
    },
    { rootMargin: "400px" },
  );
  document.querySelectorAll(".lab-live, .lab-figure").forEach((el) => near.observe(el));
  new MutationObserver(inks).observe(document.body, { attributeFilter: ["data-theme"] });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", inks);
  window.addEventListener("resize", reach);
  reach();
})();
