// The card of one study: images, both reports with marked findings, and the explanation.
// All text is inserted as text nodes, never as HTML.

const MARK_SIGNS = {agree: "✓", differs: "≈", missed: "−", invented: "+"};
const MARK_WORDS = {agree: "agrees", differs: "differs in a detail", missed: "missed", invented: "invented"};
const HOW_TO_SELECT = matchMedia("(pointer: coarse)").matches ? "Tap a word" : "Point at a word, or use → and ←,";
const getHeatColor = () => getComputedStyle(document.documentElement).getPropertyValue("--heat").split(",").map(Number);

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
    Object.assign(this, {studies, study, opened});           // opened: studies whose explanation is open
    const data = this.data = studies.data;
    this.views = data.views[study];
    this.words = studies.getWords(study);
    this.pinned = this.shown = -1;                           // indices of words; -1: none
    const attributes = {class: "card", tabindex: 0, "data-study": study, "aria-label": `Study ${data.id[study]}`};
    const warnings = data.warnings[study].map((text) =>
      make("p", {class: "warning"}, make("strong", {}, "Warning: "), text));
    this.node = make("article", attributes, this.makeHeader(), ...warnings,
                     make("div", {class: this.views.length ? "body" : "body without-images"}, this.makeImages(), this.makeReports()), this.makeExplanation());
    this.addListeners();
    this.show(-1);
  }

  makeHeader() {
    const {data, study, studies} = this;
    const scores = [...studies.sortKeys].filter(([, key]) => key.isScore && (key.value(study) ?? null) !== null)
      .filter(([name]) => !["BLEU_2", "BLEU_3", "confidence", "errors"].includes(name))
      .map(([, key]) => make("span", {}, `${key.name} `, make("b", {}, key.value(study).toFixed(3))));
    this.position = make("span", {class: "position"});
    return make("header", {}, make("h3", {}, data.id[study]), this.position,
                make("div", {class: "study-scores"}, ...scores));
  }

  makeImages() {
    this.canvases = [];
    const figures = this.views.map((view, number) => {
      const image = make("img", {alt: `${view} view`, decoding: "async", draggable: "false"});
      this.loadImage(image, number);
      const canvas = make("canvas", {"aria-hidden": "true"});
      this.canvases.push(canvas);
      return make("figure", {}, make("div", {class: "xray"}, image, canvas), make("figcaption", {}, view));
    });
    if (!figures.length) return null;
    this.caveat = make("p", {class: "caveat"});
    return make("div", {class: `images columns-${Math.min(figures.length, 2)}`}, ...figures, this.caveat);
  }

  loadImage(image, number) {
    const {data, study} = this, name = `image-${study}-${number}`;
    if (data.imageFolder) {
      image.src = `${encodeURIComponent(data.imageFolder)}/${study}-${number}.jpg`;
      return;
    }
    const blob = document.getElementById(name);
    if (blob) image.src = `data:image/jpeg;base64,${blob.textContent}`;
    else if (document.readyState === "loading") {
      document.addEventListener("DOMContentLoaded", () => this.loadImage(image, number), {once: true});
    }
  }

  makeReports() {
    const {data, study, studies} = this;
    this.generated = make("p", {class: "report generated"});
    this.spans = [];
    const marks = studies.getMarks(study, false);
    let mark = null, markNode = null;
    this.words.forEach((word, index) => {
      const span = make("span", {class: "word", "data-word": index}, word.text);
      this.spans.push(span);
      const end = word.start + word.text.length;
      const wordMark = marks.find((each) => each.start < end && each.end > word.start && each.end > each.start) ?? null;
      const space = index ? document.createTextNode(" ") : "";
      if (wordMark && wordMark === mark) markNode.append(space, span);
      else {
        this.addMarkSign(markNode, mark);
        markNode = wordMark ? this.makeMark(wordMark) : null;
        this.generated.append(space, markNode ?? span);
        if (markNode) markNode.append(span);
      }
      mark = wordMark;
    });
    this.addMarkSign(markNode, mark);
    if (!this.words.length) this.generated.append(make("i", {}, "empty report"));
    this.wordInfo = make("p", {class: "word-info"});
    const parts = [make("h4", {}, "Generated"), this.generated, data.logProbs[study] ? this.wordInfo : null];
    if (data.reference[study] !== null) parts.push(make("h4", {}, "Reference"), this.makeReference());
    parts.push(this.makeFindings());
    return make("div", {class: "reports"}, ...parts);
  }

  makeMark(mark) {
    const {studies, study} = this, index = study * studies.numFindings + mark.finding;
    const name = RELATION_NAMES[mark.relation] || "stated";
    const title = `${studies.data.findings[mark.finding]}${MARK_WORDS[name] ? `, ${MARK_WORDS[name]}` : ""}: ` +
      (studies.hasReference ? `reference ${LABEL_NAMES[studies.reference[index]]}, generated ` : "") +
      LABEL_NAMES[studies.generated[index]] +
      (name === "differs" ? `; ${studies.getDifference(study, mark.finding)}` : "");
    return make("mark", {class: name, title});
  }

  addMarkSign(node, mark) {
    const name = mark && (RELATION_NAMES[mark.relation] || "stated");
    if (node && MARK_SIGNS[name]) node.append(make("sup", {"aria-label": MARK_WORDS[name]}, MARK_SIGNS[name]));
  }

  makeReference() {
    const text = this.data.reference[this.study], report = make("p", {class: "report reference"});
    let end = 0;
    for (const mark of this.studies.getMarks(this.study, true)) {
      const node = this.makeMark(mark);
      node.append(text.slice(mark.start, mark.end));
      this.addMarkSign(node, mark);
      report.append(text.slice(end, mark.start), node);
      end = mark.end;
    }
    report.append(text.slice(end));
    return report;
  }

  makeFindings() {
    const {studies, study} = this, chips = [];
    studies.data.findings.forEach((finding, number) => {
      const relation = RELATION_NAMES[studies.getRelation(study, number)];
      const stated = studies.generated[study * studies.numFindings + number] === POSITIVE;
      if (!relation && !(stated && !studies.hasReference)) return;
      chips.push(make("li", {class: relation || "stated"},
                      MARK_SIGNS[relation] ? `${MARK_SIGNS[relation]} ` : "", finding,
                      relation === "differs" ? `: ${studies.getDifference(study, number)}` : "",
                      make("span", {class: "visually-hidden"}, relation ? ` ${MARK_WORDS[relation]}` : "")));
    });
    return chips.length ? make("ul", {class: "chips", "aria-label": "Findings"}, ...chips) : null;
  }

  // Returns memory slots and similar training reports, which are added when the element is opened.
  makeExplanation() {
    const {data, study} = this;
    if (!data.slots[study].length && !data.neighbors[study].length) return null;
    const details = make("details", {class: "explanation", open: this.opened.has(study)},
                         make("summary", {}, "Memory slots and similar training reports"));
    const fill = () => details.children.length > 1 || details.append(this.makeSlotsAndNeighbors());
    if (details.open) fill();
    details.addEventListener("toggle", () => {
      if (details.open) fill(), this.opened.add(study);
      else this.opened.delete(study);
    });
    return this.details = details;
  }

  makeSlotsAndNeighbors() {
    const {data, study} = this, groups = new Map();
    data.slots[study].forEach(([slot, weight]) => {        // slots that started from the same topic are one group
      const [topic, topicWords, topWords] = data.slotDescriptions[slot] ?? [null, [], []];
      const group = groups.get(topic ?? `slot ${slot}`) ??
        {topic, topicWords, slots: [], weight: 0, topWords: new Set()};
      groups.set(topic ?? `slot ${slot}`, group);
      group.slots.push(slot);
      group.weight += weight;
      topWords.forEach((word) => group.topWords.size < 8 && group.topWords.add(word));
    });
    const sorted = [...groups.values()].sort((a, b) => b.weight - a.weight);
    const largest = Math.max(1, sorted[0]?.weight ?? 1);
    const slots = sorted.map((group) => make("li", {},
      make("span", {class: "slot-weight"},
           this.makeBar(group.weight / largest), ` ${(group.weight / 10).toFixed(1)} %`),
      make("span", {class: "slot"}, `${group.slots.length > 1 ? "slots" : "slot"} ${group.slots.join(", ")} `),
      this.makeWordList(`started from topic ${group.topic}: `, group.topicWords),
      this.makeWordList("selected by: ", [...group.topWords])));
    const neighbors = data.neighbors[study].map(([record, cosine]) =>
      make("li", {}, make("span", {class: "slot"}, `similarity ${(cosine / 100).toFixed(2)} `),
           make("p", {class: "report"}, data.trainReports[record])));
    return make("div", {class: "slots-and-neighbors"},
      make("div", {}, make("h4", {}, "Memory slots with the most weight for the images"), make("ol", {}, ...slots)),
      neighbors.length ? make("div", {}, make("h4", {}, "Training reports that select similar slots"),
                              make("ol", {}, ...neighbors)) : null);
  }

  makeWordList(title, words) {
    return words.length ? make("span", {class: "words"}, make("em", {}, title), `${words.join(", ")} `) : null;
  }

  // Returns a horizontal bar of a length in 0..1.
  makeBar(length) {
    const makeSvg = (tag, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      return node;
    };
    const svg = makeSvg("svg", {width: 72, height: 6, "aria-hidden": "true"});
    svg.append(makeSvg("rect", {class: "bar-fill", width: 72 * length, height: 6, rx: 1.5}));
    return svg;
  }

  addListeners() {
    const getWord = (event) => event.target.closest?.(".word")?.dataset.word;
    this.generated.addEventListener("pointerover", (event) => {
      const word = getWord(event);
      if (word !== undefined && event.pointerType !== "touch") this.show(Number(word));
    });
    this.generated.addEventListener("pointerleave", () => this.show(this.pinned));
    this.generated.addEventListener("click", (event) => {
      const word = getWord(event);
      if (word !== undefined) this.pin(Number(word) === this.pinned ? -1 : Number(word));
    });
  }

  // Says how far the heat map of a word can be trusted.
  describeCaveat(word) {
    const rates = this.studies.getPointingRates(this.study, this.words[word]);
    if (!rates) return "A hint, not a proof: how often such maps are right was not measured.";
    const [name, number, own, another] = rates, percent = (share) => `${Math.round(100 * share)}\u00a0%`;
    return (name === "all" ? `A hint: ${percent(own)} of maps hit the finding` : `A hint: ${percent(own)} of ${name} maps hit it`) +
      ` (n\u00a0=\u00a0${number}), another study’s ${percent(another)}.`;
  }

  // Keeps showing a word (-1: none) after the pointer leaves it. Returns the text for a screen reader.
  pin(word) {
    this.pinned = word;
    this.show(word);
    return word < 0 ? "" : `${this.words[word].text}. ${this.description}`;
  }

  // Pins a later (or earlier) word.
  movePin(step) {
    return this.pin(Math.min(Math.max(this.pinned + step, 0), this.words.length - 1));
  }

  // Shows the attention map and the probability of a word (-1: none).
  show(word) {
    this.spans[this.shown]?.classList.remove("current");
    this.shown = word;
    const maps = word < 0 ? null : this.maps ??= readMaps(this.study, this.words.length, this.views.length);
    if (maps || this.drawn) drawHeatMaps(this.canvases, maps, word, getHeatColor());
    this.drawn = Boolean(maps);
    this.node.classList.toggle("showing-attention", Boolean(maps));
    if (word < 0) {
      this.description = "";
      this.wordInfo.replaceChildren(
        make("span", {class: "hint"}, `${HOW_TO_SELECT} to see where the model looked.`));
      return;
    }
    this.spans[word].classList.add("current");
    const {text, probability} = this.words[word];
    const percent = probability === null ? "" : probability < 0.001 ? "< 0.1 %"
      : `${(100 * probability).toFixed(1)} %`;
    if (this.caveat) this.caveat.textContent = maps ? this.describeCaveat(word) : "";
    const location = maps ? describeMaximum(maps, word, this.views) : "";
    this.description = [percent && `probability ${percent}`,
                        location && `most attention: ${location}`].filter(Boolean).join("; ");
    const probabilityNodes = probability === null ? [] : [this.makeBar(probability), percent];
    this.wordInfo.replaceChildren(make("b", {}, text), ...probabilityNodes,
                                  make("span", {class: "hint"}, location));
  }
}
