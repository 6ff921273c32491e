// What the page knows of its studies, and which of them a filter keeps. No element is touched here.
"use strict";

const ABSENT = 0, NEGATIVE = 1, UNCERTAIN = 2, POSITIVE = 3;
const NONE = 0, AGREE = 1, MISSED = 2, INVENTED = 3;
const RELATION_NAMES = ["", "agree", "missed", "invented"];
const LABEL_NAMES = ["not mentioned", "negative", "uncertain", "positive"];
const PROBABILITY_STEPS = 4000;

class Studies {
  constructor(data) {
    this.data = data;
    this.count = data.id.length;
    const width = this.width = data.findings.length;
    this.hasReference = data.ref.some((report) => report !== null);
    this.hasLabels = data.labels.some((digits) => digits !== "");
    this.reference = new Uint8Array(this.count * width);
    this.generated = new Uint8Array(this.count * width);
    this.relations = new Uint8Array(this.count * width);
    this.errors = new Uint16Array(this.count);
    data.labels.forEach((digits, study) => {
      for (let finding = 0; finding < digits.length; finding++) {
        const both = parseInt(digits[finding], 16), at = study * width + finding;
        this.reference[at] = both >> 2;
        this.generated[at] = both & 3;
        this.relations[at] = this.relate(data.ref[study] !== null, both >> 2, both & 3);
        // "No Finding" repeats what the other findings say.
        if (this.relations[at] > AGREE && data.findings[finding] !== "No Finding") this.errors[study]++;
      }
    });
    this.texts = data.gen.map((report, study) =>
      [data.id[study], report, data.ref[study] ?? "", ...data.warnings[study]].join("\n").toLowerCase());
    this.keys = new Map([["order", {name: "as in the split", value: (study) => study}]]);
    for (const [metric, values] of Object.entries(data.scores)) {
      this.keys.set(metric, {name: metric.replace(/_/g, "-"), value: (study) => values[study], score: true});
    }
    if (data.logp.some((value) => value !== null)) {
      this.keys.set("sure", {name: "how sure, log-probability a word", value: (study) => data.logp[study],
                             score: true});
    }
    if (this.hasLabels && this.hasReference) {
      this.keys.set("errors", {name: "missed and invented", value: (study) => this.errors[study], score: true});
    }
  }

  // Uncertain is not positive, as in the scores.
  relate(known, reference, generated) {
    if (!known) return NONE;
    if (reference === POSITIVE) return generated === POSITIVE ? AGREE : MISSED;
    return generated === POSITIVE ? INVENTED : NONE;
  }

  relation(study, finding) {
    return this.relations[study * this.width + finding];
  }

  // Which studies stay, in which order. `asked`: text, finding (-1: any), relation, key, down, low, high.
  select(asked) {
    const words = asked.text.toLowerCase().split(/\s+/).filter(Boolean);
    const value = this.keys.get(asked.key).value;
    const kept = [];
    for (let study = 0; study < this.count; study++) {
      if (!words.every((word) => this.texts[study].includes(word))) continue;
      if (!this.matches(study, asked.finding, asked.relation)) continue;
      const number = value(study);
      if ((asked.low !== null || asked.high !== null) && number === null) continue;
      if (asked.low !== null && number < asked.low) continue;
      if (asked.high !== null && number > asked.high) continue;
      kept.push(study);
    }
    const sign = asked.down ? -1 : 1;
    const last = (number) => number === null || number === undefined;          // what has no score comes last
    kept.sort((a, b) => {
      const left = value(a), right = value(b);
      if (last(left) || last(right)) return last(left) - last(right) || a - b;
      return sign * (left - right) || a - b;
    });
    return kept;
  }

  matches(study, finding, relation) {
    if (relation === "right" && finding < 0) return this.errors[study] === 0;
    if (relation === "right") return this.relation(study, finding) <= AGREE;
    if (relation === "wrong" && finding < 0) return this.errors[study] > 0;
    if (relation === "any" && finding < 0) return true;
    const begin = study * this.width;
    for (let at = finding < 0 ? 0 : finding; at < (finding < 0 ? this.width : finding + 1); at++) {
      if (finding < 0 && this.data.findings[at] === "No Finding") continue;
      const found = this.relations[begin + at];
      if (relation === "any" && (found !== NONE || this.generated[begin + at] === POSITIVE)) return true;
      if (relation === "wrong" && found > AGREE) return true;
      if (relation === "reference" && this.reference[begin + at] === POSITIVE) return true;
      if (RELATION_NAMES[found] === relation && found !== NONE) return true;
    }
    return false;
  }

  // The generated report's words: text, start (character), probability (null where it isn't known).
  words(study) {
    const report = this.data.gen[study], coded = this.data.prob[study];
    const logs = coded ? new Uint16Array(decodeBytes(coded).buffer) : null;
    const words = [];
    if (this.data.words[study]) {                        // they don't make up the report with single blanks between
      let start = 0;
      for (const text of this.data.words[study]) {
        const found = report.indexOf(text, start);
        if (found >= 0) start = found;
        words.push({text, start});
        start += found >= 0 ? text.length : 0;
      }
    } else {
      for (const match of report.matchAll(/[^ ]+/g)) words.push({text: match[0], start: match.index});
    }
    words.forEach((word, at) => {
      word.probability = logs && at < logs.length ? Math.exp(-logs[at] / PROBABILITY_STEPS) : null;
    });
    return words;
  }

  // The marked parts of a report: start, end, relation, finding, note; in order, none over another.
  marks(study, ofReference) {
    const flat = (ofReference ? this.data.refMarks : this.data.genMarks)[study];
    const marks = [];
    let end = 0;
    for (let at = 0; at < flat.length; at += 4) {
      const [start, stop, finding, label] = flat.slice(at, at + 4);
      const relation = this.relation(study, finding);
      const shown = relation === MISSED ? ofReference ? label === POSITIVE : true
        : relation === INVENTED ? ofReference ? true : label === POSITIVE
        : relation === AGREE ? label === POSITIVE : !this.hasReference && label === POSITIVE;
      if (!shown || start < end) continue;
      marks.push({start, end: stop, relation, finding, label});
      end = stop;
    }
    return marks;
  }
}

function decodeBytes(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}
