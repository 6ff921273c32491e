// A list of any length, of which only what is in sight exists. It scrolls with the page; heights are measured as the
// entries come into sight and guessed before.

const MARGIN = 900;                                       // pixels above and below the window that are drawn ahead

class List {
  constructor(host, makeCard) {
    Object.assign(this, {host, makeCard, order: [], offsets: new Float64Array(1)});
    Object.assign(this, {heights: new Map(), cards: new Map()});      // of studies, by their number
    this.places = new Map();                              // of each study in `order`
    this.sizes = new ResizeObserver((entries) => this.measure(entries));
    const draw = () => {
      if (!this.waiting) this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
    };
    addEventListener("scroll", draw, {passive: true});
    addEventListener("resize", () => { this.widen(); draw(); });
    this.width = host.offsetWidth;
    this.guess = this.width < 700 ? 760 : 420;
    this.guessed = false;
  }

  setOrder(order) {
    this.order = order;
    this.places = new Map(order.map((study, place) => [study, place]));
    for (const [study, card] of this.cards) if (!this.places.has(study)) this.drop(study, card);
    this.place();
    this.draw();
  }

  // Where each entry begins, from what is known of their heights.
  place() {
    if (!this.guessed && this.heights.size) {
      // A few heights make a better guess; it then stays, as each change would move all that is further down.
      let sum = 0;
      for (const height of this.heights.values()) sum += height;
      this.guess = sum / this.heights.size;
      this.guessed = true;
    }
    this.offsets = new Float64Array(this.order.length + 1);
    this.order.forEach((study, place) => {
      this.offsets[place + 1] = this.offsets[place] + (this.heights.get(study) ?? this.guess);
    });
    this.host.style.height = `${this.offsets[this.order.length]}px`;
    for (const [study, card] of this.cards) card.node.style.top = `${this.offsets[this.places.get(study)]}px`;
  }

  // Lines break elsewhere when the width changes: what is in sight is measured again, the rest guessed.
  widen() {
    if (this.host.offsetWidth === this.width) return;
    this.width = this.host.offsetWidth;
    this.heights.clear();
    this.guessed = false;
    for (const [study, card] of this.cards) this.heights.set(study, card.node.offsetHeight + this.gap(card.node));
    this.place();
  }

  gap(node) {
    return parseFloat(getComputedStyle(node).marginBottom);
  }

  // The entry at a distance from the list's top.
  at(offset) {
    let low = 0, high = this.order.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.offsets[middle] <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  top() {
    return this.host.getBoundingClientRect().top;
  }

  draw() {
    const top = this.top(), first = this.at(-top - MARGIN), last = this.at(innerHeight - top + MARGIN);
    const wanted = new Set(this.order.slice(first, last + 1));
    for (const [study, card] of this.cards) {
      if (!wanted.has(study) && !card.node.contains(document.activeElement)) this.drop(study, card);
    }
    for (let place = first; place <= Math.min(last, this.order.length - 1); place++) this.card(this.order[place]);
    // Elements stand in the order in which they are seen, for Tab and for screen readers.
    const inOrder = [...this.cards].sort(([a], [b]) => this.places.get(a) - this.places.get(b));
    let before = null;
    for (const [study, card] of inOrder) {
      card.node.setAttribute("aria-posinset", this.places.get(study) + 1);
      card.node.setAttribute("aria-setsize", this.order.length);
      card.position.textContent = `${this.places.get(study) + 1} of ${this.order.length}`;
      const next = before ? before.nextSibling : this.host.firstChild;
      if (next !== card.node) this.host.insertBefore(card.node, next);
      before = card.node;
    }
  }

  card(study) {
    let card = this.cards.get(study);
    if (!card) {
      card = this.makeCard(study);
      this.cards.set(study, card);
      card.node.style.top = `${this.offsets[this.places.get(study)]}px`;
      this.host.append(card.node);
      this.sizes.observe(card.node);
    }
    return card;
  }

  drop(study, card) {
    this.sizes.unobserve(card.node);
    card.node.remove();
    this.cards.delete(study);
  }

  // Takes heights over; what is in sight stays where it is.
  measure(entries) {
    const anchor = this.at(-this.top()), before = this.offsets[anchor];
    let changed = false;
    for (const entry of entries) {
      const study = Number(entry.target.dataset.study), height = entry.borderBoxSize[0].blockSize;
      const whole = height + this.gap(entry.target);
      if (!this.places.has(study) || Math.abs((this.heights.get(study) ?? 0) - whole) < 1) continue;
      this.heights.set(study, whole);
      changed = true;
    }
    if (!changed) return;
    this.place();
    const moved = this.offsets[anchor] - before;
    if (this.top() < 0 && Math.abs(moved) >= 1) scrollBy(0, moved);
    this.draw();
  }

  // Brings a place into sight and its card to the keyboard.
  go(place) {
    if (!this.order.length) return;
    place = Math.min(Math.max(place, 0), this.order.length - 1);
    const card = this.card(this.order[place]);
    card.node.focus({preventScroll: true});
    const edge = parseFloat(getComputedStyle(this.host).scrollMarginTop) || 0;
    const begin = this.top() + this.offsets[place], end = begin + (this.heights.get(this.order[place]) ?? this.guess);
    if (begin < edge || end > innerHeight) scrollBy(0, begin - edge);
    this.draw();
  }
}
