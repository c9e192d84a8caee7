// What surrounds the canvas: photographs, labels, objects, saving and keys.
//
// Everything that is not on the screen is asked of `server`, an object whose methods take one object
// and give promises: session, picture, embed, predict, everything, objects, keep, change, remove,
// restore, label, save and export. `annotate/desk.py` says what they take and give; `picture` and
// `export` give a Blob. An error of theirs has a `status`, that of HTTP, or 0 without any answer.

import { SegmentCanvas } from "./canvas.js";

const COLOURS = ["#3b82f6", "#f97316", "#10b981", "#ec4899", "#eab308", "#a855f7", "#06b6d4", "#ef4444", "#84cc16", "#f59e0b", "#6366f1", "#14b8a6"];
const FORMATS = { coco: "COCO", yolo: "YOLO", "label-map": "PNG label maps", "sa1b": "SA-1B" };
const TOAST_SECONDS = 6;
const SCORES = ["score", "predicted_iou", "stability_score"]; // of a mask: another one comes without them

/** What the canvas asks for. */
const transportOf = (server) => ({
  picture: (photo) => server.picture({ photo }),
  embed: (photo, canvas) => server.embed({ photo, canvas }),
  everything: (photo) => server.everything({ photo }),
  async predict(request) {
    try {
      return await server.predict(request);
    } catch (error) {
      if (error.status === 409) return null; // a newer click is on its way
      throw error;
    }
  },
});

/**
 * Brings the elements of `root` to life, a document or shadow root with the body of `index.html`.
 *
 * `first` is the photograph to begin with; `turned(name)` is called when another one is shown.
 * Without `wheelZooms` the wheel zooms with Ctrl alone, and else scrolls the page around.
 */
export function openEditor(root, server, { first = null, turned = () => {}, wheelZooms = true } = {}) {
  const $ = (id) => root.getElementById(id);
  const state = { photos: [], labels: [], label: null, index: -1, objects: [], busy: null, pending: 0, saved: true };
  let past = []; // what was done to the objects of this photograph: {undo, redo}
  let future = [];
  let working = Promise.resolve(); // until all changes so far are made
  let failed = 0; // how many changes were refused

  /** Makes changes one after the other, whatever becomes of those before. */
  function inTurn(job) {
    working = working.then(job, job);
    return working;
  }

  /** Waits until no change is under way. Returns whether all since then were made. */
  async function allMade() {
    const before = failed;
    for (let last = null; last !== working; ) {
      last = working;
      await last;
    }
    return failed === before;
  }

  /** Makes a change of what is kept; shows whether it is in the file. */
  async function change(question, content) {
    state.pending += 1;
    showSaved();
    try {
      const answer = await server[question](content);
      showSave(answer.save);
      return answer;
    } finally {
      state.pending -= 1;
      showSaved();
    }
  }

  const canvas = new SegmentCanvas($("canvas"), transportOf(server), { wheelZooms });

  // --- photographs ---

  const photo = () => state.photos[state.index];

  /** Shows the photograph at the index that `find` gives once what was done here is kept. */
  async function open(find) {
    if (!(await allMade())) return showPhotos();
    const index = find();
    if (index < 0 || index >= state.photos.length) return;
    if (canvas.hasDraft) {
      $("photo").value = state.index;
      toast("Accept this mask first (Enter), or clear it (Esc).");
      return;
    }
    state.index = index;
    past = [];
    future = [];
    state.objects = [];
    $("broken").hidden = true;
    photo().broken = false;
    showPhotos();
    showObjects();
    const { name } = photo();
    first = name;
    turned(name);
    const opened = canvas.open(name);
    await inTurn(loadObjects); // before what is kept meanwhile, which is not in the list that comes
    if ((await opened) && photo()?.name === name && state.photos[index + 1]) {
      server.embed({ photo: state.photos[index + 1].name, ahead: true, canvas: canvas.id }).catch(() => {});
    }
  }

  const turn = (by) => open(() => state.index + by);

  async function loadObjects() {
    const asked = photo();
    try {
      const answer = await server.objects({ photo: asked.name });
      if (photo() !== asked) return;
      state.objects = answer.objects.map((object) => ({ ...object, hidden: false }));
      state.labels = answer.labels; // to which another tab may have added
      showSave(answer.save);
      showLabels();
      showObjects();
    } catch (error) {
      if (photo() === asked) showBroken(error);
    }
  }

  function showBroken({ message, status }) {
    photo().broken = status !== 0; // without an answer nothing is known of the photograph
    $("broken").hidden = false;
    $("broken-text").textContent = message;
    showPhotos();
  }

  function showPhotos() {
    const select = $("photo");
    if (select.options.length !== state.photos.length) {
      select.replaceChildren(...state.photos.map((_, index) => new Option("", index)));
    }
    state.photos.forEach(({ name, objects, broken }, index) => {
      const text = `${name}${broken ? "  – unreadable" : objects ? `  – ${objects}` : ""}`;
      if (select.options[index].text !== text) select.options[index].text = text;
    });
    select.value = state.index;
    const done = state.photos.filter(({ objects }) => objects).length;
    $("count").textContent = `${state.index + 1} of ${state.photos.length}, ${done} labelled`;
    $("prev").disabled = state.index <= 0;
    $("next").disabled = state.index >= state.photos.length - 1;
    $("todo").disabled = firstWithout() < 0;
  }

  const firstWithout = () => state.photos.findIndex(({ objects, broken }) => !objects && !broken);

  // --- labels ---

  const colourOf = (category) => {
    const index = state.labels.findIndex(({ id }) => id === category);
    return COLOURS[Math.max(0, index) % COLOURS.length];
  };
  const nameOf = (category) => state.labels.find(({ id }) => id === category)?.name ?? String(category);

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key.includes("-") || key === "role") made.setAttribute(key, value);
      else made[key] = value;
    }
    made.append(...children);
    return made;
  }

  /** Replaces what is in a list; the focus stays where it was. */
  function fill(list, ...children) {
    const place = [...list.querySelectorAll("button")].indexOf(root.activeElement);
    list.replaceChildren(...children);
    if (place < 0) return;
    const buttons = [...list.querySelectorAll("button")];
    (buttons[place] ?? buttons.at(-1) ?? canvas.canvas).focus({ preventScroll: true });
  }

  function icon(name) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    use.setAttribute("href", `#i-${name}`);
    svg.append(use);
    return svg;
  }

  function dot(category) {
    const made = element("span", { className: "dot" });
    made.style.setProperty("--chip", colourOf(category));
    return made;
  }

  function showLabels() {
    const chips = state.labels.map(({ id, name }, index) => {
      const chip = element("button", { className: "chip", type: "button", title: name, role: "radio", "aria-checked": id === state.label }, dot(id), element("span", { className: "name" }, name));
      if (index < 9) chip.append(element("small", { "aria-hidden": true }, `⇧${index + 1}`));
      chip.style.setProperty("--chip", colourOf(id));
      chip.addEventListener("click", () => choose(id));
      return chip;
    });
    fill($("labels"), ...chips);
    canvas.setColour(colourOf(state.label));
  }

  /** Chooses the label of what comes, and of the object that is being corrected. */
  async function choose(id) {
    state.label = id;
    showLabels();
    speak(`Label ${nameOf(id)}`);
    const editing = state.objects.find((one) => one.id === canvas.draft.editing);
    if (editing && editing.category_id !== id) await act(changed(editing, { category_id: id }));
  }

  // --- objects: what is done can be undone ---

  /** Does it in its turn. Returns whether it was done. */
  const act = (action) => inTurn(() => perform(action));

  /** Does it now, and remembers how to undo it. Returns whether it was done. */
  async function perform(action) {
    try {
      await action.redo();
      past.push(action);
      future = [];
      return true;
    } catch (error) {
      await refused(error);
      return false;
    } finally {
      showTools();
    }
  }

  async function refused(error) {
    failed += 1;
    toast(error.message);
    if (error.status === 404) await loadObjects(); // another tab has deleted it, or loaded the file
  }

  function added(content) {
    let id = null;
    return {
      async redo() {
        if (id !== null) return restore(id);
        const { object } = await change("keep", content);
        id = object.id;
        insert(object);
        speak(`${nameOf(object.category_id)} kept`);
      },
      undo: () => remove(id),
    };
  }

  const deleted = ({ id }) => ({ redo: () => remove(id), undo: () => restore(id) });

  async function remove(id) {
    await change("remove", { number: id, photo: photo().name });
    state.objects = state.objects.filter((one) => one.id !== id);
    if (canvas.draft.editing === id) canvas.clear();
    counted();
  }

  async function restore(id) {
    insert((await change("restore", { number: id, photo: photo().name })).object);
  }

  function changed(object, content) {
    const { id } = object;
    let before;
    const put = async (values) => {
      const { object: made } = await change("change", { number: id, photo: photo().name, ...values });
      state.objects = state.objects.map((one) => (one.id === id ? { ...made, hidden: one.hidden } : one));
      showObjects();
    };
    const redo = () => {
      const now = state.objects.find((one) => one.id === id) ?? object;
      const keys = content.segmentation ? [...Object.keys(content), ...SCORES] : Object.keys(content);
      before = Object.fromEntries(keys.map((key) => [key, now[key]]));
      return put(content);
    };
    return { redo, undo: () => put(before) };
  }

  function insert(object) {
    state.objects = [...state.objects, { ...object, hidden: false }];
    counted();
  }

  function counted() {
    photo().objects = state.objects.length;
    showObjects();
    showPhotos();
  }

  function showObjects() {
    canvas.setObjects(
      state.objects.map(({ id, segmentation, category_id, hidden }) => ({ id, segmentation, hidden, colour: colourOf(category_id) })),
    );
    const { editing } = canvas.draft;
    const rows = state.objects.map((object, index) => {
      const name = nameOf(object.category_id);
      const row = element("li", { className: `${object.hidden ? "off" : ""} ${object.id === editing ? "on" : ""}` });
      const about = `${name}, object ${index + 1}`;
      const pick = element("button", { className: "pick", type: "button", title: "Correct this object", "aria-label": `Correct ${about}` }, dot(object.category_id), element("span", { className: "name" }, name), element("small", {}, pixels(object.area)));
      pick.addEventListener("click", () => edit(object.id));
      const eye = button("eye", object.hidden ? `Show ${about}` : `Hide ${about}`, () => {
        object.hidden = !object.hidden;
        showObjects();
      });
      eye.setAttribute("aria-pressed", object.hidden);
      const trash = button("trash", `Delete ${about}`, () => act(deleted(object)));
      row.append(pick, eye, trash);
      return row;
    });
    fill($("objects"), ...rows);
    $("no-objects").hidden = rows.length > 0;
    $("objects-title").textContent = rows.length ? `Objects · ${rows.length}` : "Objects";
  }

  function edit(id) {
    if (canvas.hasWork) {
      toast("Accept this mask first (Enter), or clear it (Esc).");
      return;
    }
    canvas.edit(id);
    state.label = state.objects.find((one) => one.id === id).category_id;
    showLabels();
    showObjects();
    canvas.canvas.focus({ preventScroll: true });
  }

  function button(name, title, press) {
    const made = element("button", { className: "icon", type: "button", title, "aria-label": title }, icon(name));
    made.addEventListener("click", press);
    return made;
  }

  function pixels(count) {
    if (count < 1e4) return `${count} px`;
    return count < 1e6 ? `${Math.round(count / 1e3)} k` : `${(count / 1e6).toFixed(1)} M`;
  }

  const undo = () => stepInTurn(() => canvas.undo() || replay(past, future, "undo"));
  const redo = () => stepInTurn(() => canvas.redo() || replay(future, past, "redo"));

  /** Takes a step through the history, unless a change before it is refused: it was meant for that. */
  function stepInTurn(step) {
    const before = failed;
    inTurn(() => failed === before && step());
  }

  async function replay(from, to, how) {
    const action = from.pop();
    if (!action) return;
    try {
      await action[how]();
      to.push(action);
      speak(how === "undo" ? "Undone" : "Redone");
    } catch (error) {
      if (error.status !== 404) from.push(action); // to be tried again; what is gone cannot be
      await refused(error);
    }
    showTools();
  }

  // --- what is saved ---

  function showSave({ saved, problem, message }) {
    state.saved = saved;
    $("alert").hidden = saved;
    $("alert-text").textContent = message;
    $("save-again").hidden = problem === "changed";
    $("save-load").hidden = $("save-replace").hidden = problem !== "changed";
    showSaved();
  }

  function showSaved() {
    const text = !state.saved ? "Not saved" : state.pending ? "Saving" : "Saved";
    if ($("saved").textContent !== text) $("saved").textContent = text;
    $("saved").classList.toggle("not", !state.saved);
  }

  async function save(how) {
    try {
      await allMade();
      const { save: told } = await server.save({ how });
      showSave(told);
      if (how === "load") await start();
    } catch (error) {
      toast(error.message);
    }
  }

  async function exportAll(format) {
    try {
      const content = await server.export({ format });
      const link = element("a", { href: URL.createObjectURL(content), download: `masks-${format}.zip` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) {
      toast(error.message);
    }
  }

  // --- what is shown of the canvas ---

  function showTools() {
    const { draft } = canvas;
    for (const tool of root.querySelectorAll("[data-tool]")) {
      tool.setAttribute("aria-pressed", tool.dataset.tool === canvas.tool);
    }
    $("brush-size").hidden = !canvas.painting;
    $("brush").value = canvas.brush;
    $("brush-value").textContent = `${canvas.brush} px`;
    $("sign").setAttribute("aria-pressed", canvas.background);
    $("sign-icon").setAttribute("href", canvas.background ? "#i-minus" : "#i-plus");
    $("undo").disabled = !canvas.canUndo && !past.length;
    $("redo").disabled = !canvas.canRedo && !future.length;
    $("everything").disabled = !canvas.ready || canvas.hasDraft || state.busy !== null;
    showDraft(draft);
    showProposals();
  }

  function showDraft(draft) {
    const { editing, candidates } = draft;
    $("draft").hidden = canvas.proposals.length > 0;
    $("draft-title").textContent = editing === null ? "Mask" : "Correcting an object";
    $("accept").disabled = !draft.mask || draft.waits;
    $("accept-text").textContent = editing === null ? "Accept" : "Save";
    $("clear").disabled = !canvas.hasDraft;
    $("hint").textContent = hint(draft);
    const few = candidates.length > 1 && !draft.edited;
    const key = few ? `${draft.number} ${draft.chosen}` : "";
    if ($("candidates").dataset.key === key) return;
    $("candidates").dataset.key = key;
    const had = root.activeElement?.parentElement === $("candidates");
    const buttons = candidates.map(({ score }, index) => {
      const shown = score === null ? "" : `${Math.round(score * 100)} %`;
      const made = element("button", { type: "button", role: "radio", "aria-checked": index === draft.chosen, "aria-label": `Candidate ${index + 1}, ${shown}`, title: "Predicted IoU" }, element("span", {}, String(index + 1)), element("small", {}, shown));
      made.addEventListener("click", () => canvas.choose(index));
      return made;
    });
    $("candidates").replaceChildren(...(few ? buttons : []));
    if (had) $("candidates").children[draft.chosen]?.focus();
  }

  function hint(draft) {
    if (canvas.draftsWait) return "A mask that was not kept comes back once this one is accepted or cleared.";
    if (canvas.proposalsWait) return "The proposals are shown once this mask is accepted or cleared.";
    if (draft.editing !== null) return "Click, or use brush and eraser; choose a label; Delete removes it.";
    if (draft.waits) return canvas.ready ? "Segmenting …" : "As soon as the photograph is encoded …";
    if (!canvas.hasDraft) return "Click an object, or drag a box around it.";
    if (draft.candidates.length > 1 && !draft.edited) return "Three readings of the click: choose with 1, 2, 3 or the wheel.";
    return "More clicks correct it; right clicks are on the background.";
  }

  function showProposals() {
    const { proposals } = canvas;
    $("proposals-card").hidden = !proposals.length;
    $("proposals-title").textContent = `Proposals · ${proposals.length}`;
    const list = $("proposals");
    if (list.of !== proposals) {
      list.of = proposals;
      const rows = proposals.map(({ mask, area, score }, index) => {
        const about = `proposal ${index + 1}`;
        const shown = score === null ? "" : `${Math.round(score * 100)} %`;
        const pick = element("button", { className: "pick", type: "button", "aria-label": `Show ${about}` }, element("span", { className: "name" }, `${index + 1}`), element("small", {}, `${shown} · ${pixels(area ?? mask.w * mask.h)}`));
        pick.addEventListener("click", () => canvas.highlight(index));
        return element("li", {}, pick, button("check", `Accept ${about}`, () => canvas.settle(index, true)), button("close", `Drop ${about}`, () => canvas.settle(index, false)));
      });
      fill(list, ...rows);
    }
    [...list.children].forEach((row, index) => row.classList.toggle("on", index === canvas.proposal));
  }

  canvas.addEventListener("change", showTools);
  canvas.addEventListener("busy", ({ detail: { text } }) => {
    state.busy = text;
    $("progress").hidden = text === null;
    clearInterval(state.timer);
    if (text === null) return showTools();
    const began = performance.now();
    function showBusy() {
      const seconds = Math.round((performance.now() - began) / 1000);
      $("progress-text").textContent = seconds < 1 ? `${text} …` : `${text} … ${seconds} s`;
    }
    showBusy();
    state.timer = setInterval(showBusy, 500);
    showTools();
  });
  canvas.addEventListener("say", ({ detail: { text } }) => speak(text));
  canvas.addEventListener("fail", ({ detail: { text, error } }) => (error ? showBroken(error) : toast(text)));
  canvas.addEventListener("pick", ({ detail: { id } }) => edit(id));
  canvas.addEventListener("accept", ({ detail: { segmentation, score, editing, draft } }) => {
    const object = state.objects.find((one) => one.id === editing);
    const action = object ? changed(object, { segmentation, score }) : added({ photo: photo().name, segmentation, category_id: state.label, score });
    inTurn(async () => {
      if (!(await perform(action))) canvas.restore(draft);
    });
  });
  canvas.addEventListener("accept-proposals", ({ detail: { proposals } }) => {
    const [{ name }, category_id] = [photo(), state.label];
    inTurn(async () => {
      for (const [number, { segmentation, score }] of proposals.entries()) {
        if (await perform(added({ photo: name, segmentation, category_id, score }))) continue;
        return canvas.propose([...proposals.slice(number), ...canvas.proposals]);
      }
    });
  });

  function speak(text) {
    $("spoken").textContent = text;
  }

  function toast(text) {
    $("toast").textContent = text;
    $("toast").hidden = false;
    clearTimeout(state.toast);
    state.toast = setTimeout(() => ($("toast").hidden = true), TOAST_SECONDS * 1000);
  }

  // --- keys and buttons ---

  const centre = () => canvas.canvas.focus({ preventScroll: true });
  const KEYS = {
    v: () => canvas.setTool("select"),
    b: () => canvas.setTool("brush"),
    e: () => canvas.setTool("eraser"),
    h: () => canvas.setTool("pan"),
    s: () => canvas.setBackground(!canvas.background),
    a: () => $("everything").click(),
    c: centre,
    g: () => $("todo").click(),
    "?": () => $("keys").showModal(),
    "+": () => canvas.zoom(1.25),
    "=": () => canvas.zoom(1.25),
    "-": () => canvas.zoom(0.8),
    0: () => canvas.fit(),
    "[": () => canvas.setBrush(Math.floor(canvas.brush * 0.8)),
    "]": () => canvas.setBrush(Math.ceil(canvas.brush * 1.25)),
    pagedown: () => turn(1),
    pageup: () => turn(-1),
  };

  function removeEdited() {
    const object = state.objects.find((one) => one.id === canvas.draft.editing);
    if (object) act(deleted(object));
    return Boolean(object);
  }

  root.addEventListener("keydown", (event) => {
    if ($("keys").open || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const onButton = event.target.tagName === "BUTTON" || event.target.tagName === "A";
    if (onButton && (event.key === "Enter" || event.key === " ")) return;
    let done = true;
    const key = event.key.toLowerCase();
    const digit = /^Digit([1-9])$/.exec(event.code)?.[1];
    if (event.ctrlKey || event.metaKey) {
      if (key === "z") event.shiftKey ? redo() : undo();
      else if (key === "y") redo();
      else done = false;
    } else if (event.shiftKey && digit && state.labels[digit - 1]) choose(state.labels[digit - 1].id);
    else if (canvas.key(event)) done = true;
    else if ((key === "delete" || key === "backspace") && removeEdited()) done = true;
    else if (KEYS[key] && !event.altKey) KEYS[key]();
    else done = false;
    if (!done) return;
    event.preventDefault();
    event.stopPropagation(); // the page around has keys of its own
  });

  const press = (id, act) => $(id).addEventListener("click", act);
  press("prev", () => turn(-1));
  press("next", () => turn(1));
  press("skip", () => turn(1));
  press("todo", () => open(firstWithout));
  press("undo", undo);
  press("redo", redo);
  press("zoom-in", () => canvas.zoom(1.25));
  press("zoom-out", () => canvas.zoom(0.8));
  press("fit", () => canvas.fit());
  press("sign", () => canvas.setBackground(!canvas.background));
  press("everything", () => canvas.everything());
  press("accept", () => canvas.accept());
  press("clear", () => canvas.clear());
  press("accept-all", () => canvas.settle(null, true));
  press("drop-all", () => canvas.settle(null, false));
  press("help", () => $("keys").showModal());
  press("keys-close", () => $("keys").close());
  press("save-again", () => save("again"));
  press("save-load", () => save("load"));
  press("save-replace", () => save("replace"));
  for (const tool of root.querySelectorAll("[data-tool]")) {
    tool.addEventListener("click", () => canvas.setTool(tool.dataset.tool));
  }
  $("photo").addEventListener("change", ({ target }) => {
    const index = Number(target.value);
    open(() => index);
  });
  $("brush").addEventListener("input", ({ target }) => canvas.setBrush(Number(target.value)));
  $("export").addEventListener("change", ({ target }) => {
    if (target.value) exportAll(target.value);
    target.value = "";
  });
  // No form: notebooks do not let all of them be submitted.
  press("add-label", addLabel);
  $("label-name").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) addLabel();
  });

  async function addLabel() {
    const name = $("label-name").value.trim();
    if (!name) return;
    try {
      const { label } = await change("label", { name });
      if (!state.labels.some(({ id }) => id === label.id)) state.labels.push(label);
      $("label-name").value = "";
      await choose(label.id);
    } catch (error) {
      toast(error.message);
    }
  }

  // --- start ---

  async function start() {
    let session;
    try {
      session = await server.session();
    } catch (error) {
      $("broken").hidden = false;
      $("broken").querySelector("strong").textContent = "The page cannot be opened";
      $("broken-text").textContent = error.message;
      $("skip").hidden = true;
      return;
    }
    state.photos = session.photos;
    state.labels = session.labels;
    if (!state.labels.some(({ id }) => id === state.label)) state.label = state.labels[0]?.id ?? null;
    $("export").replaceChildren(new Option("Export all", ""), ...session.formats.map((name) => new Option(FORMATS[name] ?? name, name)));
    $("export").hidden = !session.formats.length;
    $("saved").hidden = session.file === null; // what is in memory alone is not saved
    $("saved").title = `Masks are in ${session.file}`;
    showSave(session.save);
    showLabels();
    const before = session.photos.findIndex(({ name }) => name === first);
    canvas.clear(true);
    await open(() => (before >= 0 ? before : Math.max(0, firstWithout())));
  }

  start();
  return {
    /** Whether closing it loses something. */
    get holdsWork() {
      return canvas.hasDraft || !state.saved || state.pending > 0;
    },
    /** Shows a sentence for a while. */
    tell: toast,
    close() {
      clearInterval(state.timer);
      clearTimeout(state.toast);
      canvas.destroy();
    },
  };
}
