// Runs the image encoder and the mask decoder that `keras-sam export --image-input` wrote.

const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
const MODEL = "./model/";
const LONGEST = 1600; // pixels of a side, above which a photograph is scaled down
const COLOUR = [20, 120, 255];

class Sentence extends Error {} // an error whose message is for the person at the page

class Segmenter {
  static async load() {
    const self = new Segmenter();
    self.ort = await import(RUNTIME).catch(() => {
      throw new Sentence("onnxruntime-web is missing: run npm install in this page's folder, and reload.");
    });
    self.ort.env.wasm.proxy = true; // in a thread of its own, so that the page stays alive
    const manifest = JSON.parse(new TextDecoder().decode(await download("manifest.json")));
    if (manifest.runtime !== "onnx" || !manifest.settings.image_input) {
      throw new Sentence("The model's encoder does not take photographs: export it with --format onnx --image-input.");
    }
    self.model = manifest.model;
    self.stretch = manifest.preprocessing.stretch;
    for (const part of ["image_encoder", "mask_decoder"]) {
      self[part] = await self.ort.InferenceSession.create(await download(`${part}.onnx`)).catch((error) => {
        throw new Sentence(`onnxruntime-web cannot load ${part}.onnx: ${error.message}`);
      });
    }
    return self;
  }

  /** Features of an ImageData. */
  async encode({ data, width, height }) {
    const pixels = new Uint8Array(width * height * 3);
    for (let i = 0, j = 0; i < data.length; i++) if (i % 4 < 3) pixels[j++] = data[i];
    const image = new this.ort.Tensor("uint8", pixels, [height, width, 3]);
    const features = await this.image_encoder.run({ image });
    return { features, width, height };
  }

  /**
   * The mask of points `{x, y, label}`, in pixels of the image. `before` is what the points before
   * the last gave: its logits are a prompt, too.
   */
  async segment({ features, width, height }, points, before) {
    const { Tensor } = this.ort;
    const [frameHeight, frameWidth] = this.model.image_shape;
    const scale = Math.min(frameHeight / height, frameWidth / width);
    const scaled = (side) => Math.max(1, Math.floor(side * scale + 0.5)) / side;
    const perX = this.stretch ? frameWidth / width : scaled(width);
    const perY = this.stretch ? frameHeight / height : scaled(height);
    // Where there is no box, Meta's decoder wants a point that is none.
    const coords = [...points.flatMap(({ x, y }) => [x * perX, y * perY]), 0, 0];
    const labels = [...points.map(({ label }) => label), -1];
    const [maskHeight, maskWidth] = this.model.mask_size;
    const logits = before ? before.logits.slice() : new Float32Array(maskHeight * maskWidth);
    // Whatever a run is given goes to the other thread for good: copies of what is needed again.
    const copies = Object.entries(features).map(([name, { type, data, dims }]) => [
      name,
      new Tensor(type, data.slice(), dims),
    ]);
    const given = {
      ...Object.fromEntries(copies),
      point_coords: new Tensor("float32", Float32Array.from(coords), [1, labels.length, 2]),
      point_labels: new Tensor("float32", Float32Array.from(labels), [1, labels.length]),
      mask_input: new Tensor("float32", logits, [1, 1, maskHeight, maskWidth]),
      has_mask_input: new Tensor("float32", Float32Array.of(before ? 1 : 0), [1]),
      orig_im_size: new Tensor("float32", Float32Array.of(height, width), [2]),
    };
    const inputs = Object.fromEntries(this.mask_decoder.inputNames.map((name) => [name, given[name]]));
    const { masks, iou_predictions, low_res_masks } = await this.mask_decoder.run(inputs);
    // One click may mean a whole or a part of it: the best of three. More are one thing: mask 0.
    const scores = Array.from(iou_predictions.data);
    const rest = scores.slice(1);
    const chosen = points.length === 1 && rest.length ? 1 + rest.indexOf(Math.max(...rest)) : 0;
    const take = (tensor) => {
      const size = tensor.dims[2] * tensor.dims[3];
      return tensor.data.slice(chosen * size, (chosen + 1) * size);
    };
    const inside = Uint8Array.from(take(masks), (value) => value > this.model.mask_threshold);
    return { inside, logits: take(low_res_masks), score: scores[chosen] };
  }
}

async function download(name) {
  const response = await fetch(MODEL + name).catch(() => null);
  if (!response?.ok) {
    throw new Sentence(
      `${MODEL.slice(2)}${name} is missing: run keras-sam export --model sam_tiny_demo ` +
        "--format onnx --image-input --out model in this page's folder, and reload.",
    );
  }
  return new Uint8Array(await response.arrayBuffer());
}

// --- the page ---

const at = (id) => document.getElementById(id);
let segmenter = null;
let encoded = null; // the photograph's features and size
let clicks = []; // each with the result of it and those before it, as soon as it is there
let cursor = { x: 0, y: 0 };

// One thing after the other, in the order in which it was asked for.
let work = Promise.resolve();
function enqueue(task) {
  work = work.then(task).catch((error) => {
    if (!(error instanceof Sentence)) console.error(error);
    say(error instanceof Sentence ? error.message : `That did not work: ${error.message ?? error}`, true);
  });
}

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

async function timed(promise) {
  const began = performance.now();
  const result = await promise;
  const spent = performance.now() - began;
  return [result, spent < 1000 ? `${Math.round(spent)} ms` : `${(spent / 1000).toFixed(1)} s`];
}

async function open(file) {
  if (!segmenter) throw new Sentence("Without a model there is no mask: see to it first, and reload.");
  say(`Reading ${file.name}…`);
  const picture = await createImageBitmap(file).catch(() => {
    throw new Sentence(`${file.name} is not a picture that this browser can read.`);
  });
  const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const size = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
  for (const id of ["photo", "mask"]) [at(id).width, at(id).height] = size;
  const context = at("photo").getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, ...size);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, ...size);
  picture.close();
  encoded = null;
  clicks = [];
  cursor = { x: size[0] >> 1, y: size[1] >> 1 };
  at("stage").style.setProperty("--ratio", size[0] / size[1]);
  at("drop").hidden = true;
  at("stage").hidden = false;
  draw();
  say("Encoding the photograph…");
  let duration;
  [encoded, duration] = await timed(segmenter.encode(context.getImageData(0, 0, ...size)));
  draw();
  say(`Photograph encoded in ${duration}. Click on something.`);
}

async function click(x, y, label) {
  if (!encoded) return;
  say("Looking for it…");
  const before = clicks.at(-1)?.result;
  clicks.push({ x, y, label });
  draw();
  let result, duration;
  try {
    [result, duration] = await timed(segmenter.segment(encoded, clicks, before));
  } catch (error) {
    clicks.pop();
    draw();
    throw error;
  }
  clicks.at(-1).result = result;
  draw();
  const part = result.inside.reduce((sum, value) => sum + value, 0) / result.inside.length;
  say(`Mask in ${duration}: ${(100 * part).toFixed(1)} % of the picture, score ${result.score.toFixed(2)}.`);
}

function undo(count) {
  clicks.length = Math.max(0, clicks.length - count);
  draw();
  say(clicks.length ? `Back to ${clicks.length} click${clicks.length > 1 ? "s" : ""}.` : "Click on something.");
}

function draw() {
  const { width, height } = at("mask");
  const overlay = new ImageData(width, height);
  const inside = clicks.findLast(({ result }) => result)?.result.inside;
  if (inside) {
    const rim = Math.max(1, Math.round(Math.max(width, height) / 500));
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        if (!inside[i]) continue;
        const edge =
          (x >= rim && !inside[i - rim]) || (x + rim < width && !inside[i + rim]) ||
          (y >= rim && !inside[i - rim * width]) || (y + rim < height && !inside[i + rim * width]);
        overlay.data.set([...COLOUR, edge ? 255 : 110], 4 * i);
      }
    }
  }
  at("mask").getContext("2d").putImageData(overlay, 0, 0);
  const place = (element, { x, y }) => {
    element.style.left = `${(100 * x) / width}%`;
    element.style.top = `${(100 * y) / height}%`;
    return element;
  };
  at("dots").replaceChildren(
    ...clicks.map((click) => {
      const dot = place(document.createElement("span"), click);
      dot.className = click.label ? "dot" : "dot remove";
      dot.textContent = click.label ? "+" : "−";
      return dot;
    }),
  );
  place(at("cursor"), cursor);
  at("undo").disabled = at("clear").disabled = !clicks.length;
  at("way").disabled = !encoded;
}

function pointed(event) {
  const box = at("photo").getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * at("photo").width;
  const y = ((event.clientY - box.top) / box.height) * at("photo").height;
  const removes = event.type === "contextmenu" || at("remove").checked;
  event.preventDefault();
  enqueue(() => click(x, y, removes ? 0 : 1));
}

function pressed(event) {
  const step = event.shiftKey ? 1 : Math.max(1, Math.round(at("photo").width / 50));
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
  if (dx || dy) {
    cursor.x = Math.min(at("photo").width - 1, Math.max(0, cursor.x + dx * step));
    cursor.y = Math.min(at("photo").height - 1, Math.max(0, cursor.y + dy * step));
    draw();
  } else if (event.key === "Enter") {
    const { x, y } = cursor;
    enqueue(() => click(x, y, event.shiftKey || at("remove").checked ? 0 : 1));
  } else if (event.key === "Backspace") {
    enqueue(() => undo(1));
  } else {
    return;
  }
  event.preventDefault();
}

at("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) enqueue(() => open(file));
  target.value = ""; // the same one may be chosen again
});
at("stage").addEventListener("click", pointed);
at("stage").addEventListener("contextmenu", pointed);
at("stage").addEventListener("keydown", pressed);
at("undo").addEventListener("click", () => enqueue(() => undo(1)));
at("clear").addEventListener("click", () => enqueue(() => undo(clicks.length)));
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", type === "dragover");
    if (type !== "drop") return;
    const [file] = event.dataTransfer.files;
    enqueue(() => {
      if (!file) throw new Sentence("What was dropped is not a file: save the picture first.");
      return open(file);
    });
  });
}

enqueue(async () => {
  let duration;
  [segmenter, duration] = await timed(Segmenter.load());
  say(`Model loaded in ${duration}. Choose a photograph.`);
});
