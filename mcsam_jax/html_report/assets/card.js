// One study as an element: images, both reports with their marks, and what was recalled. All text enters as text.

const MARK_SIGNS = {agree: "✓", missed: "−", invented: "+"};
const MARK_WORDS = {agree: "agrees", missed: "missed", invented: "invented"};
const accent = () => getComputedStyle(document.documentElement).getPropertyValue("--heat").split(",").map(Number);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

class Card {
  constructor(studies, study, opened) {
    Object.assign(this, {studies, study, opened});
    const data = this.data = studies.data;
    this.views = data.views[study];
    this.words = studies.words(study);
    this.pinned = this.shown = -1;
    const attributes = {class: "card", tabindex: 0, "data-study": study, "aria-label": `Study ${data.id[study]}`};
    const warnings = data.warnings[study].map((text) =>
      make("p", {class: "warning"}, make("strong", {}, "Warning: "), text));
    this.node = make("article", attributes, this.head(), ...warnings,
                     make("div", {class: "body"}, this.pictures(), this.reports()), this.why());
    this.listen();
    this.show(-1);
  }

  head() {
    const {data, study, studies} = this;
    const numbers = [...studies.keys].filter(([, key]) => key.score && (key.value(study) ?? null) !== null)
      .filter(([name]) => !["BLEU_2", "BLEU_3", "sure", "errors"].includes(name))
      .map(([, key]) => make("span", {}, `${key.name} `, make("b", {}, key.value(study).toFixed(3))));
    this.position = make("span", {class: "position"});
    return make("header", {}, make("h3", {}, data.id[study]), this.position,
                make("div", {class: "numbers"}, ...numbers));
  }

  pictures() {
    this.canvases = [];
    const figures = this.views.map((view, number) => {
      const image = make("img", {alt: `${view} view`, decoding: "async", draggable: "false"});
      this.load(image, number);
      const canvas = make("canvas", {"aria-hidden": "true"});
      this.canvases.push(canvas);
      return make("figure", {}, make("div", {class: "film"}, image, canvas), make("figcaption", {}, view));
    });
    return make("div", {class: `pictures of-${Math.min(figures.length, 2)}`}, ...figures);
  }

  load(image, number) {
    const {data, study} = this, name = `i${study}-${number}`;
    if (data.imageFolder) {
      image.src = `${encodeURIComponent(data.imageFolder)}/${study}-${number}.jpg`;
      return;
    }
    const lump = document.getElementById(name);
    if (lump) image.src = `data:image/jpeg;base64,${lump.textContent}`;
    else if (document.readyState === "loading") {
      document.addEventListener("DOMContentLoaded", () => this.load(image, number), {once: true});
    }
  }

  reports() {
    const {data, study, studies} = this;
    this.generated = make("p", {class: "report generated"});
    this.spans = [];
    const marks = studies.marks(study, false);
    let mark = null, inside = null;
    this.words.forEach((word, at) => {
      const span = make("span", {class: "w", "data-word": at}, word.text);
      this.spans.push(span);
      const end = word.start + word.text.length;
      const own = marks.find((each) => each.start < end && each.end > word.start && each.end > each.start) ?? null;
      const blank = at ? document.createTextNode(" ") : "";
      if (own && own === mark) inside.append(blank, span);
      else {
        this.close(inside, mark);
        inside = own ? this.open(own) : null;
        this.generated.append(blank, inside ?? span);
        if (inside) inside.append(span);
      }
      mark = own;
    });
    this.close(inside, mark);
    if (!this.words.length) this.generated.append(make("i", {}, "no word was written"));
    this.readout = make("p", {class: "readout"});
    const parts = [make("h4", {}, "Generated"), this.generated, this.words.length ? this.readout : null];
    if (data.ref[study] !== null) parts.push(make("h4", {}, "Reference"), this.referenceReport());
    parts.push(this.chips());
    return make("div", {class: "reports"}, ...parts);
  }

  open(mark) {
    const {studies, study} = this, at = study * studies.width + mark.finding;
    const name = RELATION_NAMES[mark.relation] || "stated";
    const note = `${studies.data.findings[mark.finding]}${MARK_WORDS[name] ? `, ${MARK_WORDS[name]}` : ""}: ` +
      (studies.hasReference ? `reference ${LABEL_NAMES[studies.reference[at]]}, generated ` : "") +
      LABEL_NAMES[studies.generated[at]];
    return make("mark", {class: name, title: note});
  }

  close(node, mark) {
    const name = mark && (RELATION_NAMES[mark.relation] || "stated");
    if (node && MARK_SIGNS[name]) node.append(make("sup", {"aria-label": MARK_WORDS[name]}, MARK_SIGNS[name]));
  }

  referenceReport() {
    const text = this.data.ref[this.study], report = make("p", {class: "report reference"});
    let end = 0;
    for (const mark of this.studies.marks(this.study, true)) {
      const node = this.open(mark);
      node.append(text.slice(mark.start, mark.end));
      this.close(node, mark);
      report.append(text.slice(end, mark.start), node);
      end = mark.end;
    }
    report.append(text.slice(end));
    return report;
  }

  chips() {
    const {studies, study} = this, chips = [];
    studies.data.findings.forEach((finding, number) => {
      const relation = RELATION_NAMES[studies.relation(study, number)];
      const stated = studies.generated[study * studies.width + number] === POSITIVE;
      if (!relation && !(stated && !studies.hasReference)) return;
      chips.push(make("li", {class: relation || "stated"},
                      MARK_SIGNS[relation] ? `${MARK_SIGNS[relation]} ` : "", finding,
                      make("span", {class: "unseen"}, relation ? ` ${MARK_WORDS[relation]}` : "")));
    });
    return chips.length ? make("ul", {class: "chips", "aria-label": "Findings"}, ...chips) : null;
  }

  why() {
    const {data, study} = this;
    if (!data.slots[study].length && !data.near[study].length) return null;
    const details = make("details", {class: "why", open: this.opened.has(study)},
                         make("summary", {}, "What the memory recalled, and training reports that recall the same"));
    const fill = () => details.children.length > 1 || details.append(this.recalled());
    if (details.open) fill();
    details.addEventListener("toggle", () => {
      if (details.open) fill(), this.opened.add(study);
      else this.opened.delete(study);
    });
    return this.details = details;
  }

  recalled() {
    const {data, study} = this, groups = new Map();
    data.slots[study].forEach(([slot, share]) => {         // slots that began as one topic stand together
      const [topic, began, answers] = data.slotWords[slot] ?? [null, [], []];
      const group = groups.get(topic ?? `slot ${slot}`) ?? {topic, began, slots: [], share: 0, answers: new Set()};
      groups.set(topic ?? `slot ${slot}`, group);
      group.slots.push(slot);
      group.share += share;
      answers.forEach((word) => group.answers.size < 8 && group.answers.add(word));
    });
    const sorted = [...groups.values()].sort((a, b) => b.share - a.share), most = Math.max(1, sorted[0]?.share ?? 1);
    const slots = sorted.map((group) => make("li", {},
      make("span", {class: "share"}, this.bar(group.share / most), ` ${(group.share / 10).toFixed(1)} %`),
      make("span", {class: "slot"}, `${group.slots.length > 1 ? "slots" : "slot"} ${group.slots.join(", ")} `),
      this.wordsOf(`began as topic ${group.topic} `, group.began), this.wordsOf("now answers ", [...group.answers])));
    const near = data.near[study].map(([record, cosine]) =>
      make("li", {}, make("span", {class: "slot"}, `similarity ${(cosine / 100).toFixed(2)} `),
           make("p", {class: "report"}, data.train[record])));
    return make("div", {class: "recalled"},
      make("div", {}, make("h4", {}, "Slots of the memory that answered the images most"), make("ol", {}, ...slots)),
      near.length ? make("div", {}, make("h4", {}, "Training reports that recall the same slots"),
                         make("ol", {}, ...near)) : null);
  }

  wordsOf(title, words) {
    return words.length ? make("span", {class: "words"}, make("em", {}, title), `${words.join(", ")} `) : null;
  }

  bar(share) {
    const draw = (tag, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      return node;
    };
    const svg = draw("svg", {width: 72, height: 6, "aria-hidden": "true"});
    svg.append(draw("rect", {class: "weight", width: 72 * share, height: 6, rx: 1.5}));
    return svg;
  }

  listen() {
    const wordOf = (event) => event.target.closest?.(".w")?.dataset.word;
    this.generated.addEventListener("pointerover", (event) => {
      const word = wordOf(event);
      if (word !== undefined && event.pointerType !== "touch") this.show(Number(word));
    });
    this.generated.addEventListener("pointerleave", () => this.show(this.pinned));
    this.generated.addEventListener("click", (event) => {
      const word = wordOf(event);
      if (word !== undefined) this.pin(Number(word) === this.pinned ? -1 : Number(word));
    });
  }

  // Keeps the map of a word (-1: of none) when the pointer goes; returns what a screen reader is told.
  pin(word) {
    this.pinned = word;
    this.show(word);
    return word < 0 ? "" : `${this.words[word].text}. ${this.told}`;
  }

  step(by) {
    return this.pin(Math.min(Math.max(this.pinned + by, 0), this.words.length - 1));
  }

  show(word) {
    this.spans[this.shown]?.classList.remove("now");
    this.shown = word;
    const maps = word < 0 ? null : this.maps ??= readMaps(this.study, this.words.length, this.views.length);
    if (maps || this.drawn) drawHeat(this.canvases, maps, word, accent());
    this.drawn = Boolean(maps);
    this.node.classList.toggle("looking", Boolean(maps));
    if (word < 0) {
      this.told = "";
      this.readout.replaceChildren(
        make("span", {class: "hint"}, "Point at a word, or use → and ←, to see where the model looked."));
      return;
    }
    this.spans[word].classList.add("now");
    const {text, probability} = this.words[word];
    const percent = probability === null ? "" : probability < 0.001 ? "below 0.1 %"
      : `${(100 * probability).toFixed(1)} %`;
    const where = maps ? placeOf(maps, word, this.views) : "";
    this.told = [percent && `probability ${percent}`, where && `looked most at: ${where}`].filter(Boolean).join("; ");
    const known = probability === null ? [] : [this.bar(probability), percent];
    this.readout.replaceChildren(make("b", {}, text), ...known, make("span", {class: "hint"}, where));
  }
}
