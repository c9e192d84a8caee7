// The editor in a notebook: a widget of anywidget, which asks Python by messages.
//
// `keras_sam.widget` puts this file behind canvas.js and editor.js, as one module, and before them two
// constants: MARKUP, the body of index.html, and STYLE, page.css.

import { openEditor } from "./editor.js";

const PATIENCE = 5; // seconds, after which it is said that nothing is answered
const QUESTIONS = ["session", "embed", "predict", "everything", "objects", "keep", "change", "remove", "restore", "label", "save"];

class KernelError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Asks Python; answers come with the number of their question, to all views of a widget.
 *
 * While nothing at all is answered, `wait` is called from time to time: Python runs a cell, or was
 * restarted, which JupyterLab tells only of its own restarts. The questions stay, for a cell may end.
 */
function connect(model, wait) {
  const waiting = new Map();
  const view = crypto.getRandomValues(new Uint32Array(2)).join("-");
  let count = 0;
  let doubted = false; // whether Python still knows this widget, after it may have been restarted
  function giveUp(number) {
    const asked = waiting.get(number);
    if (waiting.delete(number)) asked.reject(new KernelError("Python does not answer. If it was restarted, run the cell again.", 0));
  }
  const giveUpSoon = (number) => setTimeout(giveUp, PATIENCE * 1000, number);
  function doubt() {
    doubted = true;
    for (const number of waiting.keys()) giveUpSoon(number);
  }
  /** Sends a message; where that cannot be, the way to Python is closed, and nothing will come. */
  function send(message) {
    try {
      model.send(message);
    } catch {
      for (const number of [...waiting.keys()]) giveUp(number);
    }
  }
  let unsure = false; // whether it was asked if anybody is there, and nothing heard since
  const watch = setInterval(() => {
    if (unsure && waiting.size) wait();
    unsure = waiting.size > 0;
    if (unsure) send({ number: view, question: "here" });
  }, PATIENCE * 1000);
  function hear({ number, answer, error, status }, buffers) {
    doubted = unsure = false;
    const asked = waiting.get(number);
    if (!waiting.delete(number)) return;
    if (error === undefined) asked.resolve({ answer, buffers });
    else asked.reject(new KernelError(error, status));
  }
  function ask(question, content) {
    const number = `${view}-${count++}`;
    return new Promise((resolve, reject) => {
      waiting.set(number, { resolve, reject });
      if (doubted) giveUpSoon(number);
      send({ number, question, content });
    });
  }
  model.on("msg:custom", hear);
  model.on("comm_live_update", doubt); // in JupyterLab, when the kernel is lost or restarted
  const server = Object.fromEntries(
    QUESTIONS.map((question) => [question, async (content = {}) => (await ask(question, content)).answer]),
  );
  server.picture = async (content) => {
    const { answer, buffers } = await ask("picture", content);
    return new Blob([buffers[0]], { type: answer.type });
  };
  const disconnect = () => {
    clearInterval(watch);
    model.off("msg:custom", hear);
    model.off("comm_live_update", doubt);
  };
  return { server, disconnect };
}

/** Whether what is behind an element is dark: notebooks have themes of their own. */
function isDark(element) {
  for (let at = element; at; at = at.parentElement) {
    const found = /^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/.exec(getComputedStyle(at).backgroundColor);
    if (!found) continue;
    const [red, green, blue, alpha = 1] = found.slice(1).map((part) => (part === undefined ? undefined : Number(part)));
    if (alpha > 0.5) return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function render({ model, el }) {
  const host = document.createElement("div");
  host.setAttribute("data-lm-suppress-shortcuts", ""); // JupyterLab would take letters for commands
  el.append(host);
  const root = host.attachShadow({ mode: "open" });
  const style = document.createElement("style");
  style.textContent = STYLE;
  const body = document.createElement("div");
  body.className = "editor widget";
  body.innerHTML = MARKUP;
  root.append(style, body);

  const resize = () => (host.style.height = `${model.get("height")}px`);
  const shade = () => (host.style.colorScheme = isDark(el) ? "dark" : "light");
  resize();
  shade();
  requestAnimationFrame(shade); // once the element is in the page
  model.on("change:height", resize);
  const themes = new MutationObserver(shade);
  for (const one of [document.documentElement, document.body]) themes.observe(one, { attributes: true });

  const { server, disconnect } = connect(model, () =>
    editor.tell("Python does not answer. If a cell is running, this goes on after it; if Python was restarted, run the cell again."),
  );
  const silent = setTimeout(() => {
    root.getElementById("broken").hidden = false;
    root.getElementById("broken-text").textContent = "Python does not answer. If no cell is running, run this one again.";
  }, PATIENCE * 1000);
  const { session } = server;
  server.session = async () => {
    const answer = await session();
    clearTimeout(silent);
    body.classList.toggle("single", answer.photos.length === 1);
    return answer;
  };
  const editor = openEditor(root, server, { wheelZooms: false });
  return () => {
    clearTimeout(silent);
    themes.disconnect();
    model.off("change:height", resize);
    disconnect();
    editor.close();
  };
}

export default { render };
