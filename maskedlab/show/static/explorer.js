// The explorer's page: controls built from a spec, pictures on canvases, painting, and one request at a time.

// One request in flight and one waiting, the newest. What may not be lost (a file, a saved picture) queues before it.
// Every request has a number; an answer older than what is shown is not painted.
export class Line {
  constructor(send, { late = () => {}, idle = () => {}, patience = 15000 } = {}) {
    Object.assign(this, { send, late, idle, patience, seq: 0, flight: 0, shown: 0, waiting: null, must: [], stuck: false });
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
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { this.stuck = true; this.late(); }, this.patience);
    this.send({ ...message, seq: this.flight }, buffers);
  }
  // Is this answer newer than all that came before? Then it may be painted.
  answered(seq) {
    const fresh = seq > this.shown;
    if (fresh) this.shown = seq;
    if (seq === this.flight) { this.flight = 0; this.stuck = false; clearTimeout(this.timer); }
    this.go();
    if (!this.busy) this.idle();
    return fresh;
  }
  close() { clearTimeout(this.timer); this.waiting = null; this.must = []; }
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

const bytes = (b) => new Uint8ClampedArray(b.buffer, b.byteOffset, b.byteLength);
let count = 0;
const unique = (name) => `mlx-${name}-${++count}`;

// A picture at its own resolution, enlarged by the browser without smoothing, and a sharp layer over it.
class Picture {
  constructor(title, { focusable = false, role } = {}) {
    this.base = h("canvas", { class: "mlx-base", width: 1, height: 1, "aria-hidden": "true" });
    this.over = h("canvas", { class: "mlx-over", "aria-hidden": "true" });
    this.empty = h("p", { class: "mlx-empty" });
    this.stage = h("div", { class: "mlx-stage", role: role ?? "img", "aria-label": title }, this.base, this.over, this.empty);
    if (focusable) this.stage.tabIndex = 0;
    this.caption = h("div", { class: "mlx-caption" });
    this.node = h("figure", { class: "mlx-figure" }, h("h3", {}, title), this.stage, this.caption);
  }
  show(meta, buffer) {
    if (this.base.width !== meta.width || this.base.height !== meta.height) {
      this.base.width = meta.width; this.base.height = meta.height;
      this.stage.style.aspectRatio = `${meta.width} / ${meta.height}`;
    }
    this.base.getContext("2d").putImageData(new ImageData(bytes(buffer), meta.width, meta.height), 0, 0);
    this.empty.textContent = "";
    this.stage.classList.remove("mlx-nothing");
  }
  clear(words) {
    this.base.getContext("2d").clearRect(0, 0, this.base.width, this.base.height);
    this.empty.textContent = words;
    this.stage.classList.add("mlx-nothing");
  }
  // The sharp layer: hatched (hidden) or plain (nothing to show) cells, a grid, outlines of cells.
  layer(shape, hatched, marks, colours, grid, plain = null) {
    const box = this.stage.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    const W = Math.max(1, Math.round(box.width * ratio)), H = Math.max(1, Math.round(box.height * ratio));
    if (this.over.width !== W || this.over.height !== H) { this.over.width = W; this.over.height = H; }
    const pen = this.over.getContext("2d");
    pen.clearRect(0, 0, W, H);
    const [rows, columns] = shape, x = (c) => Math.round(c * W / columns), y = (r) => Math.round(r * H / rows);
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
    }
    if (grid) {
      pen.strokeStyle = colours.grid;
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

class Page {
  constructor(model, el) {
    this.model = model;
    this.id = `${Date.now()}-${Math.random()}`;
    this.line = new Line((m, buffers) => model.send({ ...m, view: this.id }, undefined, buffers), {
      late: () => this.trouble("Python has not answered for 15 seconds: another cell may be running, or the kernel has stopped."),
      idle: () => this.rest(),
    });
    this.state = null; this.spec = null; this.shape = [1, 1]; this.mask = new Uint8Array(1); this.free = new Uint8Array(1);
    this.brush = 1; this.cursor = { look: 0, paint: 0 }; this.scores = {};
    this.build(el);
    this.onMessage = (message, buffers) => this.receive(message, buffers);
    model.on("msg:custom", this.onMessage);
    this.watchTheme();
    this.line.queue({ kind: "open" });
  }

  // ---- building

  build(el) {
    this.live = h("div", { class: "mlx-hear", role: "status", "aria-live": "polite" });
    this.alert = h("div", { class: "mlx-alert", role: "alert", hidden: true });
    this.method = h("select", { id: unique("method"), class: "mlx-method", onchange: () => this.line.queue({ kind: "open", recipe: this.method.value }) });
    this.about = h("div", { class: "mlx-about" });
    this.set = h("select", { id: unique("set"), onchange: () => this.choose({ set: this.set.value, index: 0 }, true) });
    this.thumbs = h("div", { class: "mlx-thumbs", role: "group", "aria-label": "Pictures" });
    this.file = h("input", { type: "file", accept: "image/*", class: "mlx-file", "aria-label": "Open your own picture", onchange: () => this.upload() });
    this.strategy = h("select", { id: unique("strategy"), class: "mlx-strategy", onchange: () => this.pickStrategy() });
    this.fields = h("div", { class: "mlx-fields" });
    this.seed = h("input", { id: unique("seed"), class: "mlx-seed", type: "number", min: 0, step: 1, value: "0",
      oninput: () => this.choose({ seed: this.seed.value === "" ? 0 : Number(this.seed.value), painted: null }) });
    const label = (text, control) => h("label", { class: "mlx-label", for: control.id }, text);
    const group = (title, ...children) => h("section", { class: "mlx-group" }, h("h3", {}, title), ...children);

    const pictures = this.pictures = {
      original: new Picture("Original", { focusable: true, role: "application" }),
      seen: new Picture("What the network sees", { focusable: true, role: "application" }),
      returned: new Picture("What it returns"), error: new Picture("Error"),
      mean: new Picture("Mean of the visible"), inpainting: new Picture("Inpainting"), attention: new Picture("Attention"),
    };
    pictures.seen.node.classList.add("mlx-paint");
    pictures.original.node.classList.add("mlx-look");
    const button = (text, onclick, extra = {}) => h("button", { type: "button", onclick, ...extra }, text);
    this.brushes = [1, 2, 3].map((b) => button(String(b), () => { this.brush = b; this.marks(); }, { "aria-label": `Brush of ${b} by ${b}` }));
    pictures.seen.caption.append(
      this.hint = h("p", {}, "Drag here to hide or show."),
      h("div", { class: "mlx-row" }, h("span", { class: "mlx-segment", role: "group", "aria-label": "Brush size" }, h("span", {}, "Brush"), ...this.brushes)),
      h("div", { class: "mlx-row" }, button("Hide all", () => this.paintAll(1)), button("Show all", () => this.paintAll(0)),
        button("Reset", () => this.reset(), { class: "mlx-reset", title: "Back to the mask of the strategy (key r)" })));
    this.lookHint = h("p", {});
    pictures.original.caption.append(this.lookHint);

    const radio = (name, options, onpick) => {
      const node = h("span", { class: "mlx-segment mlx-tight", role: "group", "aria-label": name });
      for (const [value, text] of options) node.append(button(text, () => onpick(value), { "data-value": String(value) }));
      return node;
    };
    this.paste = radio("Returned picture", [["true", "pasted together"], ["false", "predicted only"]], (v) => this.choose({ paste: v === "true" }));
    this.statistics = radio("Brightness of normalised patches", [["true", "true"], ["visible", "visible"]], (v) => this.choose({ statistics: v }));
    this.statisticsRow = h("div", { class: "mlx-row", hidden: true }, h("span", { class: "mlx-small" }, "Brightness from:"), this.statistics);
    this.returnedWords = h("p", {});
    pictures.returned.caption.append(h("div", { class: "mlx-row" }, this.paste), this.statisticsRow, this.returnedWords);
    this.scaleWords = h("span", {});
    pictures.error.caption.append(h("div", { class: "mlx-scale" }, h("span", {}, "0"), h("i", { "aria-hidden": "true" }), this.scaleWords), this.errorWords = h("p", {}));
    this.meanWords = h("p", {}); this.smoothWords = h("p", {});
    pictures.mean.caption.append(this.meanWords); pictures.inpainting.caption.append(this.smoothWords);

    const pick = (name) => h("select", { "aria-label": name, onchange: () => this.lookMore() });
    this.part = pick("Part of the network"); this.layer = pick("Layer"); this.head = pick("Head");
    this.attentionWords = h("p", { "aria-live": "polite" });
    this.attentionRow = h("div", { class: "mlx-row" }, this.part, this.layer, this.head);
    pictures.attention.caption.append(this.attentionRow, this.attentionWords);

    this.bars = h("div", { class: "mlx-bars" });
    this.verdict = h("p", { class: "mlx-verdict" });
    const close = h("figure", { class: "mlx-figure mlx-close" }, h("h3", {}, "How close?"), h("p", { class: "mlx-small" }, "PSNR on hidden pixels in decibels; longer is closer to the original."), this.bars, this.verdict);

    this.code = h("input", { class: "mlx-code", readOnly: true, "aria-label": "One line of Python that recreates this page", spellcheck: "false", onfocus: () => this.code.select() });
    this.copyButton = button("Copy as code", () => this.copy(), { class: "mlx-copy" });
    this.saveButton = button("Save picture", () => this.line.queue({ kind: "save", state: this.state }), { class: "mlx-save" });
    this.status = h("p", { class: "mlx-status" });

    this.root = h("div", { class: "mlx", "data-lm-suppress-shortcuts": "true", "data-painted": "0" },
      h("header", { class: "mlx-head" }, h("h2", {}, "Hide a part, bring it back"), this.status),
      this.alert,
      h("div", { class: "mlx-body" },
        h("div", { class: "mlx-side" },
          group("1  Method", this.method, this.about),
          group("2  Picture", this.set, this.thumbs, h("label", { class: "mlx-button mlx-open" }, "Open your own picture …", this.file)),
          group("3  Mask", this.strategy, this.fields,
            h("div", { class: "mlx-row" }, label("Seed", this.seed), this.seed, button("Another", () => this.another(), { class: "mlx-another" })))),
        h("div", { class: "mlx-main" },
          h("div", { class: "mlx-grid" }, pictures.original.node, pictures.seen.node, pictures.returned.node, pictures.error.node),
          h("div", { class: "mlx-grid mlx-second" }, close, pictures.mean.node, pictures.inpainting.node, pictures.attention.node))),
      h("footer", { class: "mlx-foot" }, this.code, this.copyButton, this.saveButton),
      h("p", { class: "mlx-keys mlx-small" }, "Keys: Tab into a picture; arrows move; in the second picture Space hides or shows, r resets; in the first Space looks."),
      this.live);
    el.append(this.root);
    this.hear();
    this.resize = new ResizeObserver(() => this.layers());
    for (const p of Object.values(pictures)) this.resize.observe(p.stage);
  }

  hear() {
    const { seen, original } = this.pictures;
    seen.stage.addEventListener("pointerdown", (e) => {
      if (!this.paintable || e.button) return;
      e.preventDefault();
      seen.stage.focus({ preventScroll: true });
      seen.stage.setPointerCapture(e.pointerId);
      this.last = this.cell(seen, e);
      this.ink = this.mask[this.last] ? 0 : 1;          // the first cell says whether this stroke hides or shows
      this.stroke([this.last]);
    });
    seen.stage.addEventListener("pointermove", (e) => {
      if (this.ink === undefined || !seen.stage.hasPointerCapture(e.pointerId)) return;
      const to = this.cell(seen, e);
      if (to !== this.last) { this.stroke(this.between(this.last, to)); this.last = to; }
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) seen.stage.addEventListener(name, () => {
      this.ink = undefined;
      if (!this.line.busy) this.rest();
    });
    seen.stage.addEventListener("keydown", (e) => this.key(e, "paint"));
    original.stage.addEventListener("keydown", (e) => this.key(e, "look"));
    original.stage.addEventListener("click", (e) => { if (this.drawable) this.look(this.cell(original, e)); });
    for (const p of [seen, original]) for (const name of ["focus", "blur"]) p.stage.addEventListener(name, () => this.layers());
    this.root.addEventListener("dragover", (e) => e.preventDefault());
    this.root.addEventListener("drop", (e) => { e.preventDefault(); if (e.dataTransfer.files.length) this.upload(e.dataTransfer.files[0]); });
  }

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
    this.resize.disconnect(); this.observer.disconnect(); this.dark.removeEventListener("change", this.theme);
    clearTimeout(this.resting); clearTimeout(this.telling); this.line.close();
  }

  // ---- asking and answering

  choose(changes, thumbs = false) {
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
    this.resting = setTimeout(() => { if (!this.line.busy && this.ink === undefined) this.line.newest({ kind: "inpaint", state: this.state, of: this.drawn }); }, 120);
  }

  receive(message, buffers) {
    if (message.view !== this.id) return;
    const doors = { spec: "onSpec", drawn: "onDrawn", inpainted: "onInpainted", thumbs: "onThumbs", filed: "onFiled", saved: "onSaved", trouble: "onTrouble" };
    const fresh = message.seq > this.line.shown;
    if (doors[message.kind] && (fresh || !["drawn", "inpainted"].includes(message.kind))) this[doors[message.kind]](message, buffers);
    this.line.answered(message.seq);
  }

  onSpec({ spec, state }) {
    this.spec = spec; this.state = state; this.drawn = 0; this.smooth = 0;
    const fill = (select, options) => { select.replaceChildren(...options.map(([value, text]) => h("option", { value }, text))); };
    fill(this.method, spec.recipes.map((r) => [r.key, r.label]));
    const million = (spec.parameters / 1e6).toFixed(1);
    this.about.replaceChildren(
      h("p", { class: "mlx-title" }, spec.title),
      h("p", {}, spec.note, " ", `${million} million parameters. `, h("a", { href: spec.link, target: "_blank", rel: "noopener" }, "Paper")),
      h("details", {}, h("summary", {}, "What it does"), h("dl", {}, ...spec.answers.flatMap(([q, a]) => [h("dt", {}, q), h("dd", {}, a)]))));
    fill(this.strategy, [...spec.strategies.map((s) => [s.key, s.label]), ["painted", "Painted by hand"]]);
    fill(this.part, spec.parts.map((p) => [p, p])); this.part.hidden = !spec.parts.length;
    this.statisticsRow.hidden = !spec.statistics.length;
    this.lookHint.textContent = spec.attention ? `Click a ${spec.one} to see where it looks.` : "";
    this.hint.textContent = `Drag here to hide or show ${spec.many}.`;
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

  onDrawn(m, buffers) {
    const [mask, free, ...pictures] = buffers;
    this.quiet();
    this.broken = false;
    this.drawn = m.seq; this.shape = m.shape.length === 2 ? m.shape : [1, m.shape.reduce((a, b) => a * b, 1)];
    this.drawable = m.paintable; this.paintable = m.paintable;
    this.free = new Uint8Array(bytes(free));
    m.pictures.forEach((p, i) => this.pictures[p.name].show(p, pictures[i]));
    const answered = new Uint8Array(bytes(mask)), mine = this.mask;
    this.mask = answered;
    // What was painted since this was asked stays on the picture: its own answer is under way.
    if (this.state.painted && String(this.state.painted) !== String(m.state.painted) && mine.length === answered.length) this.cut(mine);
    const has = new Set(m.pictures.map((p) => p.name));
    if (!has.has("returned")) this.pictures.returned.clear(m.notes.returned);
    if (!has.has("attention")) this.pictures.attention.clear(m.notes.attention ?? `Click a ${this.spec.one} in the original.`);
    this.attentionWords.textContent = has.has("attention") ? m.notes.attention : "";
    this.attentionRow.hidden = !m.layers;
    if (m.layers) this.fillDepth(m.layers, m.heads);
    if (!this.smooth || m.seq !== this.smooth) { this.scores = { ...m.scores }; this.verdict.textContent = ""; this.root.classList.add("mlx-stale"); }
    this.drawBars();
    this.status.textContent = m.notes[""] ? `${m.status} ${m.notes[""]}` : m.status;
    const db = (x) => (x === null || x === undefined ? "" : `${x.toFixed(1)} dB`);
    const psnr = (x) => (db(x) ? `PSNR ${db(x)}` : "");
    this.returnedWords.textContent = psnr(m.scores.network);
    this.meanWords.textContent = psnr(m.scores["the mean of the visible"]);
    this.errorWords.textContent = `The loss of each hidden ${this.spec.one}.`;
    this.scaleWords.textContent = m.scale.toPrecision(2);
    this.code.value = m.code;
    const counts = `${m.hidden} of ${m.total} ${this.spec.many} hidden`;
    this.pictures.seen.stage.setAttribute("aria-label", `What the network sees: ${counts}. Arrows move, Space hides or shows, r resets.`);
    this.pictures.original.stage.setAttribute("aria-label", `Original. Arrows move, Space shows where a ${this.spec.one} looks.`);
    this.pictures.returned.stage.setAttribute("aria-label", `What the network returns, ${this.state.paste ? "pasted together" : "predicted only"}. PSNR ${db(m.scores.network) || "not defined"}.`);
    this.pictures.error.stage.setAttribute("aria-label", `Error of each hidden ${this.spec.one}, from 0 to ${m.scale.toPrecision(2)}.`);
    this.pictures.mean.stage.setAttribute("aria-label", `Mean of the visible. PSNR ${db(m.scores["the mean of the visible"]) || "not defined"}.`);
    this.layers();
    this.tell(this.status.textContent);
    this.root.dataset.painted = String(m.seq);
    this.root.dispatchEvent(new CustomEvent("maskedlab:painted", { detail: { seq: m.seq, state: m.state, hidden: m.hidden } }));
  }

  onInpainted(m, buffers) {
    if (m.of !== this.drawn) return;
    this.smooth = m.of;
    this.root.classList.remove("mlx-stale");
    this.pictures.inpainting.show(m, buffers[0]);
    const x = m.scores.inpainting;
    this.smoothWords.textContent = x === null ? "" : `PSNR ${x.toFixed(1)} dB`;
    this.pictures.inpainting.stage.setAttribute("aria-label", `Inpainting: the visible pixels continued smoothly. ${this.smoothWords.textContent}`);
    this.scores = { ...this.scores, ...m.scores };
    this.verdict.textContent = m.verdict;
    this.drawBars();
    this.root.dataset.inpainted = String(m.of);
  }

  onThumbs(m, buffers) {
    this.fillSets(m.sets);
    if (m.set !== this.state.set) return;
    this.thumbs.replaceChildren(...m.names.map((name, i) => {
      const canvas = h("canvas", { width: m.sizes[i][1], height: m.sizes[i][0], "aria-hidden": "true" });
      canvas.getContext("2d").putImageData(new ImageData(bytes(buffers[i]), m.sizes[i][1], m.sizes[i][0]), 0, 0);
      return h("button", { type: "button", title: name, "aria-label": name, "data-index": String(i), onclick: () => this.choose({ index: i }) }, canvas);
    }));
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
      const id = unique(c.name), value = this.state.fields[c.name] ?? c.value, name = c.name.replaceAll("_", " ");
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
    const [first, ...more] = rows;
    this.fields.replaceChildren(...(s?.about ? [h("p", { class: "mlx-small" }, s.about)] : []), ...(first ? [first] : []),
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

  fillDepth(layers, heads) {
    const numbers = (select, n, all, one) => {
      if (select.options.length === n + 1) return;
      select.replaceChildren(h("option", { value: "-1" }, all), ...Array.from({ length: n }, (_, i) => h("option", { value: String(i) }, `${one} ${i + 1}`)));
    };
    numbers(this.layer, layers, "all layers", "layer");
    numbers(this.head, heads, "all heads", "head");
    this.layer.value = String(Math.min(this.state.layer, layers - 1));
    this.head.value = String(Math.min(this.state.head, heads - 1));
    if (this.state.part) this.part.value = this.state.part;
  }
  lookMore() { this.choose({ part: this.part.value || null, layer: Number(this.layer.value || -1), head: Number(this.head.value || -1) }); }
  look(cell) { this.cursor.look = cell; this.choose({ look: cell }); }

  // ---- painting

  cell(picture, e) {
    const box = picture.stage.getBoundingClientRect(), [rows, columns] = this.shape;
    const at = (x, n) => Math.min(n - 1, Math.max(0, Math.floor(x * n)));
    return at((e.clientY - box.top) / box.height, rows) * columns + at((e.clientX - box.left) / box.width, columns);
  }
  between(a, b) {
    const n = this.shape[1], [r0, c0, r1, c1] = [Math.floor(a / n), a % n, Math.floor(b / n), b % n];
    const steps = Math.max(Math.abs(r1 - r0), Math.abs(c1 - c0), 1);
    return Array.from({ length: steps }, (_, i) => Math.round(r0 + (r1 - r0) * (i + 1) / steps) * n + Math.round(c0 + (c1 - c0) * (i + 1) / steps));
  }
  stroke(cells) {
    const [rows, columns] = this.shape, mask = this.mask.slice();
    for (const i of cells) {
      const r0 = Math.floor(i / columns) - Math.floor((this.brush - 1) / 2), c0 = i % columns - Math.floor((this.brush - 1) / 2);
      for (let r = r0; r < r0 + this.brush; r++) for (let c = c0; c < c0 + this.brush; c++)
        if (r >= 0 && c >= 0 && r < rows && c < columns && this.free[r * columns + c]) mask[r * columns + c] = this.ink;
    }
    this.cursor.paint = cells.at(-1);
    this.put(mask);
  }
  paintAll(ink) { if (this.paintable) this.put(this.mask.map((_, i) => (ink && this.free[i] ? 1 : 0))); }
  setPainted() { this.put(this.mask); }
  // The picture changes at once; the network's answer follows.
  put(mask) {
    this.cut(mask);
    const painted = [];
    mask.forEach((m, i) => { if (m) painted.push(i); });
    this.layers();
    this.choose({ painted });
  }
  // Cut the cells of a mask out of what the network sees, and put the others back.
  cut(mask) {
    const { base } = this.pictures.seen, original = this.pictures.original.base, pen = base.getContext("2d");
    const [rows, columns] = this.shape, h_ = base.height / rows, w = base.width / columns;
    for (let i = 0; i < mask.length; i++) if (mask[i] !== this.mask[i]) {
      const x = (i % columns) * w, y = Math.floor(i / columns) * h_;
      if (mask[i]) pen.clearRect(x, y, w, h_); else pen.drawImage(original, x, y, w, h_, x, y, w, h_);
    }
    this.mask = mask;
  }
  reset() { this.choose({ painted: null }); }

  key(e, what) {
    if (e.ctrlKey || e.metaKey || e.altKey || !this.drawable) return;
    const [rows, columns] = this.shape, i = this.cursor[what], r = Math.floor(i / columns), c = i % columns;
    const moves = { ArrowUp: [r - 1, c], ArrowDown: [r + 1, c], ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1], Home: [r, 0], End: [r, columns - 1] };
    if (moves[e.key]) {
      const [y, x] = moves[e.key];
      this.cursor[what] = Math.min(rows - 1, Math.max(0, y)) * columns + Math.min(columns - 1, Math.max(0, x));
      this.layers();
      this.say(what);
    } else if (e.key === " " || e.key === "Enter") {
      if (what === "look") this.look(i);
      else { this.ink = this.mask[i] ? 0 : 1; this.stroke([i]); this.ink = undefined; this.say(what); }
    } else if (e.key === "r" && what === "paint") this.reset();
    else return;
    e.preventDefault();
    e.stopPropagation();
  }
  say(what) {
    const i = this.cursor[what], columns = this.shape[1];
    clearTimeout(this.telling);
    this.live.textContent = `Row ${Math.floor(i / columns) + 1}, column ${i % columns + 1}, ${this.mask[i] ? "hidden" : "visible"}.`;
  }

  // ---- drawing

  layers() {
    if (!this.drawn) return;
    const css = getComputedStyle(this.root), get = (n) => css.getPropertyValue(n).trim();
    const colours = { paper: get("--mlx-paper"), hole: get("--mlx-hole"), hatch: get("--mlx-hatch"), grid: get("--mlx-grid"), outline: get("--mlx-outline") };
    const ring = (p, what) => (document.activeElement === p.stage ? [[this.cursor[what], get("--mlx-cursor")]] : []);
    const { original, seen, returned, error, attention } = this.pictures, look = this.state.look === null ? [] : [[this.state.look, get("--mlx-mark")]];
    const open = this.mask.map((m) => 1 - m);
    original.layer(this.shape, null, [...look, ...ring(original, "look")], colours, false);
    seen.layer(this.shape, this.drawable ? this.mask : null, ring(seen, "paint"), colours, this.drawable);
    returned.layer(this.shape, null, [], colours, false, this.drawable && !this.state.paste && !returned.empty.textContent ? open : null);
    error.layer(this.shape, null, [], colours, false, this.drawable ? open : null);
    attention.layer(this.shape, null, attention.empty.textContent ? [] : look, colours, false);
  }

  drawBars() {
    const known = Object.entries(this.scores).filter(([, x]) => x !== null && x !== undefined);
    const order = ["network", "inpainting", "the mean of the visible"];
    const names = order.filter((n) => n === "inpainting" || known.some(([k]) => k === n));
    const top = Math.max(25, ...known.map(([, x]) => Math.min(x, 40)));
    this.bars.replaceChildren(...names.map((name) => {
      const x = this.scores[name], missing = x === null || x === undefined;
      return h("div", { class: `mlx-bar mlx-${name.split(" ").at(-1)}` }, h("span", {}, name.replace("the ", "")), h("b", {}, missing ? "–" : x.toFixed(1)),
        h("i", { style: `--mlx-length:${missing ? 0 : Math.max(0, Math.min(1, x / top)) * 100}%` }));
    }));
  }

  // ---- files, clipboard

  async upload(dropped) {
    const file = dropped ?? this.file.files[0];
    if (!file) return;
    if (file.size > 64e6) { this.trouble(`${file.name} has ${Math.round(file.size / 1e6)} MB: choose a picture of at most 64 MB.`); return; }
    const data = new Uint8Array(await file.arrayBuffer()), size = 2 ** 20, parts = Math.max(1, Math.ceil(data.length / size));
    for (let part = 0; part < parts; part++)
      this.line.queue({ kind: "file", recipe: this.state.recipe, name: file.name, part, parts }, [data.slice(part * size, (part + 1) * size)]);
    this.file.value = "";
  }

  async copy() {
    let words = "Copied";
    try { await navigator.clipboard.writeText(this.code.value); } catch {
      this.code.focus(); this.code.select();
      words = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    }
    this.copyButton.textContent = words;
    this.tell(words);
    setTimeout(() => { this.copyButton.textContent = "Copy as code"; }, 1800);
  }
}

export default {
  render({ model, el }) {
    const page = new Page(model, el);
    return () => page.close();
  },
};
