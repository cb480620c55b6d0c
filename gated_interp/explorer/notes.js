// What the reader says of heads: names, notes, pins and groups; a list of them, and a form for one.

const HEAD = /^L\d+H\d+$/, HEADS_IN = /L\d+H\d+/g;

// A dialog may be open again by the time it is told that it closed.
const gone = (dialog) => { if (!dialog.open) dialog.remove(); };

class Notes {
  constructor(host, ask) {
    this.host = host;
    this.ask = ask;
    this.by = new Map();
    this.groups = element("div", { className: "gi-groups" });
    this.list = element("div", { className: "gi-noted" });
    this.root = element("section", { className: "gi-notes", "aria-label": "pinned, named and grouped heads" },
      element("h4", {}, "your heads"), this.groups, this.list);
    this.form();
  }

  of(model, head) { return this.by.get(`${model}.${head}`); }

  // A head with its name; signs of direction keep a name from turning other words around.
  named(model, head) {
    const name = this.of(model, head)?.name;
    return name ? `${head} \u2068${name}\u2069` : head;
  }

  // A component's name, or a sentence in which heads are named.
  component(model, words) { return HEAD.test(words) ? this.named(model, words) : words; }
  sentence(model, words) { return words.replace(HEADS_IN, (head) => this.named(model, head)); }

  draw(view) {
    this.view = view;
    const { heads, groups } = view.notes;
    this.by = new Map(heads.map((note) => [`${note.model}.${note.label}`, note]));
    this.root.hidden = !heads.length;
    const two = view.models.length > 1, of = (model) => (two ? ` (${model})` : "");
    const key = JSON.stringify(view.notes);
    if (this.key !== key) { // a switch keeps its focus
      const shape = JSON.stringify([heads.map((n) => ({ ...n, on: 0 })), groups.map((g) => ({ ...g, off: 0 }))]);
      if (this.shape !== shape) { this.shape = shape; this.build(heads, groups, of); }
      this.key = key;
      heads.forEach((note, i) => pressed(this.switches[i], note.on));
      groups.forEach((group, i) => {
        const n = group.heads.length;
        set(this.groupSwitches[i], "aria-pressed", !group.off ? "true" : group.off === n ? "false" : "mixed");
        say(this.groupSays[i], !group.off ? "all on" : group.off === n ? "all off" : `${group.off} of ${n} off`);
      });
    }
    if (this.sent && view.answers === "note") { // not an earlier act, answered meanwhile
      say(this.problem, view.message);
      if (!view.message) {
        this.dialog.close();
        if (this.listed) this.button(this.list, this.host)?.focus(); // the list was made anew
      }
      this.sent = false;
    }
  }

  build(heads, groups, of) {
    this.groupSays = groups.map(() => element("span", { className: "gi-where gi-group-says" }));
    this.groupSwitches = groups.map((group) => element("button", {
      type: "button", className: "gi-head gi-group", title: `switch all heads of ${group.name} off or on`,
      onclick: (e) => this.ask({ do: "group", value: group.name,
        on: e.currentTarget.getAttribute("aria-pressed") !== "true" }),
    }, element("bdi", {}, group.name)));
    const title = (words) => element("b", { className: "gi-where" }, words);
    this.groups.replaceChildren(...groups.slice(0, 1).map(() => title("groups")), ...groups.map((group, i) => element("div", { className: "gi-group-row" },
      this.groupSwitches[i], this.groupSays[i],
      element("span", {}, group.heads.map(([model, head]) =>
        `${this.named(model, head)}${of(model)}`).join(", ")))));
    this.switches = heads.map((note) => element("button", {
      type: "button", className: "gi-head", title: `switch ${note.label} off or on`,
      onclick: (e) => this.ask({ do: "head", model: note.model, head: note.label,
        on: e.currentTarget.getAttribute("aria-pressed") !== "true" }),
    }, `${note.label}${of(note.model)}`));
    this.list.replaceChildren(title("heads"), ...heads.map((note, i) => element("div", {
      className: `gi-noted-row${note.pinned ? " gi-pinned" : ""}` },
      this.switches[i],
      element("button", { type: "button", className: "gi-only", "aria-label": `note on ${note.label}, ${note.model}`,
        onclick: () => this.edit(note.model, note.layer, note.label) }, "note"),
      element("button", { type: "button", className: "gi-only", title: `go to the layer of ${note.label}`,
        onclick: () => this.ask({ do: "layer", value: note.layer }) }, `layer ${note.layer}`),
      element("b", {}, element("bdi", {}, note.name)),
      element("span", { className: "gi-where" }, note.pinned ? "pinned" : "",
        note.groups.length ? `${note.pinned ? ", " : ""}in ${note.groups.map((g) => `\u2068${g}\u2069`).join(", ")}` : ""),
      element("bdi", { className: "gi-note-says" }, note.note))));
  }

  // ---- one head

  form() {
    const field = (label, node) => element("label", {}, element("span", {}, label), node);
    this.pin = element("input", { type: "checkbox" });
    this.name = element("input", { autocomplete: "off" });
    this.inGroups = element("input", { autocomplete: "off" });
    this.words = element("textarea", { rows: 3 });
    this.problem = element("p", { className: "gi-problem", role: "alert" });
    this.title = element("h3");
    const button = (text, act) => element("button", { type: "button", onclick: act }, text);
    this.dialog = element("dialog", { className: "gi-dialog gi-note-form", onclose: () => gone(this.dialog) },
      element("form", { onsubmit: (e) => { e.preventDefault(); this.send(); } },
        this.title, field("name ", this.name), field("groups, apart by commas ", this.inGroups),
        field("note ", this.words),
        element("label", { className: "gi-pin" }, this.pin,
          " pin: first in its layer, and listed whichever layer is open"),
        this.problem,
        element("div", { className: "gi-bar" },
          element("button", { className: "gi-keep" }, "keep"),
          button("forget all of this", () => { this.fill({}); this.send(); }),
          button("cancel", () => this.dialog.close()))));
  }

  fill({ name = "", groups = [], note = "", pinned = false }) {
    Object.assign(this.name, { value: name });
    Object.assign(this.inGroups, { value: groups.join(", ") });
    Object.assign(this.words, { value: note });
    this.pin.checked = pinned;
    say(this.problem, "");
  }

  // The button that opens the form of the head in hand, in the first of some places that has one.
  button(...places) {
    const { model, label } = this.editing, name = `note on ${label}, ${model}`;
    return places.flatMap((place) => [...place.querySelectorAll("button")])
      .find((node) => node.ariaLabel === name);
  }

  edit(model, layer, label) {
    this.editing = { model, label };
    this.listed = this.list.contains(document.activeElement);
    say(this.title, `${label}${model === "model" ? "" : `, ${model}`}`);
    this.fill(this.of(model, label) ?? {});
    this.host.append(this.dialog);
    this.dialog.showModal();
    this.name.focus();
  }

  send() {
    this.sent = true;
    this.ask({ do: "note", model: this.editing.model, head: this.editing.label,
      pinned: this.pin.checked, name: this.name.value, groups: this.inGroups.value.split(","),
      note: this.words.value });
  }
}

// A file with all that is shown, to be sent and opened again.
const MOST = 500_000;

class SavedFile {
  constructor(host, ask, complain) {
    this.save = element("button", { type: "button", className: "gi-save",
      title: "save what is shown, with all notes, as a file", onclick: () => this.saved() }, "save file");
    this.chosen = element("input", { type: "file", accept: ".json,application/json", hidden: true,
      onchange: async () => {
        const [file] = this.chosen.files;
        this.chosen.value = "";
        if (!file) return;
        if (file.size > MOST) {
          complain("The file is too large to be one that the explorer saved. Choose another.");
          return;
        }
        const value = await file.text(), n = this.view.notes.heads.length;
        const open = () => ask({ do: "file", value });
        if (!n) { open(); return; }
        say(this.warning, `The file replaces your notes on ${n} head${n > 1 ? "s" : ""}.`);
        this.replace.onclick = () => { this.dialog.close(); open(); };
        host.append(this.dialog);
        this.dialog.showModal();
      } });
    this.warning = element("p");
    this.replace = element("button", { type: "button", className: "gi-keep" }, "open the file");
    this.dialog = element("dialog", { className: "gi-dialog gi-replace", onclose: () => gone(this.dialog) },
      this.warning, element("div", { className: "gi-bar" }, this.replace,
        element("button", { type: "button", onclick: () => this.dialog.close() }, "keep my notes")));
    this.open = element("button", { type: "button", className: "gi-open-file",
      title: "open a file that an explorer saved", onclick: () => this.chosen.click() }, "open file");
  }

  saved() {
    const [name, text] = this.view.file;
    const link = element("a", { download: name,
      href: URL.createObjectURL(new Blob([text], { type: "application/json" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
