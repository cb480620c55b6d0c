// The second prompt: a row to type it in, and what patching finds, head by head and path by path.

class SecondPrompt {
  constructor(ask) {
    this.ask = ask;
    const typed = () => {
      this.sent = this.box.value;
      ask({ do: "second", value: this.sent });
    };
    this.known = ""; // what this page last wrote into the box
    this.box = element("textarea", {
      rows: 1, spellcheck: false, className: "gi-second-box",
      placeholder: "a second prompt of the same number of tokens, for patching",
      onkeydown: (e) => { if (e.key === "Enter" && !e.shiftKey) { e.preventDefault(); typed(); } },
    });
    this.same = element("button", { type: "button", className: "gi-same",
      title: "put the first prompt into the box, to change a token of it",
      onclick: () => { this.box.value = this.view.box; this.box.focus(); } }, "copy the first");
    this.clear = element("button", { type: "button", className: "gi-clear",
      onclick: () => { this.box.value = ""; typed(); this.box.focus(); } }, "no second prompt");
    this.says = element("div", { className: "gi-differ" });
    this.receiver = element("select", { className: "gi-receiver", "aria-label": "receiver of the paths",
      onchange: () => this.into(this.receiver.value, this.part.value) });
    this.part = element("select", { className: "gi-part", "aria-label": "what the receiver reads",
      onchange: () => this.into(this.receiver.value, this.part.value) });
    this.go = element("button", { type: "button", className: "gi-measure",
      onclick: () => {
        this.stopped = !this.stopped;
        if (this.stopped) this.ask({ do: "look" }); else this.ask({ do: "measure second" });
      } });
    this.heads = element("div", { className: "gi-patches" });
    this.chosen = element("div", { className: "gi-into" },
      element("h4", {}, "path by path, into"), this.receiver, this.part);
    this.along = element("p", { className: "gi-where" });
    this.paths = element("div", { className: "gi-patches" });
    this.formula = element("p", { className: "gi-where" });
    this.body = element("div", {},
      this.says, element("div", { className: "gi-into" },
        element("h4", {}, "head by head"), this.go), this.formula, this.heads,
      this.chosen, this.along, this.paths);
    this.root = element("section", { className: "gi-second", "aria-label": "patching" },
      element("div", { className: "gi-compare" },
        element("label", {}, element("span", {}, "second prompt "), this.box),
        element("button", { type: "button", className: "gi-patch", onclick: typed }, "patch"),
        this.same, this.clear),
      this.body);
  }

  // Keys may come faster than answers.
  into(value, part) { this.aim = value; this.ask({ do: "into", value, part: part || "query" }); }

  draw(view, named) {
    const second = view.second;
    this.view = view;
    const refused = this.fill(view) || second?.refused;
    this.body.hidden = !second && !refused;
    this.clear.hidden = !second && !this.box.value;
    this.box.rows = view.is_text ? 2 : 1;
    if (!second) { this.aim = undefined; this.stopped = false; }
    this.root.classList.toggle("gi-wrong-length", !!refused);
    for (const node of this.body.children) if (node !== this.says) node.hidden = !!refused;
    if (refused) { say(this.says, refused); return; }
    if (!second) return;
    const places = second.differ.map(([i, a, b]) => `${i}: ${a} → ${b}`);
    say(this.says, !places.length ? "Both prompts are the same." : `They differ at position ${
      places.join(", ")}${second.more ? ` and at ${second.more} more` : ""}.`);
    say(this.formula, `${second.formula}. Blue moves towards the second prompt’s answer, orange `
      + `away from it; full colour at 100%.${view.layers > 1 ? " Click a head of layer 1 or later for the paths into it." : ""}`);
    this.heads.replaceChildren(...second.models.map((model) => this.map(view, named, model,
      `${model.name === "model" ? "" : `${model.name}: `}${model.asked}: first prompt `
        + `${number(model.first)}, second ${number(model.second)}, difference `
        + `${(model.difference ?? "").replaceAll("-", "−")}`)));
    this.drawPaths(view, named, second);
    this.measure(second);
  }

  // What is typed stays until it is sent, and what was refused until it is mended; returns why the
  // shares are not those of what stands in the box.
  fill(view) {
    const box = view.second ? view.second.box : "", answered = view.answers === "second";
    const moved = this.first !== undefined && this.first !== view.box;
    this.first = view.box;
    if (answered) this.refused = view.message;
    const typed = edited(this.box, this.known, answered && this.sent);
    if (["link", "file"].includes(view.answers) && !view.message) {
      this.refused = "";
      this.known = this.box.value = box;
    } else if (moved && !view.second && this.known && !typed) {
      // It was written for another text.
      this.known = undefined;
      this.refused = "The first prompt has changed. Change the second one too, and press “patch” to compare them.";
    } else if (!view.message && !typed) {
      this.refused = "";
      if (this.box.value !== box) this.box.value = box;
      this.known = box;
    }
    return this.refused;
  }

  drawPaths(view, named, second) {
    const { paths } = second, all = second.receivers.flatMap(([name, ends]) =>
      ends.map((end) => [`${name}.${end}`, end === "logits" ? "the logits" : named(name, end),
        second.receivers.length > 1 ? `${name}: ` : ""]));
    const key = JSON.stringify(all);
    if (this.receiver.key !== key) {
      this.receiver.key = key;
      this.receiver.replaceChildren(element("option", { value: "" }, "choose a receiver"),
        ...all.map(([value, label, of]) => element("option", { value }, `${of}${label}`)));
    }
    const now = paths ? paths.value : "";
    if (this.aim === undefined || this.aim === now || view.message) {
      this.aim = undefined;
      this.receiver.value = now;
    }
    this.part.hidden = !paths || !paths.parts.length;
    if (paths) options(this.part, paths.parts, paths.part);
    this.along.hidden = this.paths.hidden = !paths;
    if (!paths) return;
    say(this.along, second.along);
    const end = paths.value.slice(paths.model.length + 1);
    const where = end === "logits" ? "the logits" : `the ${paths.part} of ${named(paths.model, end)}`;
    this.paths.replaceChildren(this.map(view, named, { name: paths.model, ...paths },
      `from each earlier head into ${where}`));
  }

  // A tile for each head, a row for each layer; of a deep model a column.
  map(view, named, model, title) {
    const deep = model.shares.length > 8;
    const tile = (value, layer, h) => {
      const name = `L${layer}H${h}`, words = value === null ? "not measured" : percent(value);
      const label = `${named(model.name, name)}: ${words}${
        model.asked && !layer && view.layers > 1 ? "; nothing comes before layer 0" : ""}`;
      const made = element("span", { className: "gi-share", title: label }, deep ? "" : element("b", {}, `H${h} `),
        deep || model.refused ? "" : value === null ? "…" : percent(value));
      const colour = shade(view.signed, 0.5 + 0.5 * Math.max(-1, Math.min(1, value ?? 0)));
      made.style.background = css(colour);
      made.style.color = dark(colour) ? "#fff" : "#222";
      if (layer && model.asked) {
        made.classList.add("gi-can");
        made.onclick = () => this.into(`${model.name}.${name}`, this.part.value);
      }
      return made;
    };
    const rows = model.shares.map((values, layer) => element("div", { className: "gi-shares" },
      element("b", {}, deep ? String(layer) : `layer ${layer}`),
      element("div", {}, ...values.map((value, h) => tile(value, layer, h)))));
    return element("div", { className: `gi-map gi-map-of-${model.name}${model.refused ? " gi-none-to-share" : ""}` },
      element("div", { className: "gi-says", title }, model.refused ? "" : title),
      element("div", { className: `gi-grid${deep ? " gi-deep" : ""}`, role: "group", "aria-label": title },
        ...rows),
      ...(model.refused ? [element("p", { className: "gi-refused" }, model.refused)] : []));
  }

  // Layer by layer, so that a click in between is answered soon.
  measure(second) {
    const left = second.models.reduce((sum, model) => sum + model.left, second.paths?.left ?? 0);
    this.go.hidden = !left;
    say(this.go, this.stopped ? `go on (${left} layers left)` : `stop (${left} layers left)`);
    if (left && !this.stopped && this.left !== left) this.ask({ do: "measure second" });
    this.left = left;
  }
}
