// The explorer's page: controls built from a spec, drawings on stages, painting, and one request at a time.
// What a drawing looks like is its stage's affair (Picture, Film, Wave, Spectrum, Chips, Cloud); the page knows units by their numbers alone.

// One request in flight and one waiting, the newest. What may not be lost (a file, a saved picture) queues before it.
// Every request has a number; an answer older than what is shown is not painted.
export class Line {
  constructor(send, { soon = () => {}, late = () => {}, idle = () => {}, patience = 15000 } = {}) {
    Object.assign(this, { send, soon, late, idle, patience, seq: 0, flight: 0, shown: 0, waiting: null, must: [], stuck: false });
  }
  newest(message) { this.waiting = message; this.go(); }
  queue(message, buffers) { this.must.push([message, buffers]); this.go(); }
  get busy() { return Boolean(this.flight || this.waiting || this.must.length); }
  go() {
    if (this.flight && !this.stuck) return;
    let message, buffers;
    if (this.must.length) [message, buffers] = this.must.shift();
    else if (this.waiting) { message = this.waiting; this.waiting = null; } else return;
    this.flight = ++this.seq;
    this.stuck = false;
    this.hush();
    this.early = setTimeout(() => this.soon(), this.patience / 5);
    this.timer = setTimeout(() => { this.stuck = true; this.late(); }, this.patience);
    this.send({ ...message, seq: this.flight }, buffers);
  }
  // Is this answer newer than all that came before? Then it may be painted.
  answered(seq) {
    const fresh = seq > this.shown;
    if (fresh) this.shown = seq;
    if (seq === this.flight) { this.flight = 0; this.stuck = false; this.hush(); }
    this.go();
    if (!this.busy) this.idle();
    return fresh;
  }
  hush() { clearTimeout(this.timer); clearTimeout(this.early); }
  close() { this.hush(); this.waiting = null; this.must = []; }
}

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) {
    if (v === false || v === null || v === undefined) continue;
    if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else if (k in node && k !== "list" && typeof v !== "string") node[k] = v;
    else node.setAttribute(k, v);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

// A page of `maskedlab explore` knows its kernel, and may ask whether that is still there; a notebook's page does not.
const EXPIRED = "This page has expired: its Python has ended, because the explorer was opened again or its server was stopped. Reload this page, or open the address that was printed last.";
async function expired() {
  try {
    const { kernelId, baseUrl } = JSON.parse(document.getElementById("jupyter-config-data")?.textContent ?? "{}");
    if (!kernelId) return false;
    return await fetch(`${baseUrl}api/kernels/${kernelId}`).then((r) => !r.ok, () => true);
  } catch { return false; }
}

const bytes = (b) => new Uint8ClampedArray(b.buffer, b.byteOffset, b.byteLength);
let count = 0;
const unique = (name) => `mlx-${name}-${++count}`;

// A place for drawings, and what every stage can do. A stage of a kind of its own says
//   show(meta, buffers)   draw what came from Python        clear(words)   draw nothing, and say why
//   paint(look)           the sharp layer: what is hidden, marked, looked at; see `Page.layers`
//   hit(event)            the unit under the pointer, or -1  between(a, b)  units on the way of a stroke
//   brush(unit, size)     units under a brush                move(unit, key) where an arrow leads
//   cut(mask, was)        hide and show at once, before any answer
//   says(unit)            a unit in words
class Stage {
  constructor(name, title, { focusable = false } = {}) {
    this.name = name;
    this.role = name.split("-").at(-1);       // of several streams, each has an original, what is seen of it, ...
    this.empty = h("p", { class: "mlx-empty" });
    this.stage = h("div", { class: "mlx-stage", role: focusable ? "application" : "img", "aria-label": title }, ...this.inside(), this.empty);
    if (focusable) this.stage.tabIndex = 0;
    this.caption = h("div", { class: "mlx-caption" });
    this.words = h("p", {});
    this.node = h("figure", { class: `mlx-figure mlx-is-${name}` }, h("h3", {}, title), this.stage, this.caption);
  }
  inside() { return []; }
  show() { this.empty.textContent = ""; this.stage.classList.remove("mlx-nothing"); }
  clear(words) { this.empty.textContent = words ?? ""; this.stage.classList.add("mlx-nothing"); }
  between(a, b) { return [b]; }
  brush(unit) { return [unit]; }
  close() {}
  static settle() {}
  static get wide() { return false; }      // does a drawing take the whole width?
  static get waits() { return false; }     // does an answer move the units? Then it is asked for when a stroke has ended
  // A press on a unit begins a stroke, a drag goes on with it.
  hear({ begin, extend, end, look }) {
    this.stage.addEventListener("pointerdown", (e) => {
      const unit = e.button || !begin ? -1 : this.hit(e);
      if (unit < 0) return;
      e.preventDefault();
      this.stage.focus({ preventScroll: true });
      this.stage.setPointerCapture(e.pointerId);
      this.last = unit;
      begin(unit);
    });
    this.stage.addEventListener("pointermove", (e) => {
      if (this.last === undefined || !this.stage.hasPointerCapture(e.pointerId)) return;
      const to = this.hit(e);
      if (to >= 0 && to !== this.last) { extend(this.between(this.last, to)); this.last = to; }
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"])
      this.stage.addEventListener(name, () => { if (this.last !== undefined) { this.last = undefined; end(); } });
    if (look) this.stage.addEventListener("click", (e) => { const unit = this.hit(e); if (unit >= 0) look(unit); });
  }
}

const square = (shape) => (shape.length === 2 ? shape : [1, shape.reduce((a, b) => a * b, 1)]);
const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [254, 232, 56]];
const cividis = (x) => {
  const at = Math.min(1, Math.max(0, x)) * 8, low = Math.min(7, Math.floor(at)), t = at - low;
  return CIVIDIS[low].map((c, i) => Math.round(c + (CIVIDIS[low + 1][i] - c) * t));
};

// A picture at its own resolution, enlarged by the browser without smoothing, and a sharp layer over it.
class Picture extends Stage {
  inside() {
    this.base = h("canvas", { class: "mlx-base", width: 1, height: 1, "aria-hidden": "true" });
    this.over = h("canvas", { class: "mlx-over", "aria-hidden": "true" });
    this.shape = [1, 1];
    return [this.base, this.over];
  }
  static thumb(meta, [buffer]) {
    const canvas = h("canvas", { width: meta.width, height: meta.height, "aria-hidden": "true" });
    canvas.getContext("2d").putImageData(new ImageData(bytes(buffer), meta.width, meta.height), 0, 0);
    return canvas;
  }
  show(meta, [buffer]) {
    if (this.base.width !== meta.width || this.base.height !== meta.height) {
      this.base.width = meta.width; this.base.height = meta.height;
      this.stage.style.aspectRatio = `${meta.width} / ${meta.height}`;
    }
    this.base.getContext("2d").putImageData(new ImageData(bytes(buffer), meta.width, meta.height), 0, 0);
    super.show();
  }
  clear(words) {
    this.base.getContext("2d").clearRect(0, 0, this.base.width, this.base.height);
    super.clear(words);
  }
  hit(e) {
    const box = this.stage.getBoundingClientRect(), [rows, columns] = this.shape;
    const at = (x, n) => Math.min(n - 1, Math.max(0, Math.floor(x * n)));
    return at((e.clientY - box.top) / box.height, rows) * columns + at((e.clientX - box.left) / box.width, columns);
  }
  between(a, b) {
    const n = this.shape[1], [r0, c0, r1, c1] = [Math.floor(a / n), a % n, Math.floor(b / n), b % n];
    const steps = Math.max(Math.abs(r1 - r0), Math.abs(c1 - c0), 1);
    return Array.from({ length: steps }, (_, i) => Math.round(r0 + (r1 - r0) * (i + 1) / steps) * n + Math.round(c0 + (c1 - c0) * (i + 1) / steps));
  }
  brush(unit, size) {
    const [rows, columns] = this.shape, r0 = Math.floor(unit / columns) - Math.floor((size - 1) / 2), c0 = unit % columns - Math.floor((size - 1) / 2), cells = [];
    for (let r = r0; r < r0 + size; r++) for (let c = c0; c < c0 + size; c++) if (r >= 0 && c >= 0 && r < rows && c < columns) cells.push(r * columns + c);
    return cells;
  }
  move(unit, key) {
    const [rows, columns] = this.shape, r = Math.floor(unit / columns), c = unit % columns;
    const [y, x] = { ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1], Home: [r, 0], End: [r, columns - 1] }[key];
    return Math.min(rows - 1, Math.max(0, y)) * columns + Math.min(columns - 1, Math.max(0, x));
  }
  says(unit) { return `Row ${Math.floor(unit / this.shape[1]) + 1}, column ${unit % this.shape[1] + 1}`; }
  // Cut the cells of a mask out of this picture, and put the others back from another.
  cut(mask, was, whole) {
    const pen = this.base.getContext("2d"), [rows, columns] = this.shape, h_ = this.base.height / rows, w = this.base.width / columns;
    for (let i = 0; i < mask.length; i++) if (mask[i] !== was[i]) {
      const x = (i % columns) * w, y = Math.floor(i / columns) * h_;
      if (mask[i]) pen.clearRect(x, y, w, h_); else pen.drawImage(whole.base, x, y, w, h_, x, y, w, h_);
    }
  }
  // Hatched (hidden) or plain (nothing to show) cells, a grid, outlines of cells.
  paint({ shape, mask, paintable, marks, colours, alone, elsewhere }) {
    this.shape = square(shape);
    const covered = !paintable || this.empty.textContent ? false
      : (this.role === "error" && !elsewhere) || (this.role === "returned" && alone);
    const hatched = paintable && this.role === "seen" ? mask : null, plain = covered ? mask.map((m) => 1 - m) : null;
    const box = this.stage.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    const W = Math.max(1, Math.round(box.width * ratio)), H = Math.max(1, Math.round(box.height * ratio));
    if (this.over.width !== W || this.over.height !== H) { this.over.width = W; this.over.height = H; }
    const pen = this.over.getContext("2d");
    pen.clearRect(0, 0, W, H);
    const [rows, columns] = this.shape, x = (c) => Math.round(c * W / columns), y = (r) => Math.round(r * H / rows);
    const cover = (cells, colour) => {
      pen.beginPath();
      cells.forEach((on, i) => {
        const r = Math.floor(i / columns), c = i % columns;
        if (on) pen.rect(x(c), y(r), x(c + 1) - x(c), y(r + 1) - y(r));
      });
      pen.fillStyle = colour;
      pen.fill();
    };
    if (plain) cover(plain, colours.paper);
    if (hatched) {
      pen.save();
      cover(hatched, colours.hole);
      pen.clip();
      pen.strokeStyle = colours.hatch;
      pen.lineWidth = ratio;
      pen.beginPath();
      for (let d = -H; d < W; d += 6 * ratio) { pen.moveTo(d, H); pen.lineTo(d + H, 0); }
      pen.stroke();
      pen.restore();
      if (W / columns < 8 * ratio) pen.strokeStyle = "transparent";      // a finer grid would be all that one sees
      else pen.strokeStyle = colours.grid;
      pen.lineWidth = 1;
      pen.beginPath();
      for (let c = 1; c < columns; c++) { pen.moveTo(x(c) + .5, 0); pen.lineTo(x(c) + .5, H); }
      for (let r = 1; r < rows; r++) { pen.moveTo(0, y(r) + .5); pen.lineTo(W, y(r) + .5); }
      pen.stroke();
    }
    for (const [i, colour] of marks) {       // a light line inside a dark one is seen on any picture
      const r = Math.floor(i / columns), c = i % columns, w = 3 * ratio;
      for (const [width, style] of [[w + 2 * ratio, colours.outline], [w, colour]]) {
        pen.strokeStyle = style; pen.lineWidth = width;
        pen.strokeRect(x(c) + w / 2, y(r) + w / 2, x(c + 1) - x(c) - w, y(r + 1) - y(r) - w);
      }
    }
  }
}

// Moving pictures. A drawing holds all frames of a clip, row by row, and one of them is on view; every stage shows the same one,
// as the clock of the page says; a drawing of one frame stands still. Units have three axes: time steps of one frame or more, rows, columns.
class Film extends Picture {
  show(meta, [buffer]) {
    const columns = Math.ceil(Math.sqrt(meta.frames)), rows = Math.ceil(meta.frames / columns);
    Object.assign(this, { frames: meta.frames, columns, high: meta.height / rows, wide: meta.width / columns });
    this.sheet ??= document.createElement("canvas");
    this.sheet.width = meta.width; this.sheet.height = meta.height;
    this.sheet.getContext("2d").putImageData(new ImageData(bytes(buffer), meta.width, meta.height), 0, 0);
    if (this.base.width !== this.wide || this.base.height !== this.high) {
      this.base.width = this.wide; this.base.height = this.high;
      this.stage.style.aspectRatio = `${this.wide} / ${this.high}`;
    }
    Stage.prototype.show.call(this);
  }
  clear(words) { this.sheet = undefined; super.clear(words); }
  corner(frame) { return [(frame % this.columns) * this.wide, Math.floor(frame / this.columns) * this.high]; }
  get first() { return this.step * this.shape[0] * this.shape[1]; }         // the first unit of the step on view
  paint(look) {
    const [steps, rows, columns] = look.shape, n = rows * columns, { clock } = look;
    Object.assign(this, { clock, steps, step: Math.floor(clock.frame * steps / clock.frames) });
    const pen = this.base.getContext("2d"), first = this.step * n;
    if (this.sheet) {
      pen.clearRect(0, 0, this.wide, this.high);
      pen.drawImage(this.sheet, ...this.corner(Math.min(clock.frame, this.frames - 1)), this.wide, this.high, 0, 0, this.wide, this.high);
    }
    const here = ([unit]) => unit >= first && unit < first + n;
    super.paint({ ...look, shape: [rows, columns], mask: look.mask.slice(first, first + n), marks: look.marks.filter(here).map(([unit, colour]) => [unit - first, colour]) });
  }
  hear(ears) {
    const begin = ears.begin && ((unit) => { if (!this.clock.tube) this.clock.play(false); ears.begin(unit); });
    super.hear({ ...ears, begin });
  }
  hit(e) { return this.first + super.hit(e); }
  between(a, b) { const n = this.shape[0] * this.shape[1]; return super.between(a % n, b % n).map((unit) => this.first + unit); }
  brush(unit, size) {
    const n = this.shape[0] * this.shape[1], cells = super.brush(unit % n, size), at = this.clock.tube ? Array.from({ length: this.steps }, (_, i) => i) : [Math.floor(unit / n)];
    return at.flatMap((step) => cells.map((cell) => step * n + cell));
  }
  move(unit, key) { return this.first + super.move(unit % (this.shape[0] * this.shape[1]), key); }
  // Comma and full stop go a frame back and on; p plays and pauses.
  steer(e) {
    const by = { ",": -1, ".": 1 }[e.key];
    if (by) this.clock.go(this.clock.frame + by);
    else if (e.key === "p") this.clock.play();
    else return false;
    return true;
  }
  says(unit) { const n = this.shape[0] * this.shape[1]; return `Step ${Math.floor(unit / n) + 1}, ${super.says(unit % n).toLowerCase()}`; }
  cut(mask, was, whole) {
    if (!this.sheet) return;
    const pen = this.sheet.getContext("2d"), [rows, columns] = this.shape, h_ = this.high / rows, w = this.wide / columns, long = this.frames / this.steps;
    for (let i = 0; i < mask.length; i++) if (mask[i] !== was[i]) {
      const cell = i % (rows * columns), step = Math.floor(i / (rows * columns));
      for (let frame = step * long; frame < (step + 1) * long; frame++) {
        const [left, top] = this.corner(frame), x = left + (cell % columns) * w, y = top + Math.floor(cell / columns) * h_;
        if (mask[i]) pen.clearRect(x, y, w, h_); else if (whole.sheet) pen.drawImage(whole.sheet, x, y, w, h_, x, y, w, h_);
      }
    }
  }
  close() { this.clock?.play(false); }
}

// What moves all films of a page in step: which frame is on view, whether it goes on by itself, and how fast.
class Clock {
  constructor(turned) { Object.assign(this, { turned, frame: 0, frames: 1, speed: 1, tube: true, timer: 0 }); }
  get playing() { return Boolean(this.timer); }
  go(frame) { this.frame = (frame + this.frames) % this.frames; this.told(); }
  play(on = !this.playing) {
    clearInterval(this.timer);
    this.timer = on ? setInterval(() => this.go(this.frame + 1), 1000 / (12 * this.speed)) : 0;     // the embedded film has 12.5 frames a second
    this.told();
  }
  told() {
    if (this.bar) {
      this.bar.button.textContent = this.playing ? "Pause" : "Play";
      this.bar.slider.max = String(this.frames - 1); this.bar.slider.value = String(this.frame);
      this.bar.words.textContent = `frame ${this.frame + 1} of ${this.frames}`;
    }
    this.turned();
  }
  // Play, a frame back and on, a slider, the speed.
  controls() {
    const button = (text, onclick, name) => h("button", { type: "button", onclick, class: name }, text);
    const slider = h("input", { type: "range", min: "0", max: "0", step: "1", value: "0", class: "mlx-frame", "aria-label": "Frame", oninput: () => { const to = Number(slider.value); this.play(false); this.go(to); } });
    const speed = h("select", { "aria-label": "Speed", class: "mlx-speed", onchange: () => { this.speed = Number(speed.value); if (this.playing) this.play(true); } },
      ...[[.25, "a quarter"], [.5, "half speed"], [1, "full speed"], [2, "twice as fast"]].map(([value, text]) => h("option", { value: String(value), selected: value === 1 }, text)));
    this.bar = { slider, button: button("Play", () => this.play(), "mlx-play"), words: h("span", { class: "mlx-small" }) };
    const step = (text, by, name) => { const b = button(text, () => { this.play(false); this.go(this.frame + by); }, name); b.setAttribute("aria-label", by < 0 ? "A frame back" : "A frame on"); return b; };
    return h("div", { class: "mlx-clock", role: "group", "aria-label": "Time" }, this.bar.button, step("‹", -1, "mlx-back"), step("›", 1, "mlx-on"), slider, speed, this.bar.words);
  }
  // How far a stroke reaches through time.
  reach() {
    const pick = (tube, text) => h("button", { type: "button", "data-tube": String(tube), "aria-pressed": String(tube === this.tube), onclick: () => { this.tube = tube; press(); } }, text);
    const buttons = [pick(false, "this moment"), pick(true, "tube")], press = () => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.tube === String(this.tube))));
    return h("div", { class: "mlx-row mlx-reach" }, h("span", { class: "mlx-segment", role: "group", "aria-label": "How far a stroke reaches through time" }, h("span", {}, "Time"), ...buttons));
  }
}

// A spectrum whose patches are units, [steps, bands]: time goes from left to right, low tones are below.
class Tones extends Picture {
  cell(unit) { const [bands, steps] = this.shape; return (bands - 1 - unit % bands) * steps + Math.floor(unit / bands); }
  unit(cell) { const [bands, steps] = this.shape; return (cell % steps) * bands + bands - 1 - Math.floor(cell / steps); }
  turned(mask) { return mask.map((_, cell) => mask[this.unit(cell)]); }
  paint(look) {
    const [steps, bands] = look.shape;
    this.shape = [bands, steps];
    super.paint({ ...look, shape: this.shape, mask: this.turned(look.mask), marks: look.marks.map(([unit, colour]) => [this.cell(unit), colour]) });
  }
  hit(e) { return this.unit(super.hit(e)); }
  between(a, b) { return super.between(this.cell(a), this.cell(b)).map((cell) => this.unit(cell)); }
  brush(unit, size) { return super.brush(this.cell(unit), size).map((cell) => this.unit(cell)); }
  move(unit, key) { return this.unit(super.move(this.cell(unit), key)); }
  cut(mask, was, whole) { super.cut(this.turned(mask), this.turned(was), whole); }
  says(unit) { const [bands] = this.shape; return `Step ${Math.floor(unit / bands) + 1}, band ${unit % bands + 1} of ${bands}`; }
}

// Sound: time goes from left to right in all drawings, and a line in them goes with what is heard.
class Wave extends Picture {
  // What is said stands under the first two: rows of [begin, end, text], in shares of the clip.
  show(meta, buffers) {
    super.show(meta, buffers);
    this.stage.style.aspectRatio = `${meta.width} / ${2 * meta.height}`;
    if (this.stage.tabIndex < 0) return;
    const rows = meta.labels.map((row) => h("div", {}, ...row.map(([from, to, text]) => h("span", { style: `left:${100 * from}%;width:${100 * (to - from)}%` }, text))));
    if (!this.labels) this.caption.prepend(this.labels = h("div", { class: "mlx-labels" }));
    this.labels.replaceChildren(...rows);
  }
  says(unit) { return `Frame ${unit + 1}`; }
}

// Plays what Python made when it was asked for, after a click or a key and never before; one sound at a time.
class Speaker {
  constructor(root) { Object.assign(this, { root, name: "" }); }
  // The browser lets only a click or a key open it.
  open() { this.context ??= new AudioContext(); this.context.resume(); }
  play(name, rate, samples) {
    this.stop();
    const buffer = this.context.createBuffer(1, samples.length, rate), source = this.context.createBufferSource();
    buffer.copyToChannel(Float32Array.from(samples, (x) => x / 32768), 0);
    source.buffer = buffer;
    source.connect(this.context.destination);
    source.onended = () => { if (source === this.source) this.stop(); };
    source.start();
    Object.assign(this, { name, source });
    this.root.dataset.plays = name;
    const begin = this.context.currentTime, turn = () => {
      this.root.style.setProperty("--mlx-at", String(Math.min(1, (this.context.currentTime - begin) / buffer.duration)));
      this.pending = requestAnimationFrame(turn);
    };
    turn();
    this.root.dispatchEvent(new CustomEvent("maskedlab:playing", { detail: { name, buffer } }));
  }
  stop() {
    cancelAnimationFrame(this.pending);
    if (this.source) { const { source } = this; this.source = null; source.stop(); }
    this.name = "";
    delete this.root.dataset.plays;
  }
  close() { this.stop(); this.context?.close(); this.context = undefined; }
}

// Some seconds of the microphone, decoded.
async function recorded(seconds, begun) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  try {
    const recorder = new MediaRecorder(stream), parts = [], done = new Promise((r) => { recorder.onstop = r; });
    recorder.ondataavailable = (e) => parts.push(e.data);
    recorder.start();
    begun();
    setTimeout(() => recorder.stop(), 1000 * seconds);
    await done;
    const context = new AudioContext(), data = await new Blob(parts).arrayBuffer();
    try { return await context.decodeAudioData(data); } finally { context.close(); }
  } finally { for (const track of stream.getTracks()) track.stop(); }
}

// The first channel as the bytes of a wav file of 16 bits.
function wav(audio) {
  const x = audio.getChannelData(0), file = new DataView(new ArrayBuffer(44 + 2 * x.length)), rate = audio.sampleRate;
  const word = (at, text) => [...text].forEach((c, i) => file.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF"); word(8, "WAVEfmt "); word(36, "data");
  for (const [at, n] of [[4, 36 + 2 * x.length], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * x.length]]) file.setUint32(at, n, true);
  for (const [at, n] of [[20, 1], [22, 1], [32, 2], [34, 16]]) file.setUint16(at, n, true);
  x.forEach((v, i) => file.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, v))), true));
  return new Uint8Array(file.buffer);
}

// Frequencies. The bytes hold what is hidden, too, under an opacity of 0, so that a stroke can show it before any answer;
// and a bin has a twin on the other side of the middle, which goes wherever it goes.
class Spectrum extends Picture {
  show(meta, [buffer]) {
    super.show(meta, [buffer]);
    const all = new Uint8ClampedArray(bytes(buffer));
    for (let i = 3; i < all.length; i += 4) all[i] = 255;
    this.whole ??= document.createElement("canvas");
    this.whole.width = meta.width; this.whole.height = meta.height;
    this.whole.getContext("2d").putImageData(new ImageData(all, meta.width, meta.height), 0, 0);
  }
  cut(mask, was) { super.cut(mask, was, { base: this.whole }); }
  brush(unit, size) {
    const [rows, columns] = this.shape, twin = (i, n) => (2 * Math.floor(n / 2) - i + n) % n;
    return super.brush(unit, size).flatMap((i) => [i, twin(Math.floor(i / columns), rows) * columns + twin(i % columns, columns)]);
  }
  says(unit) {
    const [rows, columns] = this.shape, down = Math.floor(unit / columns) - Math.floor(rows / 2), right = unit % columns - Math.floor(columns / 2);
    return `Frequency ${down} down, ${right} to the right`;
  }
}

// Pieces of a text, one chip each. meta.chips: {unit, text, glued, role, value, note, guesses}; roles are classes of the style sheet.
class Chips extends Stage {
  inside() {
    this.row = h("div", { class: "mlx-chips" });
    this.over = h("canvas", { class: "mlx-over mlx-arcs", "aria-hidden": "true" });
    return [this.row, this.over];
  }
  static get wide() { return true; }
  static get waits() { return true; }
  static thumb(meta) { return h("span", { class: "mlx-line" }, meta.text); }
  show(meta) {
    this.meta = meta;
    this.chips = new Map();
    const words = [];
    for (const c of meta.chips) {
      const lines = [h("span", { class: "mlx-piece" }, c.text)];
      if (c.note) lines.push(h("small", {}, c.note));
      const node = h("span", { class: `mlx-chip mlx-r-${c.role}${c.glued ? " mlx-glued" : ""}`, "data-unit": String(c.unit) }, ...lines);
      if (c.value !== null && c.value !== undefined) {
        const [r, g, b] = cividis(c.value);
        node.style.background = `rgb(${r}, ${g}, ${b})`;
        node.style.color = .299 * r + .587 * g + .114 * b > 120 ? "#14171b" : "#ffffff";
      }
      this.chips.set(c.unit, node);
      if (c.glued && words.length) words.at(-1).append(node); else words.push(h("span", { class: "mlx-word" }, node));      // a word stays in one line
    }
    this.row.replaceChildren(...words);
    this.said?.remove();
    if (meta.words) this.caption.prepend(this.said = h("p", {}, meta.words));
    this.guesses?.remove();
    const asked = meta.chips.filter((c) => c.guesses);
    if (asked.length) {
      this.guesses = h("div", { class: "mlx-guesses", role: "list", "aria-label": "Likeliest pieces at each hidden place" }, ...asked.map((c) =>
        h("div", { class: "mlx-guess", role: "listitem", "data-guess": String(c.unit) }, h("b", {}, "for ", h("q", {}, c.was)), ...c.guesses.map(([text, p]) =>
          h("span", { class: text === c.was ? "mlx-right" : "", style: `--mlx-length:${Math.max(1, 100 * p)}%` }, h("span", {}, text), h("i", {}, p < .005 ? "<1 %" : `${Math.round(100 * p)} %`))))));
      this.caption.prepend(this.guesses);
    }
    super.show();
  }
  clear(words) {
    this.row.replaceChildren(); this.guesses?.remove(); this.said?.remove();
    this.chips = new Map(); this.meta = null;
    super.clear(words);
  }
  // The same unit is as wide in every row, so that the rows lie beneath each other.
  static settle(stages) {
    const pen = (Chips.pen ??= document.createElement("canvas").getContext("2d")), widths = new Map();
    const wide = (text, font) => {
      const key = font + text;
      if (!(Chips.known ??= new Map()).has(key)) { pen.font = font; Chips.known.set(key, pen.measureText(text).width); }
      return Chips.known.get(key);
    };
    const drawn = stages.filter((s) => s.meta);
    if (!drawn.length) return;
    const family = getComputedStyle(drawn[0].stage).fontFamily;
    for (const s of drawn) for (const c of s.meta.chips) {
      const w = Math.max(wide(c.text, `16px ${family}`), c.note ? wide(c.note, `12px ${family}`) : 0);
      widths.set(c.unit, Math.max(widths.get(c.unit) ?? 0, w));
    }
    for (const s of drawn) for (const [unit, node] of s.chips) node.style.minWidth = `${Math.ceil(widths.get(unit)) + 14}px`;
  }
  hit(e) {
    const node = document.elementFromPoint(e.clientX, e.clientY)?.closest?.(".mlx-chip");
    return node && this.row.contains(node) ? Number(node.dataset.unit) : -1;
  }
  between(a, b) { const step = a < b ? 1 : -1, on = []; for (let i = a + step; i !== b + step; i += step) on.push(i); return on; }
  move(unit, key) {
    const units = [...(this.chips?.keys() ?? [])], at = Math.max(0, units.indexOf(unit));
    const flat = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: units.length - 1 }[key];
    if (flat !== undefined) return units[Math.min(units.length - 1, Math.max(0, flat))] ?? 0;
    const here = this.chips.get(units[at]), middle = here.offsetLeft + here.offsetWidth / 2;      // up and down: the nearest chip of the next line
    const lines = units.filter((u) => (key === "ArrowUp" ? this.chips.get(u).offsetTop < here.offsetTop : this.chips.get(u).offsetTop > here.offsetTop));
    if (!lines.length) return units[at];
    const tops = lines.map((u) => this.chips.get(u).offsetTop), top = key === "ArrowUp" ? Math.max(...tops) : Math.min(...tops);
    const far = (u) => Math.abs(this.chips.get(u).offsetLeft + this.chips.get(u).offsetWidth / 2 - middle);
    return lines.filter((u) => this.chips.get(u).offsetTop === top).reduce((a, b) => (far(b) < far(a) ? b : a));
  }
  says(unit) { return this.meta?.chips.find((c) => c.unit === unit)?.was ?? `Piece ${unit}`; }
  cut(mask, was, whole) {
    for (const [unit, node] of this.chips ?? []) if (mask[unit] !== was[unit]) {
      node.className = node.className.replace(/mlx-r-\S+/, mask[unit] ? "mlx-r-hidden" : "mlx-r-plain");
      node.firstChild.textContent = mask[unit] ? "" : whole.chips.get(unit)?.firstChild.textContent ?? "";
    }
  }
  paint({ marks, colours }) {
    for (const node of this.chips?.values() ?? []) { node.style.outline = ""; node.style.boxShadow = ""; }
    for (const [i, colour] of marks) {
      const node = this.chips?.get(i);
      if (node) { node.style.outline = `3px solid ${colour}`; node.style.boxShadow = `0 0 0 5px ${colours.outline}`; }
    }
    const box = this.stage.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    const W = Math.round(box.width * ratio), H = Math.round(box.height * ratio);
    this.over.width = W; this.over.height = H;
    const from = this.chips?.get(this.meta?.from);
    if (!from) return;
    const pen = this.over.getContext("2d"), at = (n) => [n.offsetLeft + n.offsetWidth / 2, n.offsetTop];
    pen.scale(ratio, ratio);
    const strongest = this.meta.chips.filter((c) => c.value > .05 && c.unit !== this.meta.from).sort((a, b) => b.value - a.value).slice(0, 8);
    for (const c of strongest) {
      const [x0, y0] = at(from), [x1, y1] = at(this.chips.get(c.unit)), up = Math.min(y0, y1) - Math.min(26, 10 + Math.abs(x0 - x1) / 12);
      pen.beginPath();
      pen.moveTo(x0, y0);
      pen.bezierCurveTo(x0, up, x1, up, x1, y1);
      pen.strokeStyle = colours.accent;
      pen.globalAlpha = .35 + .65 * c.value;
      pen.lineWidth = 1 + 4 * c.value;
      pen.stroke();
    }
  }
}

// A cloud of points that turns. buffers: float32 positions [n, 3], uint8 role [n], uint8 value [n], int16 unit [n] (-1: none).
// Roles: 0 plain, 1 hidden, 2 predicted, 3 by value, 4 faint, 5 in no group. meta.centres: one [x, y, z] a unit; meta.frame: the middle, and 1 over the radius. All clouds of a page turn together.
class Cloud extends Stage {
  inside() {
    this.over = h("canvas", { class: "mlx-over", "aria-hidden": "true" });
    return [this.over];
  }
  static thumb(meta, buffers) {
    const canvas = h("canvas", { width: 96, height: 96, "aria-hidden": "true" }), cloud = Cloud.read(meta, buffers);
    requestAnimationFrame(() => Cloud.draw(canvas, cloud, { yaw: .9, pitch: .3, zoom: 1 }, Cloud.colours(canvas), [], .8));
    return canvas;
  }
  static colours(node) {
    const css = getComputedStyle(node), get = (n) => css.getPropertyValue(n).trim();
    return [get("--mlx-point"), get("--mlx-hidden"), get("--mlx-predicted"), null, get("--mlx-faint"), get("--mlx-neither")];
  }
  static read(meta, [xyz, role, value, unit]) {
    const copy = (b, Kind) => new Kind(b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength));
    return { n: meta.n, frame: meta.frame, centres: meta.centres ?? [], xyz: copy(xyz, Float32Array), role: copy(role, Uint8Array), value: copy(value, Uint8Array), unit: copy(unit, Int16Array) };
  }
  show(meta, buffers) { this.cloud = Cloud.read(meta, buffers); super.show(); this.redraw(); }
  clear(words) { this.cloud = null; this.redraw(); super.clear(words); }
  // z points up; a point is [x to the right, y downwards, depth to the eye].
  static project(x, y, z, cosine, sine, tilt, lift) {
    const across = cosine * x + sine * y, away = -sine * x + cosine * y;
    return [across, -(lift * z) + tilt * away, -(away * lift) - tilt * z];
  }
  static draw(canvas, cloud, camera, colours, marks, big = 1) {
    const pen = canvas.getContext("2d"), W = canvas.width, H = canvas.height;
    pen.clearRect(0, 0, W, H);
    if (!cloud || !camera) return null;
    // The eye stands 3.2 radii away; a ball of radius 1 is then seen a little larger, which `rest` takes back: nothing is cut.
    const [mx, my, mz, fits] = cloud.frame, eye = 3.2, rest = Math.sqrt(1 - eye ** -2), scale = Math.min(W, H) * .45 * camera.zoom * rest, cosine = Math.cos(camera.yaw), sine = Math.sin(camera.yaw), tilt = Math.sin(camera.pitch), lift = Math.cos(camera.pitch);
    const at = new Float32Array(3 * cloud.n), order = Array.from({ length: cloud.n }, (_, i) => i);
    for (let i = 0; i < cloud.n; i++) {
      const [x, y, depth] = Cloud.project((cloud.xyz[3 * i] - mx) * fits, (cloud.xyz[3 * i + 1] - my) * fits, (cloud.xyz[3 * i + 2] - mz) * fits, cosine, sine, tilt, lift);
      const near = eye / (eye - depth);                       // a little perspective
      at[3 * i] = W / 2 + x * scale * near; at[3 * i + 1] = H / 2 + y * scale * near; at[3 * i + 2] = depth;
    }
    order.sort((a, b) => at[3 * a + 2] - at[3 * b + 2]);
    const radius = Math.max(1.1, Math.min(W, H) / 115) * big, marked = new Map(marks);
    for (const i of order) {
      const near = Math.min(1, Math.max(0, (at[3 * i + 2] + 1) / 2)), role = cloud.role[i];
      const r = radius * (.75 + .5 * near) * (role === 1 || role === 2 ? 1.15 : role === 4 ? .75 : 1);
      if (marked.has(cloud.unit[i]) && role !== 4) { pen.globalAlpha = 1; pen.fillStyle = marked.get(cloud.unit[i]); pen.beginPath(); pen.arc(at[3 * i], at[3 * i + 1], r * 1.9, 0, 7); pen.fill(); }
      pen.globalAlpha = role === 4 ? .5 : .4 + .6 * near;
      pen.fillStyle = role === 3 ? `rgb(${cividis(cloud.value[i] / 255)})` : colours[role];
      if (role === 1) { pen.fillRect(at[3 * i] - r, at[3 * i + 1] - r, 2 * r, 2 * r); continue; }       // squares: hidden is told by more than a colour
      pen.beginPath(); pen.arc(at[3 * i], at[3 * i + 1], r, 0, 7); pen.fill();
    }
    pen.globalAlpha = 1;
    return at;
  }
  redraw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => { this.pending = 0; this.now(); });
  }
  now() {
    const box = this.stage.getBoundingClientRect(), ratio = window.devicePixelRatio || 1, W = Math.max(1, Math.round(box.width * ratio)), H = Math.max(1, Math.round(box.height * ratio));
    if (this.over.width !== W || this.over.height !== H) { this.over.width = W; this.over.height = H; }
    this.at = Cloud.draw(this.over, this.cloud, this.camera, Cloud.colours(this.stage), this.marks ?? []);
  }
  paint({ marks, camera }) {
    this.marks = marks; this.camera = camera;
    cancelAnimationFrame(this.pending); this.pending = 0;
    this.now();
  }
  hit(e) {
    const box = this.stage.getBoundingClientRect(), ratio = this.over.width / box.width, x = (e.clientX - box.left) * ratio, y = (e.clientY - box.top) * ratio;
    let best = -1, score = 16 * ratio;
    for (let i = 0; i < (this.at ? this.cloud.n : 0); i++) {
      if (this.cloud.unit[i] < 0) continue;
      const d = Math.hypot(this.at[3 * i] - x, this.at[3 * i + 1] - y);
      if (d < 16 * ratio && d - 6 * ratio * this.at[3 * i + 2] < score) { score = d - 6 * ratio * this.at[3 * i + 2]; best = this.cloud.unit[i]; }
    }
    return best;
  }
  // A drag turns all clouds; a press without a drag is a click on a unit.
  hear({ begin, end, look, turned }) {
    let from = null;
    this.stage.addEventListener("pointerdown", (e) => {
      if (e.button) return;
      e.preventDefault();
      if (this.stage.tabIndex >= 0) this.stage.focus({ preventScroll: true });
      this.stage.setPointerCapture(e.pointerId);
      from = { x: e.clientX, y: e.clientY, moved: false };
    });
    this.stage.addEventListener("pointermove", (e) => {
      if (!from) return;
      const dx = e.clientX - from.x, dy = e.clientY - from.y;
      if (!from.moved && Math.hypot(dx, dy) < 4) return;
      this.turn(-dx / 120, dy / 120);
      Object.assign(from, { x: e.clientX, y: e.clientY, moved: true });
      turned();
    });
    this.stage.addEventListener("pointerup", (e) => {
      const clicked = from && !from.moved;
      from = null;
      const unit = clicked ? this.hit(e) : -1;
      if (unit < 0) return;
      if (look) look(unit); else if (begin) { begin(unit); end(); }
    });
    this.stage.addEventListener("pointercancel", () => { from = null; });
  }
  turn(yaw, pitch) { this.camera.yaw += yaw; this.camera.pitch = Math.min(1.5, Math.max(-1.5, this.camera.pitch + pitch)); }
  // Shift and an arrow turn; + and - come nearer and go away. True where the key was one of these.
  steer(e) {
    const by = { ArrowLeft: [-.2, 0], ArrowRight: [.2, 0], ArrowUp: [0, .2], ArrowDown: [0, -.2] }[e.key];
    if (by && e.shiftKey) this.turn(...by);
    else if (e.key === "+" || e.key === "-") this.camera.zoom = Math.min(3, Math.max(.6, this.camera.zoom * (e.key === "+" ? 1.15 : 1 / 1.15)));
    else return false;
    return true;
  }
  move(unit, key) {
    const c = this.cloud?.centres ?? [];
    if (!c.length) return unit;
    if (key === "Home" || key === "End") return key === "Home" ? 0 : c.length - 1;
    const cosine = Math.cos(this.camera.yaw), sine = Math.sin(this.camera.yaw), tilt = Math.sin(this.camera.pitch), lift = Math.cos(this.camera.pitch);
    const flat = c.map((p) => Cloud.project(...p, cosine, sine, tilt, lift)), [x, y] = flat[unit], [ax, ay] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    let best = unit, score = Infinity;
    flat.forEach(([px, py], i) => {
      const along = (px - x) * ax + (py - y) * ay, aside = Math.abs((px - x) * ay) + Math.abs((py - y) * ax);
      if (i !== unit && along > 1e-6 && along + 2 * aside < score) { score = along + 2 * aside; best = i; }
    });
    return best;
  }
  says(unit) { return `Group ${unit}`; }
  cut(mask, was) {
    if (!this.cloud) return;
    for (let i = 0; i < this.cloud.n; i++) { const u = this.cloud.unit[i]; if (u >= 0 && mask[u] !== was[u]) this.cloud.role[i] = mask[u] ? 1 : 0; }
  }
  close() { cancelAnimationFrame(this.pending); }
}

const STAGES = { picture: Picture, film: Film, wave: Wave, tones: Tones, spectrum: Spectrum, chips: Chips, cloud: Cloud };

class Page {
  constructor(model, el) {
    this.model = model;
    this.id = `${Date.now()}-${Math.random()}`;
    this.line = new Line((m, buffers) => model.send({ ...m, view: this.id }, undefined, buffers), {
      soon: async () => { this.over ||= await expired(); if (this.over) this.trouble(EXPIRED); },
      late: () => { if (!this.over) this.trouble("Python has not answered for 15 seconds: another cell may be running, or the kernel has stopped."); },
      idle: () => this.rest(),
    });
    this.state = null; this.spec = null; this.shape = [1, 1]; this.mask = new Uint8Array(1); this.free = new Uint8Array(1);
    this.brush = 1; this.cursor = {}; this.where = {}; this.scores = {}; this.stages = {}; this.camera = { yaw: .9, pitch: .3, zoom: 1 };
    this.clock = new Clock(() => this.ticked());
    this.build(el);
    this.onMessage = (message, buffers) => this.receive(message, buffers);
    model.on("msg:custom", this.onMessage);
    this.speaker = new Speaker(this.root);
    this.watchTheme();
    this.line.queue({ kind: "open" });
  }

  // ---- building

  build(el) {
    this.live = h("div", { class: "mlx-hear", role: "status", "aria-live": "polite" });
    this.alert = h("div", { class: "mlx-alert", role: "alert", hidden: true });
    this.method = h("select", { id: unique("method"), class: "mlx-method", onchange: () => this.line.queue({ kind: "open", recipe: this.method.value }) });
    this.about = h("div", { class: "mlx-about" });
    this.set = h("select", { id: unique("set"), class: "mlx-set", onchange: () => this.choose({ set: this.set.value, index: 0 }, true) });
    this.thumbs = h("div", { class: "mlx-thumbs", role: "group" });
    this.own = h("div", { class: "mlx-own" });
    this.strategy = h("select", { id: unique("strategy"), class: "mlx-strategy", onchange: () => this.pickStrategy() });
    this.fields = h("div", { class: "mlx-fields" });
    this.seed = h("input", { id: unique("seed"), class: "mlx-seed", type: "number", min: 0, step: 1, value: "0",
      oninput: () => this.choose({ seed: this.seed.value === "" ? 0 : Number(this.seed.value), painted: null }) });
    const label = (text, control) => h("label", { class: "mlx-label", for: control.id }, text);
    const group = (title, name, ...children) => h("section", { class: `mlx-group mlx-the-${name}` }, h("h3", {}, title), ...children);

    const button = (text, onclick, extra = {}) => h("button", { type: "button", onclick, ...extra }, text);

    this.bars = h("div", { class: "mlx-bars" });
    this.verdict = h("p", { class: "mlx-verdict" });
    this.measure = h("p", { class: "mlx-small" });
    this.close_ = h("figure", { class: "mlx-figure mlx-close" }, h("h3", {}, "How close?"), this.measure, this.bars, this.verdict);
    this.main = h("div", { class: "mlx-main" });
    this.keys = h("p", { class: "mlx-keys mlx-small" });
    this.menu = h("h3", {});

    this.code = h("input", { class: "mlx-code", readOnly: true, "aria-label": "One line of Python that recreates this page", spellcheck: "false", onfocus: () => this.code.select() });
    this.takes = h("p", { class: "mlx-takes mlx-small", hidden: true });
    this.copyButton = button("Copy as code", () => this.copy(), { class: "mlx-copy" });
    this.saveButton = button("Save picture", () => this.line.queue({ kind: "save", state: this.state }), { class: "mlx-save" });
    this.status = h("p", { class: "mlx-status" });
    this.legend = h("p", { class: "mlx-legend mlx-small" });

    this.root = h("div", { class: "mlx", tabindex: "-1", "data-lm-suppress-shortcuts": "true", "data-painted": "0" },
      h("header", { class: "mlx-head" }, h("h2", {}, "Hide a part, bring it back"), this.legend, this.status),
      this.alert,
      h("div", { class: "mlx-body" },
        // the mask stands first, and in a narrow page above the results: what is moved and what it does are seen at once
        group("Mask", "mask", this.saying = h("div", { class: "mlx-own mlx-said", hidden: true }), this.strategy, this.fields,
          h("div", { class: "mlx-row" }, label("Seed", this.seed), this.seed, button("Another", () => this.another(), { class: "mlx-another" }))),
        this.main,
        this.side = h("div", { class: "mlx-side" },
          group("Method", "method", this.method, this.about),
          h("section", { class: "mlx-group" }, this.menu, this.set, this.thumbs, this.own))),
      h("footer", { class: "mlx-foot" }, this.code, this.copyButton, this.saveButton, this.takes),
      this.keys,
      this.live);
    el.append(this.root);
    this.resize = new ResizeObserver(() => this.layers());
    this.root.addEventListener("keydown", (e) => this.listen(e));
    this.root.addEventListener("dragover", (e) => e.preventDefault());
    this.root.addEventListener("drop", (e) => { e.preventDefault(); if (e.dataTransfer.files.length) this.upload(e.dataTransfer.files[0]); });
  }

  // The stages, and what belongs to the kind of data. Done again when another kind is chosen.
  furnish(spec) {
    this.kind = spec.kind;
    this.speaker.stop();
    for (const s of Object.values(this.stages)) { this.resize.unobserve(s.stage); s.close(); }
    this.Stage = STAGES[spec.stage];
    this.root.className = `mlx mlx-at-${spec.stage}`;
    // What is painted on, and what shows the same units uncovered; of several streams, each has its own.
    this.pairs = Object.entries(spec.paints);
    const whole = new Set(this.pairs.map(([, k]) => k));
    this.stages = Object.fromEntries(Object.entries(spec.titles).map(([k, title]) => [k, new (STAGES[spec.stages[k] ?? spec.stage])(k, title, { focusable: whole.has(k) || k in spec.paints })]));
    this.cursor = Object.fromEntries(this.pairs.flat().map((k) => [k, 0]));
    const { returned, attention } = this.stages, all = Object.values(this.stages);
    const button = (text, onclick, extra = {}) => h("button", { type: "button", onclick, ...extra }, text);
    this.brush = 1;
    this.brushes = [];
    for (const s of all) s.caption.append(s.hint = h("p", {}));
    const moves = all.some((s) => s instanceof Film);
    for (const [k, by] of this.pairs) {
      const seen = this.stages[k], sizes = spec.brushes.map((b) => button(String(b), () => { this.brush = b; this.marks(); }, { "aria-label": `Brush of ${b} by ${b}` }));
      this.brushes.push(...sizes);
      seen.node.classList.add("mlx-paint");
      this.stages[by].node.classList.add("mlx-look");
      seen.caption.append(...[
        h("div", { class: "mlx-row", hidden: sizes.length < 2 }, h("span", { class: "mlx-segment", role: "group", "aria-label": "Brush size" }, h("span", {}, "Brush"), ...sizes)),
        seen instanceof Film ? this.clock.reach() : null,
        h("div", { class: "mlx-row" }, button("Hide all", () => this.paintAll(1, k)), button("Show all", () => this.paintAll(0, k)),
          button("Reset", () => this.reset(), { class: "mlx-reset", title: "Back to the mask of the strategy (key r)" }))].filter(Boolean));
    }
    const radio = (name, options, onpick) => {
      const node = h("span", { class: "mlx-segment mlx-tight", role: "group", "aria-label": name });
      for (const [value, text] of options) node.append(button(text, () => onpick(value), { "data-value": String(value) }));
      return node;
    };
    this.paste = radio("What it returns", spec.paste.length ? [["true", spec.paste[0]], ["false", spec.paste[1]]] : [], (v) => this.choose({ paste: v === "true" }));
    this.statistics = radio("Brightness of normalised patches", [["true", "true"], ["visible", "visible"]], (v) => this.choose({ statistics: v }));
    this.statisticsRow = h("div", { class: "mlx-row", hidden: true }, h("span", { class: "mlx-small" }, "Brightness from:"), this.statistics);
    returned?.caption.append(h("div", { class: "mlx-row", hidden: !spec.paste.length }, this.paste), this.statisticsRow);
    for (const s of all) if (s.role === "error")
      s.caption.append(h("div", { class: "mlx-scale" }, h("span", {}, "0"), h("i", { "aria-hidden": "true" }), s.scale = h("span", {})), h("p", {}, `The loss of each ${spec.one}.`));
    const pick = (name) => h("select", { "aria-label": name, onchange: () => this.lookMore() });
    this.part = pick("Part of the network"); this.layer = pick("Layer"); this.head = pick("Head");
    this.attentionWords = h("p", { "aria-live": "polite" });
    this.attentionRow = h("div", { class: "mlx-row" }, this.part, this.layer, this.head);
    attention?.caption.append(this.attentionRow, this.attentionWords);
    for (const [k, s] of Object.entries(this.stages)) { s.caption.append(s.words); s.node.classList.toggle("mlx-slow", spec.slow.includes(k)); }
    const names = Object.keys(spec.titles), above = 4 * this.pairs.length, first = names.slice(0, above), rest = names.slice(above);
    const nodes = (some) => some.map((k) => this.stages[k].node), wide = this.Stage.wide || this.pairs.length > 1;
    const legend = Object.entries(spec.legend).map(([name, words]) => h("span", {}, h("i", { class: `mlx-key mlx-key-${name}`, "aria-hidden": "true" }), words));
    this.legend.replaceChildren(...legend);
    this.main.replaceChildren(...(moves ? [this.clock.controls()] : []), this.listening(spec.sounds), h("div", { class: "mlx-grid" }, ...nodes(first)), h("div", { class: "mlx-grid mlx-second" }, ...(wide ? [] : [this.close_]), ...nodes(rest)));
    if (wide) this.side.append(this.close_);
    this.menu.textContent = spec.menu;
    this.thumbs.setAttribute("aria-label", spec.menu.endsWith("s") ? spec.menu : `${spec.menu}s`);
    this.measure.textContent = spec.measure.about;
    this.keys.textContent = `Keys: ${spec.keys}`;
    this.ownInput(spec.open);
    for (const s of Object.values(this.stages)) this.resize.observe(s.stage);
    this.hear();
  }

  // What can be heard, a button and a key for each: 1, 2, ...
  listening(sounds) {
    const names = Object.entries(sounds);
    const buttons = names.map(([name, words], i) => h("button", { type: "button", "data-sound": name, onclick: () => this.sound(name) }, h("kbd", {}, String(i + 1)), ` ${words}`));
    return h("div", { class: "mlx-row mlx-sounds", role: "group", "aria-label": "Listen", hidden: !names.length }, h("span", {}, "Listen"), ...buttons);
  }
  // The one that plays is asked for once more: it ends.
  sound(name) {
    if (this.speaker.name === name) { this.speaker.stop(); return; }
    this.speaker.open();
    this.line.queue({ kind: "hear", state: this.state, name });
  }
  listen(e) {
    const name = Object.keys(this.spec?.sounds ?? {})[Number(e.key) - 1];
    if (!name || e.repeat || e.ctrlKey || e.metaKey || e.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(e.target.tagName)) return;
    e.preventDefault();
    this.sound(name);
  }
  onHeard(m, [buffer]) { this.quiet(); this.speaker.play(m.name, m.rate, new Int16Array(bytes(buffer).slice().buffer)); }

  // A field to write in, and a button that uses what is written.
  field({ write, button, placeholder }, use) {
    const area = h("textarea", { class: "mlx-write", rows: 3, "aria-label": write, placeholder: placeholder ?? "", spellcheck: "false" });
    area.addEventListener("keydown", (e) => { e.stopPropagation(); if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) use(area.value); });
    return [area, h("button", { type: "button", class: "mlx-use", onclick: () => use(area.value) }, button ?? "Use it")];
  }
  // Where a method reads words about a sample: those that there are, and one's own. Other words hide other units.
  sayInput(caption) {
    const id = unique("saying"), say = (said) => this.choose({ said, painted: null });
    this.sayings = h("select", { id, class: "mlx-sayings", onchange: () => say(this.sayings.value) });
    this.saying.hidden = !caption.label;
    this.saying.replaceChildren(...(caption.label ? [h("label", { class: "mlx-label", for: id }, caption.label), this.sayings, ...this.field(caption, say)] : []));
  }
  fillSayings(known, said) {
    const all = said === null || known.includes(said) ? known : [...known, said];
    this.sayings.replaceChildren(...all.map((words) => h("option", { value: words }, words)));
    this.sayings.value = said ?? known[0] ?? "";
  }

  // One's own sample: a file, or a field to write in.
  ownInput({ accept, label, write, button, placeholder, voice, seconds }) {
    this.file = null;
    const parts = [];
    if (write) parts.push(...this.field({ write, button, placeholder }, (text) => this.send(text, new TextEncoder().encode(text))));
    if (accept) {
      this.file = h("input", { type: "file", accept, class: "mlx-file", "aria-label": label.replace(" …", ""), onchange: () => this.upload() });
      parts.push(h("label", { class: "mlx-button mlx-open" }, label, this.file));
    }
    if (voice) parts.push(...this.voiceInput(voice, seconds));
    this.own.replaceChildren(...parts);
  }

  // One's own voice, where the browser has a microphone for this page.
  voiceInput(words, seconds) {
    const told = h("p", { class: "mlx-small" }, "Recorded in this page and given to its Python, and to nobody else.");
    if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) { told.textContent = "This browser has no microphone for this page: open a recording instead."; return [told]; }
    const why = { NotAllowedError: "The browser did not allow this page to use the microphone.", NotFoundError: "No microphone was found." };
    const button = h("button", { type: "button", class: "mlx-voice", onclick: async () => {
      button.disabled = true;
      try {
        const data = wav(await recorded(seconds, () => { button.textContent = `Speak now, for ${seconds} seconds …`; }));
        told.replaceChildren(h("a", { href: URL.createObjectURL(new Blob([data], { type: "audio/wav" })), download: "my voice.wav" }, "Save it"), " for the line of code below. ", "Given to this page's Python, and to nobody else.");
        this.send("my voice.wav", data);
      } catch (e) { this.trouble(why[e.name] ?? `The microphone gave nothing that can be read: ${e.message}`); }
      button.textContent = words; button.disabled = false;
    } }, words);
    return [button, told];
  }

  hear() {
    const turned = () => this.turned(), heard = new Set(this.pairs.flat());
    const end = () => {
      const waited = this.waiting;
      this.ink = undefined; this.stroking = false; this.waiting = false;
      if (waited) this.ask(); else if (!this.line.busy) this.rest();
    };
    for (const [k, by] of this.pairs) {
      const seen = this.stages[k], original = this.stages[by];
      seen.hear({ begin: (unit) => {
        if (!this.paintable) return;
        this.stroking = true;
        this.ink = this.within(k, this.mask)[unit] ? 0 : 1;          // the first unit says whether this stroke hides or shows
        this.stroke(k, [unit]);
      }, extend: (units) => { if (this.ink !== undefined) this.stroke(k, units); }, end, turned });
      original.hear({ look: (unit) => { if (this.spec.attention) this.look(by, unit); }, end, turned });
      seen.stage.addEventListener("keydown", (e) => this.key(e, k, true));
      original.stage.addEventListener("keydown", (e) => this.key(e, by, false));
      for (const p of [seen, original]) for (const name of ["focus", "blur"]) p.stage.addEventListener(name, () => this.layers());
    }
    for (const [k, s] of Object.entries(this.stages)) if (!heard.has(k)) s.hear({ end, turned });
  }
  turned() { for (const s of Object.values(this.stages)) s.redraw?.(); }
  // Another frame: the cursors go with it.
  ticked() {
    for (const k of Object.keys(this.cursor)) if (this.stages[k] instanceof Film) {
      const [steps, ...rest] = this.span(k).shape, n = rest.reduce((a, b) => a * b, 1), step = Math.floor(this.clock.frame * steps / this.clock.frames);
      this.cursor[k] = step * n + this.cursor[k] % n;
    }
    this.layers();
  }

  // Units of a drawing: where they begin among all, and their layout. Of one stream these are all units.
  span(k) {
    const [start, shape] = this.where[this.spec.streams[k]] ?? [0, this.shape];
    return { start, shape, end: start + shape.reduce((a, b) => a * b, 1) };
  }
  within(k, mask) { const { start, end } = this.span(k); return mask.slice(start, end); }

  watchTheme() {
    this.theme = () => this.layers();
    this.dark = window.matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", this.theme);
    this.observer = new MutationObserver(this.theme);
    this.observer.observe(document.body, { attributes: true });
    this.observer.observe(document.documentElement, { attributes: true });
  }

  close() {
    this.model.off("msg:custom", this.onMessage);
    this.clock.play(false); this.speaker.close();
    for (const s of Object.values(this.stages)) s.close();
    this.resize.disconnect(); this.observer.disconnect(); this.dark.removeEventListener("change", this.theme);
    clearTimeout(this.resting); clearTimeout(this.telling); this.line.close();
  }

  // ---- asking and answering

  choose(changes, thumbs = false) {
    // Units of another sample are other units, unless all samples have the same layout.
    if (thumbs || ("index" in changes)) this.speaker.stop();
    if (thumbs || ("index" in changes)) this.state = { ...this.state, look: null, said: null, ...(this.spec.fixed ? {} : { painted: null }) };
    this.state = { ...this.state, ...changes };
    this.marks();
    if (thumbs) this.line.queue({ kind: "thumbs", recipe: this.state.recipe, set: this.state.set });
    this.ask();
  }
  ask() { clearTimeout(this.resting); this.line.newest({ kind: "draw", state: this.state }); }
  // When nothing is asked any more, there is time for the slower baseline.
  rest() {
    clearTimeout(this.resting);
    if (!this.state || this.smooth === this.drawn || this.broken) return;
    this.resting = setTimeout(() => { if (!this.line.busy && this.ink === undefined) this.line.newest({ kind: "slower", state: this.state, of: this.drawn }); }, 120);
  }

  receive(message, buffers) {
    if (message.view !== this.id) return;
    const doors = { spec: "onSpec", drawn: "onDrawn", slowed: "onSlowed", thumbs: "onThumbs", filed: "onFiled", heard: "onHeard", saved: "onSaved", trouble: "onTrouble" };
    const fresh = message.seq > this.line.shown;
    if (doors[message.kind] && (fresh || !["drawn", "slowed"].includes(message.kind))) this[doors[message.kind]](message, buffers);
    this.line.answered(message.seq);
  }

  onSpec({ spec, state }) {
    this.spec = spec; this.state = state; this.drawn = 0; this.smooth = 0;
    if (this.kind !== spec.kind) this.furnish(spec);
    const fill = (select, options) => { select.replaceChildren(...options.map(([value, text]) => h("option", { value }, text))); };
    const kinds = [...new Set(spec.recipes.map((r) => r.kind))];
    this.method.replaceChildren(...kinds.map((kind) => h("optgroup", { label: kind }, ...spec.recipes.filter((r) => r.kind === kind).map((r) => h("option", { value: r.key }, r.key)))));
    const million = (spec.parameters / 1e6).toFixed(1);
    this.about.replaceChildren(
      h("p", { class: "mlx-title" }, spec.title),
      h("p", {}, spec.note, " ", `${million} million parameters. `, h("a", { href: spec.link, target: "_blank", rel: "noopener" }, "Paper")),
      h("details", {}, h("summary", {}, "What it does"), h("dl", {}, ...spec.answers.flatMap(([q, a]) => [h("dt", {}, q), h("dd", {}, a)]))));
    fill(this.strategy, [...spec.strategies.map((s) => [s.key, s.label]), ["painted", "Painted by hand"]]);
    fill(this.part, spec.parts.map((p) => [p, p])); this.part.hidden = !spec.parts.length;
    this.statisticsRow.hidden = !spec.statistics.length;
    this.sayInput(spec.caption);
    for (const [k, s] of Object.entries(this.stages)) s.hint.textContent = spec.hints[k] ?? "";
    this.buildFields();
    this.fillSets(spec.sets);
    this.marks();
    this.line.queue({ kind: "thumbs", recipe: state.recipe, set: state.set });
    this.ask();
  }

  fillSets(sets) {
    this.set.replaceChildren(...sets.map((s) => h("option", { value: s }, s)));
    this.set.value = this.state.set;
  }

  // Drawings and their bytes, which lie behind each other.
  unpack(drawings, buffers) {
    let at = 0;
    return drawings.map((d) => [d, buffers.slice(at, at += d.buffers)]);
  }

  onDrawn(m, buffers) {
    const [mask, free, ...rest] = buffers;
    this.quiet();
    this.broken = false;
    this.drawn = m.seq; this.shape = m.shape; this.where = m.streams; this.paintable = m.paintable; this.elsewhere = m.elsewhere;
    this.free = new Uint8Array(bytes(free));
    this.staged = m.staged;
    for (const [d, data] of this.unpack(m.pictures, rest)) this.stages[d.name].show({ ...this.staged, ...d }, data);
    if (m.staged.frames && m.staged.frames !== this.clock.frames) { this.clock.frames = m.staged.frames; this.clock.go(0); }
    const answered = new Uint8Array(bytes(mask)), mine = this.mask;
    this.mask = answered;
    // What was painted since this was asked stays on the page: its own answer is under way.
    if (this.state.painted && String(this.state.painted) !== String(m.state.painted) && mine.length === answered.length) this.cut(mine);
    const has = new Set(m.pictures.map((p) => p.name));
    const silent = { attention: `Click a ${this.spec.one} in the original.` };
    for (const [k, s] of Object.entries(this.stages)) if (!has.has(k) && !this.spec.slow.includes(k)) s.clear(m.notes[k] ?? silent[k]);
    this.attentionWords.textContent = has.has("attention") ? m.notes.attention : "";
    this.attentionRow.hidden = !m.layers;
    if (m.layers) this.fillDepth(m.layers, m.heads, m.part);
    this.scores = { ...m.scores }; this.verdict.textContent = m.verdict;
    this.root.classList.toggle("mlx-stale", this.spec.slow.length > 0);
    this.drawBars();
    this.status.textContent = m.notes[""] ? `${m.status} ${m.notes[""]}` : m.status;
    for (const [k, top] of Object.entries(m.scales)) if (this.stages[k]) this.stages[k].scale.textContent = top.toPrecision(2);
    this.fillSayings(m.sayings, m.state.said);
    this.code.value = m.code; this.takes.textContent = m.takes; this.takes.hidden = !m.takes;
    for (const [k, s] of Object.entries(this.stages)) {
      if (!this.spec.slow.includes(k)) s.words.textContent = m.under[k] ?? "";
      if (m.spoken[k]) s.stage.setAttribute("aria-label", m.spoken[k]);
    }
    this.Stage.settle(Object.values(this.stages));
    this.layers();
    this.tell(this.status.textContent);
    this.root.dataset.painted = String(m.seq);
    if (!this.spec.slow.length) { this.smooth = m.seq; this.root.dataset.rested = String(m.seq); }
    this.root.dispatchEvent(new CustomEvent("maskedlab:painted", { detail: { seq: m.seq, state: m.state, hidden: m.hidden } }));
  }

  onSlowed(m, buffers) {
    if (m.of !== this.drawn) return;
    this.smooth = m.of;
    this.root.classList.remove("mlx-stale");
    for (const [d, data] of this.unpack(m.pictures, buffers)) {
      const s = this.stages[d.name];
      s.show({ ...this.staged, ...d }, data);
      s.words.textContent = m.under[d.name] ?? "";
      s.stage.setAttribute("aria-label", `${this.spec.titles[d.name]}. ${s.words.textContent}`);
    }
    this.scores = { ...this.scores, ...m.scores };
    this.verdict.textContent = m.verdict;
    this.drawBars();
    this.Stage.settle(Object.values(this.stages));
    this.layers();
    this.root.dataset.rested = String(m.of);
  }

  onThumbs(m, buffers) {
    this.fillSets(m.sets);
    if (m.set !== this.state.set) return;
    this.thumbs.replaceChildren(...this.unpack(m.pictures, buffers).map(([d, data], i) =>
      h("button", { type: "button", title: m.names[i], "aria-label": m.names[i], "data-index": String(i), onclick: () => this.choose({ index: i }) }, this.Stage.thumb(d, data))));
    this.marks();
  }

  onFiled(m) { this.fillSets(m.sets); this.choose({ set: m.set, index: 0 }, true); }

  onSaved(m, buffers) {
    const link = h("a", { href: URL.createObjectURL(new Blob([buffers[0]], { type: "image/png" })), download: m.name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    this.quiet();
  }

  onTrouble(m) {
    this.broken = true;
    if (this.state) this.set.value = this.state.set;
    this.trouble(m.words);
    this.root.dispatchEvent(new CustomEvent("maskedlab:trouble", { detail: { seq: m.seq, words: m.words } }));
  }
  trouble(words) { this.alert.textContent = words; this.alert.hidden = false; }
  quiet() { this.alert.hidden = true; this.alert.textContent = ""; }
  // Spoken when things have come to rest, so that a slider does not talk without end.
  tell(words) { clearTimeout(this.telling); this.telling = setTimeout(() => { this.live.textContent = words; }, 400); }

  // ---- controls

  pickStrategy() {
    const key = this.strategy.value;
    if (key === "painted") { this.setPainted(); return; }
    const s = this.spec.strategies.find((o) => o.key === key);
    this.state = { ...this.state, strategy: key, fields: Object.fromEntries(s.controls.map((c) => [c.name, c.value])), painted: null };
    this.buildFields();
    this.choose({});
  }

  buildFields() {
    const s = this.spec.strategies.find((o) => o.key === this.state.strategy);
    const change = (name, value) => this.choose({ fields: { ...this.state.fields, [name]: value }, painted: null });
    const rows = (s?.controls ?? []).map((c) => {
      const id = unique(c.name), value = this.state.fields[c.name] ?? c.value, name = c.label;
      if (c.kind === "choice") {
        const select = h("select", { id, "data-field": c.name, onchange: () => change(c.name, c.choices[select.selectedIndex]) },
          ...c.choices.map((o) => h("option", { value: String(o) }, String(o))));
        select.selectedIndex = c.choices.indexOf(value);
        return h("div", { class: "mlx-field" }, h("label", { for: id }, name), select);
      }
      if (c.kind === "bool") {
        const box = h("input", { id, type: "checkbox", "data-field": c.name, checked: value, onchange: () => change(c.name, box.checked) });
        return h("div", { class: "mlx-field mlx-check" }, box, h("label", { for: id }, name));
      }
      const number = h("input", { type: "number", class: "mlx-number", step: String(c.step), value: String(value), "data-number": c.name, "aria-label": `${name}, as a number`,
        oninput: () => { if (number.value === "") return; slider.value = number.value; change(c.name, Number(number.value)); } });
      const slider = h("input", { id, type: "range", min: String(c.low), max: String(c.high), step: String(c.step), value: String(value), "data-field": c.name,
        oninput: () => { number.value = slider.value; change(c.name, Number(slider.value)); } });
      return h("div", { class: "mlx-field" }, h("label", { for: id }, name), number, slider);
    });
    // the first field; and where there is a strategy for each stream, that of each
    const field = (c) => c.name.split(".").at(-1), of = (on) => rows.filter((_, i) => (field(s.controls[i]) === field(s.controls[0])) === on), more = of(false);
    this.fields.replaceChildren(...(s?.about ? [h("p", { class: "mlx-small" }, s.about)] : []), ...of(true),
      ...(more.length ? [h("details", { class: "mlx-more", open: this.more ?? false, ontoggle: (e) => { this.more = e.target.open; } }, h("summary", {}, "More"), ...more)] : []));
  }

  another() { this.seed.value = String(Math.floor(Math.random() * 10000)); this.choose({ seed: Number(this.seed.value), painted: null }); }

  // What is chosen, as the controls show it.
  marks() {
    if (!this.state) return;
    const press = (buttons, on) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(on(b))));
    press([...this.thumbs.children], (b) => Number(b.dataset.index) === this.state.index);
    press(this.brushes, (b) => Number(b.textContent) === this.brush);
    press([...this.paste.children], (b) => b.dataset.value === String(this.state.paste));
    press([...this.statistics.children], (b) => b.dataset.value === this.state.statistics);
    this.method.value = this.state.recipe;
    this.strategy.value = this.state.painted ? "painted" : this.state.strategy;
    if (document.activeElement !== this.seed) this.seed.value = String(this.state.seed);
    this.root.classList.toggle("mlx-byhand", Boolean(this.state.painted));
  }

  fillDepth(layers, heads, part) {
    const numbers = (select, n, all, one) => {
      if (select.options.length === n + 1) return;
      select.replaceChildren(h("option", { value: "-1" }, all), ...Array.from({ length: n }, (_, i) => h("option", { value: String(i) }, `${one} ${i + 1}`)));
    };
    numbers(this.layer, layers, "all layers", "layer");
    numbers(this.head, heads, "all heads", "head");
    this.layer.value = String(Math.min(this.state.layer, layers - 1));
    this.head.value = String(Math.min(this.state.head, heads - 1));
    if (part) this.part.value = part;      // not always the one that was chosen: the encoder never gets what is hidden
  }
  lookMore() { this.choose({ part: this.part.value || null, layer: Number(this.layer.value || -1), head: Number(this.head.value || -1) }); }
  look(k, cell) { this.cursor[k] = cell; this.choose({ look: this.span(k).start + cell }); }

  // ---- painting

  stroke(k, units) {
    const mask = this.mask.slice(), { start } = this.span(k);
    for (const unit of units) for (const i of this.stages[k].brush(unit, this.brush)) if (this.free[start + i]) mask[start + i] = this.ink;
    this.cursor[k] = units.at(-1);
    this.put(mask);
  }
  paintAll(ink, k) {
    const { start, end } = this.span(k);
    if (this.paintable) this.put(this.mask.map((m, i) => (i < start || i >= end ? m : ink && this.free[i] ? 1 : 0)));
  }
  setPainted() { this.put(this.mask); }
  // The drawing changes at once; the network's answer follows.
  put(mask) {
    this.cut(mask);
    const painted = [];
    mask.forEach((m, i) => { if (m) painted.push(i); });
    this.layers();
    if (!this.stroking || !this.Stage.waits) { this.choose({ painted }); return; }
    this.state = { ...this.state, painted };
    this.waiting = true;
    this.marks();
  }
  cut(mask) {
    for (const [k, by] of this.pairs) this.stages[k].cut(this.within(k, mask), this.within(k, this.mask), this.stages[by]);
    this.mask = mask;
  }
  reset() { this.choose({ painted: null }); }

  key(e, k, paints) {
    const stage = this.stages[k], i = this.cursor[k];
    if (e.ctrlKey || e.metaKey || e.altKey || !this.paintable) return;
    if (stage.steer?.(e)) this.turned();
    else if (["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End"].includes(e.key)) { this.cursor[k] = stage.move(i, e.key); this.layers(); this.say(k); }
    else if (e.key === " " || e.key === "Enter") {
      if (!paints) { if (this.spec.attention) this.look(k, i); }
      else { this.ink = this.within(k, this.mask)[i] ? 0 : 1; this.stroke(k, [i]); this.ink = undefined; this.say(k); }
    } else if (e.key === "r" && paints) this.reset();
    else return;
    e.preventDefault();
    e.stopPropagation();
  }
  say(k) {
    const i = this.cursor[k], at = this.span(k).start + i, by = this.spec.paints[k] ?? k;
    clearTimeout(this.telling);
    this.live.textContent = `${this.stages[by].says(i)}, ${this.mask[at] ? "hidden" : this.free[at] ? "visible" : "never hidden"}.`;
  }

  // ---- drawing

  layers() {
    if (!this.drawn) return;
    const css = getComputedStyle(this.root), get = (n) => css.getPropertyValue(n).trim();
    const colours = { paper: get("--mlx-paper"), hole: get("--mlx-hole"), hatch: get("--mlx-lines"), grid: get("--mlx-grid"), outline: get("--mlx-outline"), accent: get("--mlx-accent") };
    const look = this.state.look === null ? [] : [[this.state.look, get("--mlx-mark")]];
    for (const [k, s] of Object.entries(this.stages)) {
      const marks = k === "original" || (k === "attention" && !s.empty.textContent) ? [...look] : [];
      if (k in this.cursor && document.activeElement === s.stage) marks.push([this.cursor[k], get("--mlx-cursor")]);
      s.paint({ shape: this.span(k).shape, mask: this.within(k, this.mask), paintable: this.paintable, marks, colours, alone: !this.state.paste, elsewhere: this.elsewhere, camera: this.camera, clock: this.clock });
    }
  }

  drawBars() {
    const known = Object.values(this.scores).filter((x) => x !== null && x !== undefined), { top, digits } = this.spec.measure;
    const most = Math.max(top, ...known.map((x) => Math.min(x, 1.6 * top)));
    this.bars.replaceChildren(...this.spec.scored.map((name) => {
      const x = this.scores[name], missing = x === null || x === undefined;
      return h("div", { class: `mlx-bar${name.endsWith("network") ? " mlx-network" : ""}` }, h("span", {}, name.replace(/^the /, "")), h("b", {}, missing ? "–" : x.toFixed(digits)),
        h("i", { style: `--mlx-length:${missing ? 0 : Math.max(0, Math.min(1, x / most)) * 100}%` }));
    }));
  }

  // ---- files, clipboard

  async upload(dropped) {
    const file = dropped ?? this.file?.files[0], most = this.spec.open.most;
    if (!file) return;
    if (file.size > most * 1e6) { this.trouble(`${file.name} has ${Math.round(file.size / 1e6)} MB: choose a file of at most ${most} MB.`); return; }
    this.send(file.name, new Uint8Array(await file.arrayBuffer()));
    if (this.file) this.file.value = "";
  }
  send(name, data) {
    const size = 2 ** 20, parts = Math.max(1, Math.ceil(data.length / size));
    for (let part = 0; part < parts; part++)
      this.line.queue({ kind: "file", recipe: this.state.recipe, name, part, parts }, [data.slice(part * size, (part + 1) * size)]);
  }

  async copy() {
    let words = "Copied";
    try { await navigator.clipboard.writeText(this.code.value); } catch {
      this.code.focus(); this.code.select();
      words = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    }
    this.copyButton.textContent = words;
    this.tell(`${words}. ${this.takes.textContent}`);
    setTimeout(() => { this.copyButton.textContent = "Copy as code"; }, 1800);
  }
}

export default {
  render({ model, el }) {
    const page = new Page(model, el);
    return () => page.close();
  },
};
