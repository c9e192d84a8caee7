// A canvas on which a person points at objects of a photograph and gets their masks.
//
// It knows no addresses: everything that needs the model is asked of `transport`, an object with
//   picture(photo)   -> Promise of what createImageBitmap takes, a Blob for instance
//   embed(photo, id) -> Promise of {width, height}, once the photograph can be clicked on; what waits
//                       for the canvas of this id and another photograph may be dropped
//   predict(request) -> Promise of {number, candidates: [{segmentation, score}], best}, or of null
//                       where a newer request has taken its place
//   everything(photo)-> Promise of {proposals: [{segmentation, score}]}
// Segmentations are COCO's run lengths, {size: [height, width], counts}. Coordinates are pixels of
// the photograph. What happens is told by events: see `SegmentCanvas`.

// --- masks ---

/** Reads COCO's compressed string, or a list, of run lengths. */
export function readCounts(counts) {
  if (typeof counts !== "string") return counts;
  const read = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let bits = 0;
    let part;
    do {
      part = counts.charCodeAt(at++) - 48;
      value |= (part & 31) << bits;
      bits += 5;
    } while (part & 32);
    if (part & 16 && bits < 32) value |= -1 << bits;
    read.push(read.length > 2 ? value + read[read.length - 2] : value);
  }
  return read;
}

/** Writes run lengths as COCO's compressed string. */
export function writeCounts(counts) {
  let text = "";
  for (let i = 0; i < counts.length; i++) {
    let value = i > 2 ? counts[i] - counts[i - 2] : counts[i];
    for (let more = true; more; ) {
      let part = value & 31;
      value >>= 5;
      more = part & 16 ? value !== -1 : value !== 0;
      text += String.fromCharCode((more ? part | 32 : part) + 48);
    }
  }
  return text;
}

const FILL_PIXELS = 2e6; // of a mask in its colour; its outline is exact at any size

/** A binary mask: the part of the image that holds it, column after column as run lengths are. */
export class Mask {
  constructor(height, width, x = 0, y = 0, w = 0, h = 0, data = new Uint8Array(w * h)) {
    Object.assign(this, { height, width, x, y, w, h, data });
  }

  static fromRle({ size: [height, width], counts: written }) {
    const counts = readCounts(written);
    let [left, right, top, bottom] = [width, -1, height, -1];
    for (let i = 1, at = counts[0]; i < counts.length; at += counts[i] + (counts[i + 1] || 0), i += 2) {
      if (!counts[i]) continue;
      const last = at + counts[i] - 1;
      const first = Math.floor(at / height);
      const end = Math.floor(last / height);
      left = Math.min(left, first);
      right = Math.max(right, end);
      top = first === end ? Math.min(top, at % height) : 0;
      bottom = first === end ? Math.max(bottom, last % height) : height - 1;
    }
    if (right < 0) return new Mask(height, width);
    const [w, h] = [right - left + 1, bottom - top + 1];
    const data = new Uint8Array(w * h);
    for (let i = 1, at = counts[0]; i < counts.length; at += counts[i] + (counts[i + 1] || 0), i += 2) {
      for (let from = at, to = at + counts[i]; from < to; ) {
        const column = Math.floor(from / height);
        const stop = Math.min(to, (column + 1) * height);
        const start = (column - left) * h - column * height - top;
        data.fill(1, start + from, start + stop);
        from = stop;
      }
    }
    return new Mask(height, width, left, top, w, h, data);
  }

  toRle() {
    const counts = [];
    let done = 0; // up to here runs are written, the last of them of the mask
    const runs = this._runs();
    for (let i = 0; i < runs.length; i += 3) {
      const start = (this.x + runs[i]) * this.height + this.y;
      const [from, to] = [start + runs[i + 1], start + runs[i + 2]];
      if (counts.length && from === done) counts[counts.length - 1] += to - from;
      else counts.push(from - done, to - from);
      done = to;
    }
    const rest = this.height * this.width - done;
    if (rest || !counts.length) counts.push(rest);
    return { size: [this.height, this.width], counts: writeCounts(counts) };
  }

  /** Flat list of column, top and bottom of what is inside, in pixels of this part of the image. */
  _runs() {
    if (this._known) return this._known;
    const { h, data } = this;
    const runs = [];
    for (let at = data.indexOf(1); at >= 0; ) {
      const next = data.indexOf(0, at);
      const end = next < 0 ? data.length : next;
      for (let column = Math.floor(at / h); at < end; column++) {
        const stop = Math.min(end, (column + 1) * h);
        runs.push(column, at - column * h, stop - column * h);
        at = stop;
      }
      at = next < 0 ? -1 : data.indexOf(1, end);
    }
    this._known = runs;
    return runs;
  }

  get isEmpty() {
    return this._runs().length === 0;
  }

  clone() {
    const { height, width, x, y, w, h, data } = this;
    return new Mask(height, width, x, y, w, h, data.slice());
  }

  has(x, y) {
    const [column, row] = [Math.floor(x) - this.x, Math.floor(y) - this.y];
    const inside = column >= 0 && row >= 0 && column < this.w && row < this.h;
    return inside && this.data[column * this.h + row] === 1;
  }

  /** Paints, or with `value` 0 erases, a line with round ends. Changes this mask. */
  stroke(from, to, radius, value) {
    const margin = Math.ceil(radius) + 1;
    if (value) {
      const [a, b] = [Math.min(from.x, to.x) - margin, Math.min(from.y, to.y) - margin];
      const [c, d] = [Math.max(from.x, to.x) + margin, Math.max(from.y, to.y) + margin];
      this._grow(a, b, c, d);
    }
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(1, radius / 3)));
    for (let step = 0; step <= steps; step++) {
      const x = from.x + ((to.x - from.x) * step) / steps;
      const y = from.y + ((to.y - from.y) * step) / steps;
      this._disc(x, y, radius, value);
    }
    this._edges = this._picture = this._known = null;
  }

  _disc(x, y, radius, value) {
    const first = Math.max(this.x, Math.ceil(x - radius - 0.5));
    const last = Math.min(this.x + this.w - 1, Math.floor(x + radius - 0.5));
    for (let column = first; column <= last; column++) {
      const reach = Math.sqrt(Math.max(0, radius * radius - (column + 0.5 - x) ** 2));
      const top = Math.max(this.y, Math.ceil(y - reach - 0.5));
      const bottom = Math.min(this.y + this.h - 1, Math.floor(y + reach - 0.5));
      const start = (column - this.x) * this.h - this.y;
      if (bottom >= top) this.data.fill(value, start + top, start + bottom + 1);
    }
  }

  _grow(left, top, right, bottom) {
    const bounded = (value, most) => Math.max(0, Math.min(most, Math.floor(value)));
    let [a, b] = [bounded(left, this.width), bounded(top, this.height)];
    let [c, d] = [bounded(right, this.width), bounded(bottom, this.height)];
    if (this.w) {
      [a, b] = [Math.min(a, this.x), Math.min(b, this.y)];
      [c, d] = [Math.max(c, this.x + this.w), Math.max(d, this.y + this.h)];
    }
    if (a === this.x && b === this.y && c - a === this.w && d - b === this.h) return;
    const [w, h] = [c - a, d - b];
    const data = new Uint8Array(w * h);
    for (let column = 0; column < this.w; column++) {
      const part = this.data.subarray(column * this.h, (column + 1) * this.h);
      data.set(part, (column + this.x - a) * h + this.y - b);
    }
    Object.assign(this, { x: a, y: b, w, h, data });
  }

  /** The edges between inside and outside, `Lines` in pixels of the image. */
  edges() {
    if (this._edges) return this._edges;
    const lines = [];
    const { x, y, h } = this;
    const line = (a, b, c, d) => lines.push(x + a, y + b, x + c, y + d);
    const runs = this._runs();
    // Of the horizontal edge above each row: its first column, and the last one so far.
    const [first, last] = [new Int32Array(h + 1), new Int32Array(h + 1).fill(-2)];
    let before = []; // the rows at which the column before changes
    let at = -1;
    for (let i = 0; i < runs.length; ) {
      const column = runs[i];
      const changes = [];
      for (; runs[i] === column; i += 3) changes.push(runs[i + 1], runs[i + 2]);
      if (column !== at + 1) {
        unlike(before, [], (top, bottom) => line(at + 1, top, at + 1, bottom));
        before = [];
      }
      unlike(before, changes, (top, bottom) => line(column, top, column, bottom));
      for (const row of changes) {
        if (last[row] !== column - 1) {
          if (last[row] >= 0) line(first[row], row, last[row] + 1, row);
          first[row] = column;
        }
        last[row] = column;
      }
      [before, at] = [changes, column];
    }
    unlike(before, [], (top, bottom) => line(at + 1, top, at + 1, bottom));
    last.forEach((column, row) => column >= 0 && line(first[row], row, column + 1, row));
    this._edges = new Lines(lines);
    return this._edges;
  }

  /** The mask in one colour, on a canvas whose rows are the columns of this part of the image. */
  _coloured(colour) {
    if (this._picture?.colour === colour) return this._picture;
    const step = Math.max(1, Math.ceil(Math.sqrt((this.w * this.h) / FILL_PIXELS)));
    const [w, h] = [Math.ceil(this.w / step), Math.ceil(this.h / step)];
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: h, height: w });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(h, w);
    const words = new Uint32Array(pixels.data.buffer);
    const word = wordOf(colour);
    const runs = this._runs();
    for (let i = 0; i < runs.length; i += 3) {
      if (runs[i] % step) continue;
      const start = (runs[i] / step) * h;
      words.fill(word, start + Math.ceil(runs[i + 1] / step), start + Math.ceil(runs[i + 2] / step));
    }
    context.putImageData(pixels, 0, 0);
    this._picture = { colour, canvas, w: w * step, h: h * step };
    return this._picture;
  }

  draw(context, colour, opacity) {
    if (!this.w || !this.h) return;
    const { canvas, w, h } = this._coloured(colour);
    context.save();
    context.globalAlpha = opacity;
    context.transform(0, 1, 1, 0, this.x, this.y); // rows become columns again
    context.drawImage(canvas, 0, 0, h, w);
    context.restore();
  }
}

/** Lines along rows and columns: a flat list of x1, y1, x2, y2, from the lesser to the greater. */
class Lines {
  constructor(list) {
    this.list = list;
  }

  get count() {
    return this.list.length / 4;
  }

  get path() {
    if (this._path) return this._path;
    const { list } = this;
    this._path = new Path2D();
    for (let i = 0; i < list.length; i += 4) {
      this._path.moveTo(list[i], list[i + 1]);
      this._path.lineTo(list[i + 2], list[i + 3]);
    }
    return this._path;
  }

  /** Those seen on a canvas, in its pixels, up to `reach` thick; null if they are more than `most`. */
  within({ width, height }, { a: scale, e: x, f: y }, reach, most) {
    const { list } = this;
    const [left, top] = [(-reach - x) / scale, (-reach - y) / scale];
    const [right, bottom] = [(width + reach - x) / scale, (height + reach - y) / scale];
    const seen = [];
    for (let i = 0; i < list.length; i += 4) {
      if (list[i] > right || list[i + 1] > bottom || list[i + 2] < left || list[i + 3] < top) continue;
      if (seen.length === 4 * most) return null;
      seen.push(list[i] * scale + x, list[i + 1] * scale + y, list[i + 2] * scale + x, list[i + 3] * scale + y);
    }
    return new Lines(seen);
  }

  /**
   * Sets pixels, the words of an image, where a line is that thick, with square ends; `scale`, `x`
   * and `y` tell where on the image a place of the lines is.
   */
  fill(words, { width, height }, { scale, x, y }, thick, word) {
    const { list } = this;
    const [before, after] = [0.5 - thick / 2, 0.5 + thick / 2]; // which rounds, too
    for (let i = 0; i < list.length; i += 4) {
      // Whole numbers by `|`, which the loops below need to be fast; what is negative is cut off.
      const left = Math.max(0, (list[i] * scale + x + before) | 0);
      const top = Math.max(0, (list[i + 1] * scale + y + before) | 0);
      const right = Math.min(width, (list[i + 2] * scale + x + after) | 0);
      const bottom = Math.min(height, (list[i + 3] * scale + y + after) | 0);
      for (let row = top; row < bottom; row++) {
        for (let at = row * width + left, end = row * width + right; at < end; at++) words[at] = word;
      }
    }
  }
}

/** Calls `found(from, to)` where one of two ascending lists of changes is inside, not both. */
function unlike(a, b, found) {
  let [i, j, from] = [0, 0, -1];
  while (i < a.length || j < b.length) {
    const next = i < a.length ? a[i] : Infinity;
    const other = j < b.length ? b[j] : Infinity;
    if (next <= other) i++;
    if (other <= next) j++;
    if (next === other) continue; // both change: unlike as before, or alike as before
    const at = Math.min(next, other);
    if (from < 0) from = at;
    else {
      found(from, at);
      from = -1;
    }
  }
}

/** The mask of a candidate, made when it is first shown. */
function maskOf(candidate) {
  candidate.mask ??= Mask.fromRle(candidate.segmentation);
  return candidate.mask;
}

/** A pixel of a picture of words. */
function wordOf(colour, opacity = 1) {
  const number = parseInt(colour.slice(1), 16);
  const [red, green, blue] = [number >> 16, (number >> 8) & 255, number & 255];
  return (Math.round(255 * opacity) << 24) | (blue << 16) | (green << 8) | red;
}

// --- the canvas ---

const PATH_LINES = 4000; // of an outline that is stroked: with more of them, pixels are faster
const EDGE_WIDTH = 1; // CSS pixels, of what is dark on both sides of a line
const EDGE_OPACITY = 0.55;
const CLICK_REACH = 6; // CSS pixels: a pointer that moves further draws a box
const SETTLED = 150; // ms without a movement, after which the photograph is scaled well
const WHEEL_STEP = 60; // of a wheel's delta, for the next candidate
const EMPTY = Object.freeze({
  ...{ points: [], box: null, candidates: [], chosen: 0, number: null, score: null },
  ...{ mask: null, edited: false, editing: null, waits: false },
});

/**
 * The canvas, within `root`, an element with a size of its own.
 *
 * Events, with their `detail`: `change` (draft, tool, view or proposals changed), `busy`
 * ({text} or {text: null}), `say` ({text}, for people who cannot see the canvas), `fail` ({text}, and
 * {photo, error} where a photograph cannot be opened),
 * `accept` ({segmentation, score, editing, draft}), `accept-proposals` ({proposals}), `pick` ({id}).
 */
export class SegmentCanvas extends EventTarget {
  constructor(root, transport, { colour = "#3b82f6", name = "Photograph", wheelZooms = true } = {}) {
    super();
    Object.assign(this, { root, transport, colour, wheelZooms });
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", name);
    this.canvas.className = "segment-canvas";
    root.append(this.canvas);
    this.id = Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");
    this.tool = "select";
    this.background = false; // whether a plain click is one on the background
    this.brush = 12; // radius, pixels of the photograph
    this.view = { scale: 1, x: 0, y: 0 };
    this.objects = [];
    this._pointers = new Map();
    this._reset();
    this._listen();
  }

  _reset() {
    Object.assign(this, { photo: null, image: null, width: 0, height: 0, ready: false });
    Object.assign(this, { draft: EMPTY, past: [], future: [], proposals: [], proposal: -1 });
    Object.assign(this, { cursor: null, pointer: null, drag: null, corner: null });
    this._held = null; // proposals that came while a mask was being made
    this._refused = []; // drafts that could not be kept, shown one after the other
  }

  // --- what the page around it calls ---

  /** Shows a photograph and has it encoded. Resolves to its {width, height}. */
  async open(photo) {
    this._reset();
    this.objects = [];
    this.photo = photo;
    const opened = (this._opened = {}); // the same photograph may be opened again meanwhile
    this._changed();
    this._tell("busy", { text: "Opening" });
    try {
      const picture = await this.transport.picture(photo);
      const image = await createImageBitmap(picture);
      if (this._opened !== opened) return null;
      Object.assign(this, { image, width: image.width, height: image.height });
      this.brush = Math.max(2, Math.round(Math.max(image.width, image.height) / 80));
      this.fit();
      this._tell("busy", { text: "Encoding" });
      const size = await this.transport.embed(photo, this.id);
      if (this._opened !== opened) return null;
      this.ready = true;
      this._tell("busy", { text: null });
      this._changed();
      this._ask();
      return size;
    } catch (error) {
      if (this._opened === opened) {
        this._tell("busy", { text: null });
        this._tell("fail", { text: error.message, photo, error });
      }
      return null;
    }
  }

  /** The objects to show: [{id, segmentation, colour, name, hidden}]. Masks are kept by identity. */
  setObjects(objects) {
    const known = new Map(this.objects.map((object) => [object.segmentation, object.mask]));
    this.objects = objects.map((object) => ({
      ...object,
      mask: known.get(object.segmentation) || Mask.fromRle(object.segmentation),
    }));
    this._changed();
  }

  setColour(colour) {
    this.colour = colour;
    this._changed();
  }

  setTool(tool) {
    this.tool = tool;
    this._changed();
  }

  setBackground(background) {
    this.background = background;
    this._changed();
  }

  setBrush(radius) {
    this.brush = Math.min(Math.max(1, radius), Math.max(2, Math.max(this.width, this.height) / 4));
    this._changed();
  }

  get hasDraft() {
    const { points, box, mask, editing } = this.draft;
    return points.length > 0 || box !== null || mask !== null || editing !== null || this.draftsWait;
  }

  /** Whether drafts that could not be kept come back after this one. */
  get draftsWait() {
    return this._refused.length > 0;
  }

  /** Whether picking another object would lose something. */
  get hasWork() {
    return this.hasDraft && this.draft !== this._picked;
  }

  get proposalsWait() {
    return this._held !== null;
  }

  get painting() {
    return this.tool === "brush" || this.tool === "eraser";
  }

  get canUndo() {
    return this.past.length > 0;
  }

  get canRedo() {
    return this.future.length > 0;
  }

  /** Adds a point: label 1 for the object, 0 for the background. */
  click(x, y, label) {
    if (!this._inside(x, y)) return;
    const points = [...this.draft.points, { x, y, label }];
    this._prompt({ points });
    this._tell("say", { text: label ? "Point on the object" : "Point on the background" });
  }

  setBox(x1, y1, x2, y2) {
    const [a, c] = [x1, x2].map((x) => Math.max(0, Math.min(this.width, x))).sort((p, q) => p - q);
    const [b, d] = [y1, y2].map((y) => Math.max(0, Math.min(this.height, y))).sort((p, q) => p - q);
    if (c - a < 1 || d - b < 1) return;
    this._prompt({ box: [a, b, c, d] });
    this._tell("say", { text: "Box" });
  }

  choose(index) {
    const { candidates } = this.draft;
    if (!candidates[index] || index === this.draft.chosen || this.draft.waits) return;
    const { score } = candidates[index];
    this._push({ ...this.draft, chosen: index, mask: maskOf(candidates[index]), score, edited: false });
    this._tell("say", { text: `Candidate ${index + 1} of ${candidates.length}` });
  }

  step(by) {
    const count = this.draft.candidates.length;
    if (count > 1) this.choose((this.draft.chosen + by + count) % count);
  }

  undo() {
    if (!this.past.length) return false;
    this.future.push(this.draft);
    this.draft = this.past.pop();
    this._restored("Undone");
    return true;
  }

  redo() {
    if (!this.future.length) return false;
    this.past.push(this.draft);
    this.draft = this.future.pop();
    this._restored("Redone");
    return true;
  }

  /** Forgets the draft, its history and a corner of a box; with `all` also drafts that wait. */
  clear(all = false) {
    if (all) this._refused = [];
    Object.assign(this, { draft: EMPTY, past: [], future: [], corner: null, drag: null });
    this._changed();
  }

  /** Gives the mask of the draft to the page, by `accept`. */
  accept() {
    const { mask, score, editing, edited, waits } = this.draft;
    if (!mask || waits) return false;
    if (mask.isEmpty) {
      this._tell("fail", { text: "The mask is empty." });
      return false;
    }
    const detail = { segmentation: mask.toRle(), score: edited ? null : score, editing, draft: this.draft };
    this.clear();
    this._tell("accept", detail);
    return true;
  }

  /** Takes back a draft that could not be kept: now, or when the one begun meanwhile is done with. */
  restore(draft) {
    this._refused.push(draft);
    this._changed();
  }

  /** Takes an object as the draft, to be corrected. */
  edit(id) {
    const object = this.objects.find((one) => one.id === id);
    if (!object) return;
    this._picked = { ...EMPTY, mask: object.mask, editing: id, edited: true };
    Object.assign(this, { draft: this._picked, past: [], future: [], corner: null, drag: null });
    this._changed();
  }

  async everything() {
    const { photo } = this;
    this._tell("busy", { text: "Looking for everything" });
    try {
      const { proposals } = await this.transport.everything(photo);
      if (this.photo !== photo) return;
      this._held = proposals.map((one) => ({ ...one, mask: Mask.fromRle(one.segmentation) }));
      this._changed();
    } catch (error) {
      if (this.photo === photo) this._tell("fail", { text: error.message });
    } finally {
      if (this.photo === photo) this._tell("busy", { text: null });
      this._changed();
    }
  }

  propose(proposals) {
    this.proposals = proposals;
    this.proposal = proposals.length ? 0 : -1;
    this._tell("say", { text: `${proposals.length} proposals` });
    this._changed();
  }

  /** Accepts, or drops, the proposal of this index, or with null all of them. */
  settle(index, accepted) {
    const chosen = index === null ? this.proposals : [this.proposals[index]].filter(Boolean);
    if (!chosen.length) return;
    this.proposals = this.proposals.filter((one) => !chosen.includes(one));
    this.proposal = this.proposals.length ? Math.min(Math.max(0, index ?? 0), this.proposals.length - 1) : -1;
    if (accepted) this._tell("accept-proposals", { proposals: chosen });
    this._changed();
  }

  highlight(index) {
    this.proposal = index;
    this._changed();
  }

  // --- view ---

  fit() {
    const { clientWidth, clientHeight } = this.root;
    if (!this.width || !clientWidth || !clientHeight) return;
    const scale = Math.min((clientWidth - 24) / this.width, (clientHeight - 24) / this.height, 8);
    this.fitted = true;
    this.view = {
      scale,
      x: (clientWidth - this.width * scale) / 2,
      y: (clientHeight - this.height * scale) / 2,
    };
    this._changed();
  }

  zoom(factor, at = null) {
    const { x: left, y: top, scale } = this.view;
    const { x, y } = at || { x: this.root.clientWidth / 2, y: this.root.clientHeight / 2 };
    const most = Math.max(8, 4 * this._fitScale());
    const to = Math.min(most, Math.max(this._fitScale() / 4, scale * factor));
    this.view = { scale: to, x: x - ((x - left) * to) / scale, y: y - ((y - top) * to) / scale };
    this.fitted = false;
    this._changed();
  }

  pan(dx, dy) {
    this.view = { ...this.view, x: this.view.x + dx, y: this.view.y + dy };
    this.fitted = false;
    this._changed();
  }

  _fitScale() {
    return Math.min(this.root.clientWidth / this.width, this.root.clientHeight / this.height) || 1;
  }

  _toImage({ x, y }) {
    return { x: (x - this.view.x) / this.view.scale, y: (y - this.view.y) / this.view.scale };
  }

  _inside(x, y) {
    return this.image !== null && x >= 0 && y >= 0 && x < this.width && y < this.height;
  }

  // --- prompts ---

  _prompt(change) {
    if (!this.image || this.proposals.length) return;
    this._push({ ...this.draft, ...change, waits: true });
    this._ask();
  }

  _push(draft) {
    this.past.push(this.draft);
    this.future = [];
    this.draft = draft;
    this._changed();
  }

  _restored(text) {
    this._tell("say", { text });
    this._changed();
    if (this.draft.waits) this._ask(); // its answer never came
  }

  /** Asks for the masks of the draft; earlier answers are refined. */
  async _ask() {
    const { photo, draft } = this;
    if (!this.ready || !draft.waits) return;
    const request = {
      photo,
      points: draft.points.map(({ x, y }) => [x, y]),
      labels: draft.points.map(({ label }) => label),
      box: draft.box,
      canvas: this.id,
    };
    if (draft.mask && draft.edited) request.mask = draft.mask.toRle();
    else if (draft.number) request.refine = { number: draft.number, candidate: draft.chosen };
    try {
      const answer = await this.transport.predict(request);
      if (answer === null || this.draft !== draft || this.photo !== photo) return;
      const { number, best: chosen, candidates } = answer;
      const { score } = candidates[chosen];
      const mask = maskOf(candidates[chosen]);
      this.draft = { ...draft, candidates, chosen, number, mask, score, edited: false, waits: false };
      this._draw(); // the next frame may be about to begin: what it shows is then done
      this._changed(true, false);
    } catch (error) {
      if (this.draft !== draft || this.photo !== photo) return;
      this.draft = this.past.pop() || EMPTY; // the click that could not be answered
      this._changed();
      this._tell("fail", { text: error.message });
      this._ask(); // the one before may wait, too: its answer was superseded
    }
  }

  // --- pointers, wheel and keys ---

  _listen() {
    const on = (name, handle, options) => this.canvas.addEventListener(name, handle.bind(this), options);
    on("pointerdown", this._down);
    on("pointermove", this._move);
    on("pointerup", this._up);
    on("pointercancel", this._cancel);
    on("pointerleave", () => {
      this.pointer = null;
      this._changed(false);
    });
    on("keydown", () => this.canvas.classList.add("by-keys"));
    on("contextmenu", (event) => event.preventDefault());
    on("wheel", this._wheel, { passive: false });
    on("blur", () => {
      this.cursor = null;
      this._changed(false);
    });
    this._resized = new ResizeObserver(() => (this.fitted ? this.fit() : this._changed(false)));
    this._resized.observe(this.root);
  }

  destroy() {
    this._resized.disconnect();
    this.canvas.remove();
  }

  _place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  _down(event) {
    if (!this.image) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.classList.remove("by-keys");
    this.cursor = null;
    this.canvas.setPointerCapture(event.pointerId);
    const at = this._place(event);
    this._pointers.set(event.pointerId, at);
    if (this._pointers.size === 2) {
      this._end(false); // a second finger: what the first one began is none
      this.drag = { kind: "pinch" };
      return;
    }
    if (this._pointers.size > 2 || this.drag) return;
    const background = event.button === 2 || event.altKey || event.ctrlKey;
    if (event.button === 1 || this.tool === "pan") this.drag = { kind: "pan", last: at };
    else if (event.button !== 0 && event.button !== 2) this.drag = null;
    else if (this.proposals.length) this.drag = { kind: "proposal", background, start: at };
    else if (this.painting) {
      const erase = (this.tool === "eraser") !== background;
      this._startStroke(at, erase);
    } else this.drag = { kind: "point", background, pick: event.shiftKey, start: at, now: at };
    event.preventDefault();
  }

  _move(event) {
    const at = this._place(event);
    this.pointer = event.pointerType === "touch" ? null : at;
    const before = this._pointers.get(event.pointerId);
    if (before) {
      if (this.drag?.kind === "pinch" && this._pointers.size === 2) this._pinch(event.pointerId, at);
      this._pointers.set(event.pointerId, at);
      if (this.drag?.kind === "pan") {
        this.pan(at.x - this.drag.last.x, at.y - this.drag.last.y);
        this.drag.last = at;
      } else if (this.drag?.kind === "point") this.drag.now = at;
      else if (this.drag?.kind === "stroke") this._stroke(at);
    } else if (this.proposals.length) this.proposal = this._proposalAt(at, this.proposal);
    if (before || this.painting || this.proposals.length) this._changed(false);
  }

  _pinch(id, at) {
    const [[, first], [, second]] = [...this._pointers].map(([key, place]) => [key, key === id ? at : place]);
    const [was, other] = [...this._pointers.values()];
    const spread = (a, b) => Math.max(8, Math.hypot(a.x - b.x, a.y - b.y));
    const middle = (a, b) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
    const [now, then] = [middle(first, second), middle(was, other)];
    this.pan(now.x - then.x, now.y - then.y);
    this.zoom(spread(first, second) / spread(was, other), now);
  }

  _up(event) {
    if (!this._pointers.delete(event.pointerId)) return;
    if (this.drag?.kind === "pinch") {
      if (!this._pointers.size) this.drag = null;
      return;
    }
    this._end(true);
  }

  _cancel(event) {
    this._pointers.delete(event.pointerId);
    this._end(false);
  }

  _end(done) {
    const { drag } = this;
    this.drag = null;
    if (drag?.kind === "stroke") this._endStroke(drag, done);
    if (done && drag?.kind === "point") {
      const [a, b] = [this._toImage(drag.start), this._toImage(drag.now)];
      const moved = Math.hypot(drag.now.x - drag.start.x, drag.now.y - drag.start.y) > CLICK_REACH;
      if (drag.pick && !moved) this._pick(a);
      else if (moved && !drag.background) this.setBox(a.x, a.y, b.x, b.y);
      else this.click(a.x, a.y, drag.background !== this.background ? 0 : 1);
    }
    if (done && drag?.kind === "proposal") {
      const index = this._proposalAt(drag.start, -1);
      if (index >= 0) this.settle(index, !drag.background);
    }
    this._changed(false);
  }

  _pick({ x, y }) {
    const found = this.objects.filter((one) => !one.hidden && one.mask.has(x, y));
    found.sort((a, b) => a.mask.w * a.mask.h - b.mask.w * b.mask.h);
    if (found.length) this._tell("pick", { id: found[0].id });
  }

  _proposalAt(place, otherwise) {
    const { x, y } = this._toImage(place);
    let [best, size] = [otherwise, Infinity];
    this.proposals.forEach(({ mask }, index) => {
      if (mask.w * mask.h < size && mask.has(x, y)) [best, size] = [index, mask.w * mask.h];
    });
    return best;
  }

  _startStroke(at, erase) {
    const mask = this.draft.mask ? this.draft.mask.clone() : new Mask(this.height, this.width);
    this.drag = { kind: "stroke", mask, value: erase ? 0 : 1, last: this._toImage(at) };
    this._stroke(at);
  }

  /** A stroke of one point, by the keyboard. */
  _dab(at, erase) {
    const mask = this.draft.mask ? this.draft.mask.clone() : new Mask(this.height, this.width);
    mask.stroke(at, at, this.brush, erase ? 0 : 1);
    this._endStroke({ mask, value: erase ? 0 : 1 }, !this.proposals.length);
    this._tell("say", { text: erase ? "Erased" : "Painted" });
  }

  _stroke(at) {
    const to = this._toImage(at);
    this.drag.mask.stroke(this.drag.last, to, this.brush, this.drag.value);
    this.drag.last = to;
  }

  _endStroke({ mask, value }, done) {
    if (!done || (!value && !this.draft.mask)) return;
    this._push({ ...this.draft, mask, edited: true, waits: false });
  }

  _wheel(event) {
    const steps = !event.ctrlKey && !event.shiftKey && this.draft.candidates.length > 1;
    if (!this.wheelZooms && !event.ctrlKey && !steps) return;
    event.preventDefault();
    if (!this.image) return;
    const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
    if (steps) {
      this._wheeled = (this._wheeled || 0) + pixels;
      if (Math.abs(this._wheeled) >= WHEEL_STEP) {
        this.step(Math.sign(this._wheeled));
        this._wheeled = 0;
      }
      return;
    }
    this.zoom(Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.0015)), this._place(event));
  }

  /** Does what a key is for. Returns whether it is for anything. */
  key(event) {
    const focused = this.canvas.getRootNode().activeElement === this.canvas;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if ((event.ctrlKey || event.metaKey) || !this.image) return false;
    if (event.key === "Escape" && (this.hasDraft || this.corner || this.proposals.length)) {
      if (this.proposals.length) this.settle(null, false);
      else this.clear();
      return true;
    }
    if (this.proposals.length) {
      const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (by && focused) {
        const count = this.proposals.length;
        this.highlight((this.proposal + by + count) % count);
        this._tell("say", { text: `Proposal ${this.proposal + 1} of ${count}` });
      } else if (event.key === "Enter") this.settle(this.proposal, true);
      else if (event.key === "Delete" || event.key === "Backspace") this.settle(this.proposal, false);
      else return false;
      return true;
    }
    if (event.key === "Enter") return this.accept();
    if (/^[1-3]$/.test(event.key)) {
      this.choose(Number(event.key) - 1);
      return true;
    }
    if (!focused) return false;
    if (arrows[event.key]) {
      this._moveCursor(arrows[event.key], event.altKey ? 1 : event.shiftKey ? 60 : 12);
      return true;
    }
    const act = { " ": 1, f: 1, r: 0, x: "corner" }[event.key.toLowerCase()];
    if (act === undefined) return false;
    if (!this.cursor) this._moveCursor([0, 0], 0);
    const { x, y } = this.cursor;
    if (act === 1 && event.key === " " && this.painting) {
      if (!event.repeat) this._dab({ x, y }, (this.tool === "eraser") !== event.shiftKey);
    } else if (act !== "corner") this.click(x, y, event.key === " " && (event.shiftKey || this.background) ? 0 : act);
    else if (this.corner) {
      const { x: a, y: b } = this.corner;
      this.corner = null;
      this.setBox(a, b, x, y);
    } else {
      this.corner = { x, y };
      this._tell("say", { text: "First corner of a box" });
    }
    this._changed(false);
    return true;
  }

  _moveCursor([dx, dy], distance) {
    const from = this.cursor || { x: this.width / 2, y: this.height / 2 };
    const by = distance / this.view.scale;
    this.cursor = {
      x: Math.max(0, Math.min(this.width - 1e-3, from.x + dx * by)),
      y: Math.max(0, Math.min(this.height - 1e-3, from.y + dy * by)),
    };
    const x = this.cursor.x * this.view.scale + this.view.x;
    const y = this.cursor.y * this.view.scale + this.view.y;
    const beyond = (at, most) => (at < 24 ? 24 - at : at > most - 24 ? most - 24 - at : 0);
    const [right, down] = [beyond(x, this.root.clientWidth), beyond(y, this.root.clientHeight)];
    if (right || down) this.pan(right, down);
    this._tell("say", { text: `${Math.round(this.cursor.x)}, ${Math.round(this.cursor.y)}` });
    this._changed(false);
  }

  // --- drawing ---

  _tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  _changed(tell = true, draw = true) {
    if (this.draftsWait && this.draft === EMPTY && !this.drag && !this.corner) {
      Object.assign(this, { draft: this._refused.shift(), past: [], future: [] });
      tell = true;
    }
    if (this._held && !this.hasDraft && !this.drag && !this.corner) {
      const proposals = this._held;
      this._held = null;
      this.propose(proposals);
    }
    if (tell) this._tell("change", {});
    if (draw) this._frame ??= requestAnimationFrame(() => this._draw());
  }

  _draw() {
    if (this._frame) cancelAnimationFrame(this._frame);
    this._frame = null;
    const { clientWidth: w, clientHeight: h } = this.root;
    const dots = window.devicePixelRatio || 1;
    const { canvas } = this;
    if (canvas.width !== Math.round(w * dots) || canvas.height !== Math.round(h * dots)) {
      canvas.width = Math.round(w * dots);
      canvas.height = Math.round(h * dots);
    }
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    canvas.style.cursor = this._cursorStyle();
    if (!this.image || !canvas.width || !canvas.height) return; // in a tab that is not shown, say
    const { scale, x, y } = this.view;
    context.setTransform(dots * scale, 0, 0, dots * scale, dots * x, dots * y);
    this._drawKept(context);
    context.imageSmoothingEnabled = scale * dots < 2;
    this.proposals.forEach(({ mask }, index) => {
      const chosen = index === this.proposal;
      mask.draw(context, this.colour, chosen ? 0.5 : 0.12);
      this._outline(context, mask, chosen ? this.colour : "#ffffff", chosen ? 2.5 : 1.25, !chosen);
    });
    const mask = this.drag?.kind === "stroke" ? this.drag.mask : this.draft.mask;
    if (mask) {
      mask.draw(context, this.colour, 0.5);
      this._outline(context, mask, this.colour, 2.25);
    }
    this._drawPrompts(context);
    this._drawPointers(context);
  }

  /** The photograph and its objects, drawn once for all frames in which they are the same. */
  _drawKept(context) {
    const view = context.getTransform();
    const photograph = this._photograph(view);
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(this.objects.length ? this._withObjects(photograph, view) : photograph.copy, 0, 0);
    context.restore();
  }

  _withObjects(photograph, view) {
    const { objects, draft } = this;
    const opacity = this.hasDraft || this.proposals.length ? 0.22 : 0.38;
    const made = { photograph, objects, editing: draft.editing, opacity };
    if (this._kept && Object.keys(made).every((key) => this._kept.made[key] === made[key])) return this._kept.copy;
    const { width, height } = this.canvas;
    const copy = this._kept?.copy || document.createElement("canvas");
    Object.assign(copy, { width, height }); // which clears it
    const on = copy.getContext("2d");
    on.drawImage(photograph.copy, 0, 0);
    on.setTransform(view);
    on.imageSmoothingEnabled = view.a < 2;
    for (const { mask, colour, hidden, id } of objects) {
      if (hidden || id === draft.editing) continue;
      mask.draw(on, colour, opacity);
      this._outline(on, mask, colour, 1.5);
    }
    this._kept = { made, copy };
    return copy;
  }

  /** The photograph as it is in view, scaled once for all frames of this view. */
  _photograph({ a: scale, e: x, f: y }) {
    const { width, height } = this.canvas;
    const view = [width, height, scale, x, y].join();
    const moved = this._scaled?.view !== view;
    if (this._scaled?.image !== this.image || moved || this._scaled.settled === false) {
      const copy = this._scaled?.copy || document.createElement("canvas");
      if (copy.width !== width || copy.height !== height) Object.assign(copy, { width, height });
      const settled = !moved || this._scaled?.image !== this.image;
      const on = copy.getContext("2d", { alpha: true });
      on.setTransform(1, 0, 0, 1, 0, 0);
      on.clearRect(0, 0, width, height);
      on.setTransform(scale, 0, 0, scale, x, y);
      on.imageSmoothingEnabled = scale < 4;
      on.imageSmoothingQuality = settled ? "high" : "low";
      on.drawImage(this.image, 0, 0);
      this._scaled = { image: this.image, view, copy, settled };
      clearTimeout(this._settling);
      if (!settled) this._settling = setTimeout(() => this._changed(false), SETTLED);
    }
    return this._scaled;
  }

  _cursorStyle() {
    if (!this.image) return "default";
    if (this.tool === "pan") return this.drag ? "grabbing" : "grab";
    if (this.proposals.length) return "pointer";
    return this.tool === "select" ? "crosshair" : "none";
  }

  /** The outline of a mask; of a ragged one only what is in view, as pixels while that is a lot. */
  _outline(context, mask, colour, width, dashed = false) {
    const lines = mask.edges();
    if (lines.count <= PATH_LINES) return this._line(context, lines.path, colour, width, dashed);
    const [view, dots] = [context.getTransform(), window.devicePixelRatio || 1];
    const { width: w, height: h } = context.canvas;
    const key = [view.a, view.e, view.f, w, h, colour, width].join();
    if (this._ragged?.lines !== lines || this._ragged.key !== key) {
      const seen = lines.within(context.canvas, view, (width / 2 + EDGE_WIDTH) * dots, PATH_LINES);
      const drawn = seen ? null : this._pixels(mask, view, context.canvas, colour, width * dots, EDGE_WIDTH * dots);
      this._ragged = { lines, key, seen, drawn };
    }
    const { seen, drawn } = this._ragged;
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (seen) this._line(context, seen.path, colour, width, dashed, dots);
    else context.drawImage(drawn.canvas, drawn.x, drawn.y);
    context.restore();
  }

  /** What `_line` would stroke of an outline, all in pixels of the screen, on a canvas for its part. */
  _pixels(mask, { a: scale, e, f }, screen, colour, thick, edge) {
    const reach = thick / 2 + edge + 1;
    const x = Math.max(0, Math.floor(mask.x * scale + e - reach));
    const y = Math.max(0, Math.floor(mask.y * scale + f - reach));
    const width = Math.min(screen.width, Math.ceil((mask.x + mask.w) * scale + e + reach)) - x;
    const height = Math.min(screen.height, Math.ceil((mask.y + mask.h) * scale + f + reach)) - y;
    const image = new ImageData(width, height);
    const words = new Uint32Array(image.data.buffer);
    const place = { scale, x: e - x, y: f - y };
    mask.edges().fill(words, image, place, thick + 2 * edge, wordOf("#000000", EDGE_OPACITY));
    mask.edges().fill(words, image, place, thick, wordOf(colour));
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width, height });
    canvas.getContext("2d").putImageData(image, 0, 0);
    return { canvas, x, y };
  }

  /** A line that shows on bright and on dark: coloured, on a dark edge. */
  _line(context, path, colour, width, dashed = false, pixel = 1 / this.view.scale) {
    context.lineCap = "square";
    context.setLineDash([]);
    context.strokeStyle = `rgba(0, 0, 0, ${EDGE_OPACITY})`;
    context.lineWidth = (width + 2 * EDGE_WIDTH) * pixel;
    context.stroke(path);
    context.setLineDash(dashed ? [5 * pixel, 4 * pixel] : []);
    context.strokeStyle = colour;
    context.lineWidth = width * pixel;
    context.stroke(path);
    context.setLineDash([]);
  }

  _drawPrompts(context) {
    const pixel = 1 / this.view.scale;
    let box = this.draft.box;
    if (this.drag?.kind === "point" && !this.drag.background) {
      const [a, b] = [this._toImage(this.drag.start), this._toImage(this.drag.now)];
      if (Math.hypot(b.x - a.x, b.y - a.y) > CLICK_REACH * pixel) box = [a.x, a.y, b.x, b.y];
    } else if (this.corner && this.cursor) box = [this.corner.x, this.corner.y, this.cursor.x, this.cursor.y];
    if (box) {
      const path = new Path2D();
      path.rect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
      this._line(context, path, "#ffffff", 1.5, true);
    }
    for (const { x, y, label } of this.draft.points) {
      const disc = new Path2D();
      disc.arc(x, y, 7 * pixel, 0, 2 * Math.PI);
      context.fillStyle = label ? "#16a34a" : "#dc2626";
      context.fill(disc);
      context.lineWidth = 4 * pixel;
      context.strokeStyle = "rgba(0, 0, 0, 0.5)";
      context.stroke(disc);
      context.lineWidth = 2 * pixel;
      context.strokeStyle = "#ffffff";
      context.stroke(disc);
      const sign = new Path2D();
      sign.moveTo(x - 3 * pixel, y);
      sign.lineTo(x + 3 * pixel, y);
      if (label) {
        sign.moveTo(x, y - 3 * pixel);
        sign.lineTo(x, y + 3 * pixel);
      }
      context.stroke(sign);
    }
  }

  _drawPointers(context) {
    const pixel = 1 / this.view.scale;
    const at = this.pointer ? this._toImage(this.pointer) : this.cursor;
    if (at && this.painting && !this.proposals.length) {
      const { x, y } = at;
      const ring = new Path2D();
      ring.arc(x, y, this.brush, 0, 2 * Math.PI);
      this._line(context, ring, this.tool === "brush" ? "#ffffff" : "#fca5a5", 1.5);
    }
    if (this.cursor) {
      const { x, y } = this.cursor;
      const cross = new Path2D();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        cross.moveTo(x + 5 * dx * pixel, y + 5 * dy * pixel);
        cross.lineTo(x + 18 * dx * pixel, y + 18 * dy * pixel);
      }
      this._line(context, cross, "#fde047", 2);
    }
  }
}
