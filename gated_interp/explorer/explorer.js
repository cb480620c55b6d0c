// The explorer in a browser: draws the view that Python sends and says what the reader asks for.
// In a notebook anywidget calls render(); on the served page the last lines of this file do.
// Labels are only ever put in as text, never as markup.

const element = (tag, props = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
};

// Whether somebody typed what is in a box: the page did not write it, and has not answered it.
const edited = (box, known, answered) => box.value !== known && box.value !== answered;

// Assign what differs only: the browser then lays out nothing for what stays.
const say = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const set = (node, name, value) => {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
};
const pressed = (button, on) => set(button, "aria-pressed", String(on));

const options = (select, names, value) => {
  const wanted = names.map(String);
  if ([...select.options].map((o) => o.value).join("\n") !== wanted.join("\n"))
    select.replaceChildren(...wanted.map((n) => element("option", { value: n }, n)));
  select.value = String(value);
};

const number = (value, digits = 2) => {
  if (value === null) return "not a number";
  const said = value.toFixed(digits);
  return Number(said) === 0 ? said.replace("-", "") : said.replace("-", "−");
};
const signed = (value) => (value >= 0.005 ? "+" : "") + number(value);
const percent = (value) => `${number(100 * value, 0)}%`;

// A ramp [[place, "#rrggbb"], …] as 256 colours.
const ramps = new Map();
const colours = (ramp) => {
  const key = JSON.stringify(ramp);
  if (!ramps.has(key)) {
    const stops = ramp.map(([at, c]) =>
      [at, [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16))]);
    ramps.set(key, Array.from({ length: 256 }, (_, i) => {
      const x = i / 255;
      const j = Math.max(1, stops.findIndex(([at]) => at >= x));
      const [[a, low], [b, high]] = [stops[j - 1], stops[j]];
      return low.map((c, k) => Math.round(c + ((x - a) / (b - a)) * (high[k] - c)));
    }));
  }
  return ramps.get(key);
};
const shade = (ramp, x) => colours(ramp)[Math.round(255 * Math.min(1, Math.max(0, x)))];
const dark = ([r, g, b]) => 0.3 * r + 0.59 * g + 0.11 * b < 140;
const hue = (h, count) => `hsl(${Math.round((360 * h) / count)} 75% ${h % 2 ? 32 : 45}%)`;
const css = (rgb) => `rgb(${rgb.join(" ")})`;

// What is typed beside a question.
const HINTS = { "a token": "one token", "a difference": "two tokens",
  "the loss on a span": "first and last position" };

class Explorer {
  constructor(host, ask, address) {
    this.ask = ask;          // ask({do: …}): tell Python
    this.address = address;  // (link) => what a reader copies
    this.host = host;
    host.replaceChildren();
    host.classList.add("gi-explorer");
    // JupyterLab's shortcuts would take the keys.
    host.dataset.lmSuppressShortcuts = "true";
    this.notes = new Notes(host, ask);
    this.file = new SavedFile(host, ask, (words) => say(this.message, words));
    this.bar();
    this.models = element("div", { className: "gi-models" });
    this.legend = element("div", { className: "gi-legend" });
    this.strip = element("div", { className: "gi-strip" });
    this.second = new SecondPrompt(ask);
    this.dialog();
    host.append(this.top, this.message, this.tokens, this.words, this.strip, this.second.root,
      this.notes.root, this.legend, this.models, this.large.root);
    this.key = "";
  }

  // ---- what stands above the models

  bar() {
    const button = (text, label, act) =>
      element("button", { type: "button", title: label, "aria-label": label, onclick: act }, text);
    const select = (act) => element("select", { onchange: (e) => this.ask(act(e.target.value)) });
    const labelled = (text, node) => element("label", {}, text, node);
    this.counter = element("span", { className: "gi-count", role: "status" });
    this.layer = select((v) => ({ do: "layer", value: Number(v) }));
    this.method = select((v) => ({ do: "method", value: v }));
    this.pattern = select((v) => ({ do: "pattern", value: v }));
    this.layerLabel = labelled("layer ", this.layer);
    this.sort = element("button", {
      type: "button", className: "gi-sort", title: "the heads with the largest effect first",
      onclick: () => this.ask({ do: "sort", value: !this.view.by_effect }),
    }, "sort by effect");
    this.copy = element("button", {
      type: "button", className: "gi-copy",
      title: "copy a link to what is shown", onclick: () => this.copied(),
    }, "copy link");
    this.box = element("textarea", {
      rows: 1, spellcheck: false, className: "gi-box",
      onkeydown: (e) => {
        if (e.key === "Enter" && !e.shiftKey) { e.preventDefault(); this.typed(); }
      },
    });
    const question = () => this.ask({
      do: "question", kind: this.question.value, value: this.asked.value,
    });
    this.question = element("select", {
      className: "gi-question",
      onchange: () => {
        this.asked.hidden = !HINTS[this.question.value];
        this.asked.placeholder = HINTS[this.question.value] ?? "";
        this.asked.value = "";
        if (this.asked.hidden) question(); else this.asked.focus();
      },
    });
    this.asked = element("input", {
      className: "gi-asked", spellcheck: false, "aria-label": "tokens or positions asked about",
      onchange: question,
    });
    this.boxName = element("span", {}, "tokens ");
    this.message = element("div", { className: "gi-message", role: "status" });
    this.tokens = element("div", {
      className: "gi-tokens", role: "group", "aria-label": "position that is read",
      onkeydown: (e) => this.step(e), onmouseleave: () => this.pointToken(null),
    });
    this.reading();
    this.top = element("div", { className: "gi-top" },
      element("div", { className: "gi-bar" },
        button("◀", "previous example", () => this.ask({ do: "step", value: -1 })),
        this.counter,
        button("▶", "next example", () => this.ask({ do: "step", value: 1 })),
        this.layerLabel, labelled("ablation ", this.method), labelled("show ", this.pattern),
        this.sort, this.copy, this.file.save, this.file.open, this.file.chosen),
      element("div", { className: "gi-typing" },
        element("label", {}, this.boxName, this.box),
        element("button", { type: "button", className: "gi-go", onclick: () => this.typed() },
          "read it"),
        labelled("ask about ", this.question), this.asked));
  }

  // What stands below the text: how its bars are to be read, and whose they are.
  reading() {
    const act = () => this.ask({
      do: "text", readers: this.readers.value === "who reads it", first: this.first.checked,
    });
    this.readers = element("select", { className: "gi-readers", onchange: act });
    this.first = element("input", { type: "checkbox", onchange: act });
    this.pointed = element("span", { className: "gi-pointed", role: "status" });
    this.chips = element("span", { className: "gi-chips" });
    this.picked = new Set(); // heads whose bars alone are shown
    this.words = element("div", { className: "gi-legend gi-words" },
      element("label", {}, "bars: ", this.readers), this.pointed,
      element("label", {}, this.first, " with the first token"), this.chips);
  }

  typed() {
    this.sent = this.box.value;
    this.ask({ do: "tokens", value: this.sent });
  }

  // What is typed stays until it is sent or another text comes, what was refused until it is mended.
  fill(view) {
    const first = this.known === undefined, answered = view.answers === "tokens";
    const other = !answered && (view.box !== this.known || ["link", "file"].includes(view.answers));
    const typed = edited(this.box, this.known, answered && this.sent);
    if (first || (!view.message && (other || !typed))) this.box.value = view.box;
    this.known = view.box;
  }

  async copied() {
    const link = this.address(this.view.link);
    try {
      await navigator.clipboard.writeText(link);
      say(this.copy, "copied");
      setTimeout(() => say(this.copy, "copy link"), 2000);
    } catch { window.prompt("Copy this link:", link); }
  }

  step(event) {
    // Keys may come faster than answers.
    const last = this.view.tokens.length - 1, at = this.aim ?? this.view.position;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (to === undefined || to < 0 || to > last) return;
    event.preventDefault();
    this.aim = to;
    this.ask({ do: "position", value: to });
  }

  // ---- one model

  build(view) {
    this.parts = view.models.map((model) => this.column(view, model));
    this.models.replaceChildren(...this.parts.map((p) => p.root));
  }

  column(view, model) {
    const name = model.name;
    const part = { cards: [], bars: [] };
    part.title = element("h3");
    part.all = element("button", {
      type: "button", className: "gi-all", "aria-label": `all heads on, ${name}`,
      onclick: () => this.ask({ do: "all", model: name }),
    }, "all on");
    part.elsewhere = element("span", { className: "gi-elsewhere" });
    part.answer = element("div", { className: `gi-answer gi-answer-${name}`, role: "status" });
    part.metric = element("div", { className: "gi-metric" });
    part.readout = element("div", { className: "gi-readout" });
    part.facts = element("div", { className: "gi-facts" });
    model.accuracy.forEach(([label]) => {
      const now = element("span", { className: "gi-now" });
      const mark = element("span", { className: "gi-intact" });
      const value = element("span", { className: "gi-value" });
      part.bars.push({ now, mark, value });
      part.facts.append(element("span", { className: "gi-case" }, label),
        element("span", { className: "gi-track" }, now, mark), value);
    });
    part.facts.classList.toggle("gi-none", !model.accuracy.length && !view.is_text);
    model.heads.forEach((head, h) => part.cards.push(this.card(view, name, head.name, h, part)));
    part.grid = element("div", { className: "gi-cards" }, ...part.cards.map((c) => c.root));
    part.head = element("tr");
    part.lines = [...model.heads.map((h) => h.name), "the rest", "logits"].map((label) =>
      element("tr", {}, element("th", { scope: "row" }, label)));
    part.rows = [[]];
    part.root = element("section", { className: `gi-model gi-of-${name}`, "aria-label": name },
      element("div", { className: "gi-title" }, part.title, part.all, part.elsewhere),
      element("div", { className: "gi-halves" },
        element("div", { className: "gi-answers" },
          part.answer, part.metric,
          model.accuracy.length
            ? element("h4", {}, "answered right (│ every head on)")
            : element("h4", {}, "likeliest next tokens (every head on)"),
          part.facts),
        element("div", { className: "gi-heads" },
          element("div", { className: "gi-heading" },
            element("h4", {}, "heads: switch, ", part.kind = element("span"), ", ",
              part.effect = element("span")),
            part.readout), part.grid),
        element("div", { className: "gi-writes" },
          element("h4", {}, "each head’s contribution to the logits at the selected token"),
          element("div", { className: "gi-table" },
            element("table", {}, element("thead", {}, part.head),
              element("tbody", {}, ...part.lines))))));
    // As wide as its heads need, where there is room.
    part.root.style.flexGrow = 2 + Math.min(model.heads.length, 12);
    return part;
  }

  card(view, model, label, h, part) {
    const card = { h };
    card.toggle = element("button", {
      type: "button", className: `gi-head gi-${model}-${h}`, title: `switch ${label} off or on`,
      onclick: () => this.ask({
        do: "head", model, head: h, on: card.toggle.getAttribute("aria-pressed") !== "true",
      }),
    }, label);
    card.only = element("button", {
      type: "button", className: "gi-only", title: `only ${label}: the layer's others off`,
      "aria-label": `only ${label}`, onclick: () => this.ask({ do: "only", model, head: h }),
    }, "only");
    card.canvas = element("canvas");
    card.query = element("span", { className: "gi-query" });
    card.pattern = element("button", {
      type: "button", className: "gi-pattern", "aria-label": `enlarge ${label}`,
      onclick: () => this.ask({ do: "open", model, head: h }),
      onmousemove: (e) => this.point(e, card, label, part),
      onmouseleave: () => say(part.readout, ""),
    }, card.canvas, card.query, element("span", { className: "gi-off" }, "off"));
    card.bar = element("span", { className: "gi-bar-of" });
    card.effect = element("span");
    card.note = element("button", { type: "button", className: "gi-only gi-note",
      title: `name ${label}, write a note on it, pin it or put it into groups`,
      "aria-label": `note on ${label}, ${model}`,
      onclick: () => this.notes.edit(model, view.layer, label) }, "note");
    card.name = element("div", { className: "gi-name" });
    card.raises = element("div", { className: "gi-raises" });
    card.root = element("div", { className: "gi-card" },
      element("div", { className: "gi-buttons" }, card.toggle, card.only), card.name,
      card.pattern,
      element("div", { className: "gi-effect" }, card.effect, card.note, card.bar), card.raises);
    return card;
  }

  point(event, card, label, part) {
    const box = card.canvas.getBoundingClientRect(), n = this.view.tokens.length;
    const at = (x, low, size) => Math.min(n - 1, Math.max(0, Math.floor((n * (x - low)) / size)));
    const k = at(event.clientX, box.left, box.width), q = at(event.clientY, box.top, box.height);
    say(part.readout, `${this.notes.named(this.view.models[part.index].name, label)}: ${this.pair(part.index, card.h, q, k)}`);
  }

  // What a head does with a pair of positions, in words.
  pair(m, h, q, k) {
    const t = this.view.tokens;
    if (k > q) return `${t[q]} (${q}) cannot read ${t[k]} (${k})`;
    return `${t[q]} (${q}) reads ${t[k]} (${k}): ${number(this.value(m, h, q, k))}`;
  }

  value(m, h, q, k) {
    const n = this.view.tokens.length;
    return (this.view.scale * this.sheets[m][(h * n + q) * n + k]) / 65535;
  }

  // ---- drawing

  draw(view, bytes) {
    this.view = view;
    this.sheets = this.cut(view, bytes);
    const key = JSON.stringify([view.layer, view.is_text,
      view.models.map((m) => [m.name, m.heads.map((h) => h.name), m.accuracy.map((a) => a[0])])]);
    if (key !== this.key) { this.build(view); this.key = key; }
    this.file.view = view;
    this.notes.draw(view);
    this.drawTop(view);
    // The longer the text, the larger the pictures of its pairs.
    this.host.style.setProperty("--card", `${Math.min(180, 84 + 0.75 * view.tokens.length)}px`);
    view.models.forEach((model, m) => this.drawModel(view, model, m));
    this.drawWords();
    this.drawStrip(view);
    this.second.draw(view, (model, head) => this.notes.named(model, head));
    this.drawLegend(view);
    this.drawLarge(view);
  }

  // All heads of several layers: a column for each layer, which a click opens.
  drawStrip(view) {
    const strip = view.strip;
    this.strip.hidden = !strip;
    if (!strip) return;
    if (!this.tiles) this.buildStrip(strip);
    say(this.stripSays, strip.says);
    say(this.stripKey, `${strip.key}; darkest ${number(strip.most)}`);
    const off = new Set(strip.off.map(String)), marks = new Map();
    strip.marks.forEach(([word, ...head]) =>
      marks.set(String(head), [...(marks.get(String(head)) ?? []), word]));
    strip.values.forEach((heads, layer) => {
      pressed(this.columns[layer], layer === view.layer);
      heads.forEach((value, h) => {
        const tile = this.tiles[layer][h], name = String([layer, h]);
        tile.style.background = css(shade(view.signed, 0.5 + (0.5 * value) / strip.most));
        tile.title = [`${this.notes.named(strip.model, `L${layer}H${h}`)}: ${signed(value)}`, ...(marks.get(name) ?? []),
          ...(off.has(name) ? ["off"] : [])].join(", ");
        tile.classList.toggle("gi-tile-off", off.has(name));
      });
    });
    // Layer by layer, so that a click in between is answered soon; of another place, not on its own.
    const place = JSON.stringify([view.tokens, view.position, view.metric, view.method]);
    if (this.measuring !== place || !strip.left) this.measuring = null;
    this.measure.hidden = !strip.left;
    say(this.measure, this.measuring ? `stop (${strip.left} layers left)`
      : `measure every head’s effect (${strip.left} layers)`);
    this.measure.onclick = () => {
      this.measuring = this.measuring ? null : place;
      this.ask({ do: this.measuring ? "measure" : "look" });
    };
    if (this.measuring && this.left !== strip.left) this.ask({ do: "measure" });
    this.left = strip.left;
  }

  buildStrip(strip) {
    const rows = strip.values.length <= 8; // few layers are rows, many are columns
    this.strip.classList.toggle("gi-rows", rows);
    this.stripSays = element("h4");
    this.tiles = strip.values.map((heads) => heads.map(() => element("span")));
    this.columns = this.tiles.map((tiles, layer) => element("button", {
      type: "button", className: `gi-layer gi-layer-${layer}`, "aria-label": `open layer ${layer}`,
      onclick: () => this.ask({ do: "layer", value: layer }),
    }, ...tiles, element("b", {}, rows ? `layer ${layer}` : String(layer))));
    const kinds = new Set();
    strip.marks.forEach(([word, layer, head]) => {
      const kind = word.split(" ")[0];
      kinds.add(kind);
      this.tiles[layer][head].append(element("i", { className: `gi-mark gi-mark-${kind}` }));
    });
    const words = { induction: "induction head", previous: "attends to the previous token",
      first: "attends to the first token", gated: "gated" };
    this.stripKey = element("span");
    this.measure = element("button", { type: "button", className: "gi-measure" });
    this.strip.append(this.stripSays,
      element("div", { className: "gi-layers", role: "group", "aria-label": "layers" },
        ...this.columns),
      element("div", { className: "gi-legend" },
        ...Object.keys(words).filter((kind) => kinds.has(kind)).map((kind) => element("span", {},
          element("i", { className: "gi-tile" },
            element("i", { className: `gi-mark gi-mark-${kind}` })), ` ${words[kind]}`)),
        this.stripKey, this.measure));
  }

  // The patterns of each model, one after the other in the bytes.
  cut(view, bytes) {
    const n = view.tokens.length;
    let at = bytes ? bytes.byteOffset : 0;
    return view.models.map((model) => {
      if (!model.has_pattern) return null;
      const size = model.heads.length * n * n;
      const sheet = new Uint16Array(bytes.buffer.slice(at, at + 2 * size));
      at += 2 * size;
      return sheet;
    });
  }

  drawTop(view) {
    say(this.counter, view.example);
    this.layerLabel.hidden = view.layers < 2;
    options(this.layer, [...Array(view.layers).keys()], view.layer);
    options(this.method, view.methods, view.method);
    options(this.pattern, view.patterns, view.pattern);
    if (!view.message && document.activeElement !== this.asked) {
      options(this.question, view.kinds, view.kind);
      this.asked.hidden = !HINTS[view.kind];
      this.asked.placeholder = HINTS[view.kind] ?? "";
      this.asked.value = view.words;
    }
    pressed(this.sort, view.by_effect);
    say(this.boxName, view.is_text ? "text " : "tokens ");
    this.box.rows = view.is_text ? 2 : 1;
    this.box.placeholder = view.hint;
    this.fill(view);
    say(this.message, view.message);
    const same = this.tokens.children.length === view.tokens.length
      && view.tokens.every((t, i) => this.tokens.children[i].textContent === t);
    if (!same) {
      this.tokens.replaceChildren(...view.tokens.map((t, i) => element("button", {
        type: "button", title: `position ${i}`,
        onclick: (e) => this.ask(e.shiftKey ? this.span(i) : { do: "position", value: i }),
        onmouseenter: () => this.pointToken(i),
      }, element("i"), t, ...view.models.slice(1).map(() => element("i")))));
    }
    options(this.readers, ["what it reads", "who reads it"],
      view.readers ? "who reads it" : "what it reads");
    this.first.checked = view.first;
    this.drawChips(view);
    [...this.tokens.children].forEach((button, i) => {
      pressed(button, i === view.position);
      button.tabIndex = i === view.position ? 0 : -1;
    });
    if (this.aim !== undefined) this.tokens.children[view.position].focus();
    if (this.aim === view.position || view.message) this.aim = undefined;
  }

  // A chip for each head, in its colour; a click shows the bars of the heads picked alone.
  drawChips(view) {
    const names = view.models.map((m) => m.heads.map((h) => this.notes.named(m.name, h.name)));
    const key = JSON.stringify(names);
    if (this.chips.key === key) return;
    this.chips.key = key;
    this.picked.clear();
    this.chips.replaceChildren(...view.models.flatMap((model, m) => [
      element("b", {}, view.models.length < 2 ? "" : m ? ` below: ${model.name} ` : `above: ${model.name} `),
      ...model.heads.map((head, h) => {
        const name = `${m}.${h}`;
        const chip = element("button", {
          type: "button", className: "gi-chip", title: `bars of ${head.name} alone`,
          onclick: () => {
            if (!this.picked.delete(name)) this.picked.add(name);
            pressed(chip, this.picked.has(name));
            this.drawWords();
          },
        }, names[m][h]);
        chip.style.borderColor = hue(h, model.heads.length);
        pressed(chip, false);
        return chip;
      })]));
  }

  // From the token that is read to the one that was clicked.
  span(i) {
    const ends = [this.view.position, i].sort((a, b) => a - b);
    return { do: "question", kind: "the loss on a span", value: ends.join(" ") };
  }

  pointToken(i) { this.over = i; this.drawWords(); }

  // Under each token a bar for each head: how much of it the token pointed at reads, or is read by.
  drawWords() {
    const { view } = this, n = view.tokens.length, at = this.over ?? view.position;
    const from = view.first ? 0 : 1, bars = [];
    let most = 0, best = "";
    view.models.forEach((model, m) => model.heads.forEach((head, h) => {
      if (!this.sheets[m] || (this.picked.size && !this.picked.has(`${m}.${h}`))) return;
      for (let i = from; i < n; i++) {
        const [q, k] = view.readers ? [i, at] : [at, i];
        const value = k > q ? 0 : this.value(m, h, q, k);
        if (value > 0) bars.push([m, h, i, value]);
        if (value > most) {
          [most, best] = [value, `${this.notes.named(model.name, head.name)}, ${view.tokens[i]}`];
        }
      }
    }));
    const drawn = [...this.tokens.children].map(() => view.models.map(() => []));
    bars.forEach(([m, h, i, value]) => {
      const share = value / most, count = view.models[m].heads.length;
      if (share < 0.02) return;
      const colour = hue(h, count), left = count < 2 ? 0 : (100 * h) / (count - 1);
      drawn[i][m].push(`linear-gradient(${colour},${colour}) ${left}% ${m ? 0 : 100}% / `
        + `${100 / count}% ${100 * share}% no-repeat`);
    });
    [...this.tokens.children].forEach((button, i) => {
      button.classList.toggle("gi-at", i === at);
      button.querySelectorAll("i").forEach((bar, m) => {
        const said = drawn[i][m].join(", ");
        if (bar.said !== said) { bar.said = said; bar.style.background = said; }
      });
    });
    const token = `${view.tokens[at]} (${at})`, kind = view.pattern;
    say(this.pointed, `${kind} ${view.readers ? `of what reads ${token}` : `at ${token}`}`
      + (most ? `; tallest bar ${number(most)} (${best})` : "; none"));
  }

  drawModel(view, model, m) {
    const part = this.parts[m];
    part.index = m;
    say(part.title, model.title);
    say(part.elsewhere, model.elsewhere
      && `also off: ${this.notes.sentence(model.name, model.elsewhere)}`);
    part.all.disabled = !model.any_off;
    this.drawAnswer(part.answer, model.answer);
    say(part.metric, `${view.metric}: ${number(model.metric)} `
      + `(every head on: ${number(model.intact_metric)})`);
    model.accuracy.forEach(([, now, intact], i) => {
      const bar = part.bars[i];
      bar.now.style.width = percent(now);
      bar.mark.style.left = percent(intact);
      say(bar.value, percent(now));
    });
    if (view.is_text || model.likely.length) {
      part.facts.replaceChildren(...model.likely.flatMap(([token, now, intact]) => [
        element("span", { className: "gi-case" }, token),
        element("span", { className: "gi-track" },
          Object.assign(element("span", { className: "gi-now" }), { style: `width:${percent(now)}` }),
          Object.assign(element("span", { className: "gi-intact" }),
            { style: `left:${percent(intact)}` })),
        element("span", { className: "gi-value" }, percent(now))]));
    }
    say(part.kind, model.shows);
    say(part.effect, `change of ${view.metric} without it`);
    const order = model.order.join();
    if (part.order !== order) {
      part.order = order;
      const at = document.activeElement;
      part.grid.append(...model.order.map((h) => part.cards[h].root));
      if (part.grid.contains(at)) at.focus(); // a card that is moved loses it
    }
    const most = Math.max(...model.heads.map((h) => Math.abs(h.effect ?? 0)), 1e-9);
    model.heads.forEach((head, h) => this.drawCard(view, model, m, head, part.cards[h], most));
    this.drawTable(view, model, part);
  }

  drawAnswer(node, answer) {
    const { after, predicted, probability, expected, right, intact } = answer;
    const mark = right === null ? "" : right ? " ✓" : ` ✗ not ${expected}`;
    const kind = right === null ? "gi-open" : right ? "gi-right" : "gi-wrong";
    const first = `after ${after} predicts `, chance = ` (${percent(probability)})`;
    const last = `every head on: ${intact ?? predicted}`;
    const said = `${first}${predicted}${mark}${chance}${last}`;
    if (node.textContent === said) return;
    node.title = said;
    node.replaceChildren(first, element("b", { className: kind }, `${predicted}${mark}`), chance,
      element("span", {}, last));
  }

  drawCard(view, model, m, head, card, most) {
    pressed(card.toggle, head.on);
    card.root.classList.toggle("gi-is-off", !head.on);
    const note = this.notes.of(model.name, head.name);
    card.root.classList.toggle("gi-pinned", !!note?.pinned);
    // A name in one card leaves room in all of them, so that pictures stay in line.
    card.name.hidden = !view.notes.heads.some((n) => n.name && n.layer === view.layer);
    say(card.name, note?.name ? `\u2068${note.name}\u2069` : "");
    card.name.title = note ? [note.name, note.note].filter(Boolean).join(": ") : "";
    say(card.note, note ? "note ✓" : "note");
    say(card.effect, signed(head.effect));
    card.bar.style.width = percent(Math.abs(head.effect ?? 0) / most);
    card.bar.classList.toggle("gi-falls", head.effect < 0);
    const raises = head.raises.join(" ");
    card.raises.hidden = !view.is_text;
    say(card.raises, !head.on ? "" : raises ? `↑ ${raises}` : "writes nothing here");
    card.raises.title = raises && `raises most: ${raises}`;
    card.pattern.disabled = !this.sheets[m];
    const n = view.tokens.length;
    card.query.style.top = `${(100 * view.position) / n}%`;
    card.query.style.height = `${100 / n}%`;
    if (!this.sheets[m]) { card.canvas.width = card.canvas.height = 1; card.drawn = null; return; }
    const sheet = this.sheets[m].subarray(card.h * n * n, (card.h + 1) * n * n);
    const ramp = colours(view.ramp), gain = view.scale / view.darkest / 257;
    // A head's own switch seldom changes its pattern.
    const same = card.drawn && card.ramp === ramp && card.gain === gain
      && card.drawn.length === sheet.length && card.drawn.every((v, i) => v === sheet[i]);
    if (same) return;
    Object.assign(card, { drawn: sheet, ramp, gain });
    // A long text's pairs would be dust: each cell shows the largest of a few.
    const block = Math.ceil(n / 64), cells = Math.ceil(n / block);
    const largest = new Uint16Array(cells * cells);
    for (let q = 0; q < n; q++) {
      for (let k = 0; k <= q; k++) {
        const i = Math.floor(q / block) * cells + Math.floor(k / block);
        largest[i] = Math.max(largest[i], sheet[q * n + k]);
      }
    }
    card.canvas.width = card.canvas.height = cells;
    const context = card.canvas.getContext("2d"), image = context.createImageData(cells, cells);
    largest.forEach((value, i) => {
      const behind = i % cells > Math.floor(i / cells);
      const [r, g, b] = behind ? [245, 245, 245] : ramp[Math.min(255, Math.round(value * gain))];
      image.data.set([r, g, b, 255], 4 * i);
    });
    context.putImageData(image, 0, 0);
  }

  drawTable(view, model, part) {
    const named = model.heads.map((h) => this.notes.named(model.name, h.name));
    named.forEach((label, h) => { say(part.lines[h].firstChild, label); part.lines[h].firstChild.title = label; });
    part.head.closest("table").classList.toggle("gi-named", named.some((l, h) => l !== model.heads[h].name));
    if (part.columns !== view.columns.join("\n")) {
      part.columns = view.columns.join("\n");
      part.head.replaceChildren(element("td"), ...view.columns.map((c) =>
        element("th", { scope: "col", title: c }, element("span", {}, c))));
      part.head.classList.toggle("gi-upright", view.is_text || view.columns.length > 10);
    }
    // A text may have a column more or less after a switch; the switch itself must stay in place.
    if (part.rows[0].length !== view.columns.length) {
      part.rows = part.lines.map((line) => {
        const cells = view.columns.map(() => element("td"));
        line.replaceChildren(line.firstChild, ...cells);
        return cells;
      });
    }
    const rows = [...model.heads.map((h) => h.writes), model.rest, model.logits];
    rows.forEach((row, r) => row.forEach((value, c) => {
      const cell = part.rows[r][c];
      if (cell.value === value) return;
      cell.value = value;
      const colour = shade(view.signed, 0.5 + (0.5 * value) / view.write_scale);
      cell.style.background = css(colour);
      cell.style.color = dark(colour) ? "#fff" : "#222";
      cell.title = `${view.columns[c]}: ${number(value)}`;
      // Without its zeros the table says at a glance who writes.
      say(cell, Math.abs(value) < 0.05 ? "" : number(value, 1));
    }));
    part.rows.at(-1).forEach((cell, c) => {
      const there = c === model.predicted;
      cell.className = !there ? "" : model.answer.right === false ? "gi-wrong"
        : model.answer.right ? "gi-right" : "gi-open";
    });
  }

  drawLegend(view) {
    const key = JSON.stringify([view.pattern, view.darkest, view.write_scale]);
    if (this.legend.key === key) return;
    this.legend.key = key;
    const short = (value) => number(value, Math.abs(value) < 1 ? 2 : Math.abs(value) < 10 ? 1 : 0);
    const entry = (name, ramp, low, high, more) => element("span", {}, element("b", {}, name),
      ` ${low ? short(low) : "0"} `,
      Object.assign(element("span", { className: "gi-ramp" }), {
        style: `background: linear-gradient(to right, ${ramp.map(([at, c]) =>
          `${c} ${100 * at}%`).join(", ")})`,
      }), ` ${short(high)} ${more}`);
    this.legend.replaceChildren(entry(view.pattern, view.ramp, 0, view.darkest, view.range),
      entry("logits", view.signed, -view.write_scale, view.write_scale, ""));
  }

  // ---- one head, large

  dialog() {
    const large = { };
    const move = (by) => {
      const { model, head } = this.view.opened;
      const { order } = this.view.models.find((m) => m.name === model);
      const to = order[(order.indexOf(head) + by + order.length) % order.length];
      this.ask({ do: "open", model, head: to });
    };
    large.title = element("h3");
    large.canvas = element("canvas", {
      tabIndex: 0, onmousemove: (e) => this.pointLarge(e), onkeydown: (e) => this.keyLarge(e),
      onclick: () => this.askEdge(),
    });
    large.canvas.setAttribute("role", "img");
    large.readout = element("div", { className: "gi-readout", role: "status" });
    large.edge = element("div", { className: "gi-edge", role: "status" });
    large.places = element("ol", { className: "gi-places" });
    large.root = element("dialog", {
      className: "gi-dialog",
      onclose: () => { if (this.view.opened) this.ask({ do: "close" }); },
      onclick: (e) => { if (e.target === large.root) large.root.close(); },
    },
      element("div", { className: "gi-title" }, large.title,
        element("button", { type: "button", onclick: () => move(-1) }, "◀ head"),
        element("button", { type: "button", onclick: () => move(1) }, "head ▶"),
        element("button", { type: "button", className: "gi-close",
          onclick: () => large.root.close() }, "close")),
      large.readout,
      element("div", { className: "gi-large" }, large.canvas, large.edge),
      element("h4", {}, "where it writes most, among the examples"), large.places);
    this.large = large;
  }

  drawLarge(view) {
    const large = this.large, opened = view.opened;
    if (!opened) { if (large.root.open) large.root.close(); return; }
    large.m = view.models.findIndex((m) => m.name === opened.model);
    large.h = opened.head;
    const kind = this.sheets[large.m] ? view.pattern : "no such pattern";
    say(large.title, `${this.notes.named(opened.model, opened.name)}${opened.model === "model" ? "" : `, ${opened.model}`}: ${kind}`);
    large.canvas.setAttribute("aria-label",
      `${opened.name}, ${kind}: arrow keys move over the pairs of positions, `
      + "Enter takes one apart");
    large.at = opened.edge ? [opened.edge.query, opened.edge.key]
      : [view.position, view.position];
    this.drawEdge(view, opened);
    large.places.replaceChildren(...opened.contexts.map((place) => element("li", {},
      element("button", {
        type: "button",
        onclick: () => this.ask({ do: "place", example: place.example, position: place.position }),
      }, element("span", { className: "gi-where" }, `example ${place.example + 1} `),
      `…${place.before}`, place.before && !view.is_text ? " " : "",
      element("mark", {}, place.at), view.is_text ? "" : " ", place.after,
      element("span", { className: "gi-where" },
        ` raises ${place.raises} most; norm of its write ${number(place.length)}`)))));
    if (!opened.contexts.length) large.places.replaceChildren("it writes nowhere among them");
    if (!large.root.open) large.root.showModal();
    this.paintLarge();
  }

  askEdge() {
    const [query, key] = this.large.at;
    this.ask({ do: "edge", query, key });
  }

  // Which earlier components made the score of the cell that was clicked.
  drawEdge(view, { model, name: head, edge }) {
    const name = this.notes.named(model, head), spoken = (c) => this.notes.component(model, c);
    const node = this.large.edge, cell = (tag, text) => element(tag, {}, text);
    if (!edge) {
      node.replaceChildren("Click a cell, or press Enter on it, to see which earlier heads made "
        + "this score, and what the head writes from there.");
      return;
    }
    const said = (i) => `${view.tokens[i]} (${i})`;
    const title = element("h4", {}, `why ${name} at ${said(edge.query)} reads ${said(edge.key)}`);
    const read = element("button", { type: "button", className: "gi-read-here",
      onclick: () => this.ask({ do: "position", value: edge.query }),
    }, `predict after ${said(edge.query)}`);
    if (edge.refused) { node.replaceChildren(title, element("p", {}, edge.refused), read); return; }
    const { scores, columns, rows } = edge;
    const sums = `attention score ${number(scores.attention)}, attention ${number(edge.attention)}`
      + (scores.gate === undefined ? ""
        : `; gate score ${number(scores.gate)}, gate ${number(edge.openness)}`)
      + `; it writes ${number(edge.written)} from there`;
    const most = columns.map((_, c) => Math.max(...rows.map((r) => Math.abs(r[c + 1])), 1e-9));
    const table = element("table", {},
      element("thead", {}, element("tr", {}, element("td"),
        ...columns.map((c) => Object.assign(cell("th", c.replace("_", " ")), { scope: "col" })))),
      element("tbody", {}, ...rows.map(([component, ...values]) => element("tr", {},
        Object.assign(cell("th", spoken(component)), { scope: "row" }),
        ...values.map((value, c) => {
          const made = cell("td", number(value)), colour = shade(view.signed, 0.5 + 0.5 * value / most[c]);
          made.style.background = css(colour);
          made.style.color = dark(colour) ? "#fff" : "#222";
          return made;
        })))));
    const pairs = Object.entries(edge.pairs).flatMap(([kind, best]) => [
      element("h4", {}, `largest pairs of the ${kind} score`),
      element("ul", {}, ...best.map(([q, k, value]) =>
        element("li", {}, `${spoken(q)} at the query × ${spoken(k)} at the key: ${signed(value)}`)))]);
    const beside = edge.beside.map(([what, value]) => `${what} ${signed(value)}. `).join("");
    node.replaceChildren(title, element("p", {}, sums), table,
      element("p", { className: "gi-where" }, "query, key: what each component adds to the "
        + "attention score on that side; write: its part in what the head writes, as a length "
        + `along it. ${beside}`), ...pairs, read);
  }

  paintLarge() {
    const { canvas, m, h, at } = this.large, view = this.view, n = view.tokens.length;
    const sharp = window.devicePixelRatio || 1;
    const wide = this.large.root.clientWidth - 34;
    const room = Math.min(wide > 860 ? wide - 440 : wide, window.innerHeight - 190, 640);
    const context = canvas.getContext("2d");
    context.font = "11px gated-interp, Arial, sans-serif";
    const widest = Math.max(...view.tokens.map((t) => context.measureText(t).width));
    const margin = Math.min(90, Math.ceil(widest) + 8);
    const cell = Math.max(3, (room - margin) / n), size = margin + cell * n;
    Object.assign(this.large, { margin, cell });
    canvas.dataset.margin = margin;
    canvas.width = canvas.height = Math.round(size * sharp);
    canvas.style.width = canvas.style.height = `${size}px`;
    context.scale(sharp, sharp);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, size, size);
    for (let q = 0; q < n; q++) {
      for (let k = 0; k <= q; k++) {
        const x = this.sheets[m] ? this.value(m, h, q, k) / view.darkest : 0;
        context.fillStyle = css(shade(view.ramp, x));
        context.fillRect(margin + k * cell, margin + q * cell, cell + 0.5, cell + 0.5);
      }
    }
    context.strokeStyle = "#bbb";
    context.strokeRect(margin, margin, n * cell, n * cell);
    context.strokeStyle = "#E69F00";
    context.lineWidth = 1.5;
    context.strokeRect(margin, margin + view.position * cell, n * cell, cell);
    const { edge } = view.opened;
    context.strokeStyle = "#0072B2";
    if (edge) context.strokeRect(margin + edge.key * cell, margin + edge.query * cell, cell, cell);
    context.strokeStyle = "#D55E00";
    context.strokeRect(margin + at[1] * cell, margin + at[0] * cell, cell, cell);
    this.labelLarge(context, n);
    say(this.large.readout, this.pairLarge());
  }

  // Labels where they fit, and always those of the pair.
  labelLarge(context, n) {
    const { margin, cell, at } = this.large, step = Math.ceil(12 / cell);
    context.font = "11px gated-interp, Arial, sans-serif";
    context.textBaseline = "middle";
    const label = (i, upright) => {
      const here = i === (upright ? at[1] : at[0]);
      const near = Math.abs(i - (upright ? at[1] : at[0])) < step;
      if (!here && (i % step || near)) return;
      context.fillStyle = here ? "#D55E00" : "#444";
      context.save();
      context.translate(margin + (upright ? (i + 0.5) * cell : -4),
        margin + (upright ? -4 : (i + 0.5) * cell));
      if (upright) context.rotate(-Math.PI / 2);
      context.textAlign = upright ? "left" : "right";
      context.fillText(this.view.tokens[i], 0, 0, margin - 8);
      context.restore();
    };
    for (let i = 0; i < n; i++) { label(i, false); label(i, true); }
  }

  pairLarge() {
    const { m, h, at } = this.large;
    return this.sheets[m] ? `query ${this.pair(m, h, ...at)}` : "";
  }

  pointLarge(event) {
    const { canvas, margin, cell } = this.large, box = canvas.getBoundingClientRect();
    const n = this.view.tokens.length;
    const place = (x) => Math.floor((x - margin) / cell);
    const k = place(event.clientX - box.left), q = place(event.clientY - box.top);
    if (k < 0 || q < 0 || k >= n || q >= n || String([q, k]) === String(this.large.at)) return;
    this.large.at = [q, k];
    this.paintLarge();
  }

  keyLarge(event) {
    const [q, k] = this.large.at, last = this.view.tokens.length - 1;
    const to = { ArrowUp: [q - 1, k], ArrowDown: [q + 1, k], ArrowLeft: [q, k - 1],
      ArrowRight: [q, k + 1] }[event.key];
    if (event.key === "Enter") this.askEdge();
    if (!to || Math.min(...to) < 0 || Math.max(...to) > last) return;
    event.preventDefault();
    this.large.at = to;
    this.paintLarge();
  }
}

// In a notebook.
function render({ model, el }) {
  const explorer = new Explorer(el, (act) => model.send(act), (link) => link);
  const draw = () => explorer.draw(model.get("view"), model.get("patterns"));
  model.on("change:view", draw);
  draw();
  return () => model.off("change:view", draw);
}

export default { render };

// On a page of its own: one request for each thing asked, the whole state in the address.
function serve(place) {
  const hash = () => location.hash.slice(1);
  let link = "", explorer = null, queue = Promise.resolve();
  const progress = place.querySelector(".gi-progress");
  const address = (said) => `${location.origin}${location.pathname}#${said}`;

  const take = async (act) => {
    try {
      const reply = await fetch("state", {
        method: "POST", headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...act, at: link }),
      });
      if (!reply.ok) throw new Error(await reply.text());
      const bytes = await reply.arrayBuffer();
      const length = new DataView(bytes).getUint32(0, true);
      const view = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
      if (!explorer) explorer = new Explorer(place, ask, address);
      explorer.draw(view, new DataView(bytes, 4 + length));
      link = view.link;
      if (hash() !== link) history.replaceState(null, "", `#${link}`);
    } catch (error) {
      const words = error instanceof TypeError
        ? "The explorer has stopped; start it again with gated-interp explore." : error.message;
      say(explorer ? explorer.message : progress, words);
    }
  };
  const ask = (act) => { queue = queue.then(() => take(act)); };
  const restore = () => ask(hash() ? { do: "link", value: hash() } : { do: "look" });
  addEventListener("hashchange", () => { if (hash() !== link) restore(); });
  restore();
}

const page = document.querySelector("main[data-explorer]");
if (page) serve(page);
