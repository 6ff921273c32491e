// The data of all studies, and filtering and sorting by it. This file does not touch the DOM.
"use strict";

const ABSENT = 0, NEGATIVE = 1, UNCERTAIN = 2, POSITIVE = 3;
const NONE = 0, AGREE = 1, DIFFERS = 2, MISSED = 3, INVENTED = 4;      // DIFFERS: in side, size or another detail
const RELATION_NAMES = ["", "agree", "differs", "missed", "invented"];
const LABEL_NAMES = ["not mentioned", "negative", "uncertain", "positive"];
const MIN_POINTED = 10;                                   // findings that a rate of their own needs
const LOG_PROB_SCALE = 4000;                              // as in html_report/data.py

class Studies {
  constructor(data) {
    this.data = data;
    this.count = data.id.length;
    const numFindings = this.numFindings = data.findings.length;
    this.hasReference = data.reference.some((report) => report !== null);
    this.comparesDetails = data.differences.some((differences) => differences !== null);
    this.hasLabels = data.labels.some((digits) => digits !== "");
    // Of each study and finding: both labels, and how they compare.
    this.reference = new Uint8Array(this.count * numFindings);
    this.generated = new Uint8Array(this.count * numFindings);
    this.relations = new Uint8Array(this.count * numFindings);
    this.errors = new Uint16Array(this.count);
    data.labels.forEach((digits, study) => {
      for (let finding = 0; finding < digits.length; finding++) {
        const digit = parseInt(digits[finding], 16), index = study * numFindings + finding;
        this.reference[index] = digit >> 2;
        this.generated[index] = digit & 3;
        this.relations[index] = this.compareLabels(data.reference[study] !== null, digit >> 2, digit & 3);
        if (this.relations[index] === AGREE && this.getDifference(study, finding)) this.relations[index] = DIFFERS;
        // "No Finding" follows from the other findings, so it is not an error of its own.
        if (this.relations[index] > DIFFERS && data.findings[finding] !== "No Finding") this.errors[study]++;
      }
    });
    this.texts = data.generated.map((report, study) =>
      [data.id[study], report, data.reference[study] ?? "", ...data.warnings[study]].join("\n").toLowerCase());
    this.sortKeys = new Map([["order", {name: "as in the split", value: (study) => study}]]);
    for (const [metric, values] of Object.entries(data.scores)) {
      this.sortKeys.set(metric, {name: metric.replace(/_/g, "-"), value: (study) => values[study], isScore: true});
    }
    if (data.meanLogProb.some((value) => value !== null)) {
      this.sortKeys.set("confidence", {name: "mean log-probability per word", value: (study) => data.meanLogProb[study],
                                       isScore: true});
    }
    if (this.hasLabels && this.hasReference) {
      this.sortKeys.set("errors", {name: "missed or invented findings", value: (study) => this.errors[study],
                                   isScore: true});
    }
  }

  // Compares the labels of one finding. Uncertain counts as not positive, as in the scores.
  compareLabels(hasReference, reference, generated) {
    if (!hasReference) return NONE;
    if (reference === POSITIVE) return generated === POSITIVE ? AGREE : MISSED;
    return generated === POSITIVE ? INVENTED : NONE;
  }

  // Returns how the details of a finding differ; undefined if they don't, or aren't compared.
  getDifference(study, finding) {
    return this.data.differences[study]?.[finding];
  }

  getRelation(study, finding) {
    return this.relations[study * this.numFindings + finding];
  }

  // Returns the studies that match a query, sorted. The query has text, finding (-1: any), relation, sortKey,
  // descending, low and high (null: no limit).
  select(query) {
    const words = query.text.toLowerCase().split(/\s+/).filter(Boolean);
    const getValue = this.sortKeys.get(query.sortKey).value;
    const selected = [];
    for (let study = 0; study < this.count; study++) {
      if (!words.every((word) => this.texts[study].includes(word))) continue;
      if (!this.matches(study, query.finding, query.relation)) continue;
      const value = getValue(study);
      if ((query.low !== null || query.high !== null) && value === null) continue;
      if (query.low !== null && value < query.low) continue;
      if (query.high !== null && value > query.high) continue;
      selected.push(study);
    }
    const sign = query.descending ? -1 : 1;
    const isMissing = (value) => value === null || value === undefined;
    selected.sort((a, b) => {
      const left = getValue(a), right = getValue(b);
      if (isMissing(left) || isMissing(right)) return isMissing(left) - isMissing(right) || a - b;     // missing last
      return sign * (left - right) || a - b;
    });
    return selected;
  }

  // Returns whether a finding (-1: any finding) of a study has a relation.
  matches(study, finding, relation) {
    if (relation === "right" && finding < 0) return this.errors[study] === 0;
    if (relation === "right") return this.getRelation(study, finding) <= DIFFERS;
    if (relation === "wrong" && finding < 0) return this.errors[study] > 0;
    if (relation === "any" && finding < 0) return true;
    const start = study * this.numFindings;
    for (let i = finding < 0 ? 0 : finding; i < (finding < 0 ? this.numFindings : finding + 1); i++) {
      if (finding < 0 && this.data.findings[i] === "No Finding") continue;
      const actual = this.relations[start + i];
      if (relation === "any" && (actual !== NONE || this.generated[start + i] === POSITIVE)) return true;
      if (relation === "wrong" && actual > DIFFERS) return true;
      if (relation === "agree" && actual === DIFFERS) return true;
      if (relation === "reference" && this.reference[start + i] === POSITIVE) return true;
      if (RELATION_NAMES[actual] === relation && actual !== NONE) return true;
    }
    return false;
  }

  // Returns the words of the generated report: text, start (character), probability (null if unknown).
  getWords(study) {
    const report = this.data.generated[study], encoded = this.data.logProbs[study];
    const logProbs = encoded ? new Uint16Array(decodeBytes(encoded).buffer) : null;
    const words = [];
    if (this.data.words[study]) {                        // joined by single spaces, they are not the report
      let start = 0;
      for (const text of this.data.words[study]) {
        const match = report.indexOf(text, start);
        if (match >= 0) start = match;
        words.push({text, start});
        start += match >= 0 ? text.length : 0;
      }
    } else {
      for (const match of report.matchAll(/[^ ]+/g)) words.push({text: match[0], start: match.index});
    }
    words.forEach((word, index) => {
      word.probability = logProbs && index < logProbs.length ? Math.exp(-logProbs[index] / LOG_PROB_SCALE) : null;
    });
    return words;
  }

  // Returns how often heat maps point at findings: [name, number, share of hits, share by another study's map], of the
  // finding that a word of the generated report names or of all; null if it wasn't measured.
  getPointingRates(study, word) {
    const rates = this.data.pointingGame, flat = this.data.generatedMentions[study];
    if (!rates) return null;
    for (let i = 0; i < flat.length; i += 4) {
      const isNamed = flat[i] < word.start + word.text.length && flat[i + 1] > word.start && flat[i + 3] === POSITIVE;
      if (isNamed && rates[flat[i + 2]]?.[1] >= MIN_POINTED) return rates[flat[i + 2]];
    }
    return rates[-1];
  }

  // Returns the mentions to mark in a report: start, end, relation, finding, label; in order, without overlaps.
  getMarks(study, inReference) {
    const flat = (inReference ? this.data.referenceMentions : this.data.generatedMentions)[study];
    const marks = [];
    let end = 0;
    for (let i = 0; i < flat.length; i += 4) {
      const [start, stop, finding, label] = flat.slice(i, i + 4);
      const relation = this.getRelation(study, finding);
      const shown = relation === MISSED ? inReference ? label === POSITIVE : true
        : relation === INVENTED ? inReference ? true : label === POSITIVE
        : relation === AGREE || relation === DIFFERS ? label === POSITIVE : !this.hasReference && label === POSITIVE;
      if (!shown || start < end) continue;
      marks.push({start, end: stop, relation, finding, label});
      end = stop;
    }
    return marks;
  }
}

function decodeBytes(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
