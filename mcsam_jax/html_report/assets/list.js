// A virtual list: only the cards near the window are in the DOM. The list scrolls with the page. The height of a card
// is an estimate until the card is drawn and measured.

const OVERSCAN = 900;                                     // pixels above and below the window that are drawn, too

class List {
  constructor(host, makeCard) {
    Object.assign(this, {host, makeCard, order: [], offsets: new Float64Array(1)});
    Object.assign(this, {heights: new Map(), cards: new Map()});      // by index of the study
    this.positions = new Map();                           // of each study in `order`
    this.resizeObserver = new ResizeObserver((entries) => this.updateHeights(entries));
    const draw = () => {
      if (!this.frameRequest) this.frameRequest = requestAnimationFrame(() => { this.frameRequest = 0; this.draw(); });
    };
    addEventListener("scroll", draw, {passive: true});
    addEventListener("resize", () => { this.updateWidth(); draw(); });
    this.width = host.offsetWidth;
    this.estimatedHeight = this.width < 700 ? 760 : 420;
    this.hasEstimate = false;                             // whether the estimate comes from measured cards
  }

  // Draws all cards one below the other, for printing, until `showVisible`.
  showAll() {
    if (this.isShowingAll) return;
    this.isShowingAll = true;
    this.host.classList.add("all");
    this.order.forEach((study) => this.host.append(this.getCard(study).node));
    this.labelCards([...this.order.map((study) => [study, this.cards.get(study)])]);
  }

  // Draws only the cards near the window again.
  showVisible() {
    this.isShowingAll = false;
    this.host.classList.remove("all");
    this.layOut();
    this.draw();
  }

  setOrder(order) {
    this.order = order;
    this.positions = new Map(order.map((study, position) => [study, position]));
    for (const [study, card] of this.cards) if (!this.positions.has(study)) this.removeCard(study, card);
    this.layOut();
    this.draw();
  }

  // Computes the offset of each card from measured and estimated heights.
  layOut() {
    if (!this.hasEstimate && this.heights.size) {
      // The mean of the first measured heights; not updated later, since each change would move all cards below.
      let sum = 0;
      for (const height of this.heights.values()) sum += height;
      this.estimatedHeight = sum / this.heights.size;
      this.hasEstimate = true;
    }
    this.offsets = new Float64Array(this.order.length + 1);
    this.order.forEach((study, position) => {
      this.offsets[position + 1] = this.offsets[position] + (this.heights.get(study) ?? this.estimatedHeight);
    });
    this.host.style.height = `${this.offsets[this.order.length]}px`;
    for (const [study, card] of this.cards) card.node.style.top = `${this.offsets[this.positions.get(study)]}px`;
  }

  // Discards all heights when the width changes, since lines break elsewhere, and measures the drawn cards again.
  updateWidth() {
    if (this.host.offsetWidth === this.width) return;
    this.width = this.host.offsetWidth;
    this.heights.clear();
    this.hasEstimate = false;
    for (const [study, card] of this.cards) this.heights.set(study, card.node.offsetHeight + this.getGap(card.node));
    this.layOut();
  }

  getGap(node) {
    return parseFloat(getComputedStyle(node).marginBottom);
  }

  // Returns the position of the card at an offset from the top of the list.
  findPosition(offset) {
    let low = 0, high = this.order.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.offsets[middle] <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  getTop() {
    return this.host.getBoundingClientRect().top;
  }

  draw() {
    if (this.isShowingAll) return;
    const top = this.getTop(), first = this.findPosition(-top - OVERSCAN);
    const last = this.findPosition(innerHeight - top + OVERSCAN);
    const visible = new Set(this.order.slice(first, last + 1));
    for (const [study, card] of this.cards) {
      if (!visible.has(study) && !card.node.contains(document.activeElement)) this.removeCard(study, card);
    }
    for (let i = first; i <= Math.min(last, this.order.length - 1); i++) this.getCard(this.order[i]);
    // Tab and screen readers follow the order of elements, so it must be the order on the screen.
    const inOrder = [...this.cards].sort(([a], [b]) => this.positions.get(a) - this.positions.get(b));
    this.labelCards(inOrder);
    let previous = null;
    for (const [, card] of inOrder) {
      const next = previous ? previous.nextSibling : this.host.firstChild;
      if (next !== card.node) this.host.insertBefore(card.node, next);
      previous = card.node;
    }
  }

  // Writes the position in the list on each of the cards [[study, card], ...].
  labelCards(cards) {
    for (const [study, card] of cards) {
      card.node.setAttribute("aria-posinset", this.positions.get(study) + 1);
      card.node.setAttribute("aria-setsize", this.order.length);
      card.position.textContent = `${this.positions.get(study) + 1} of ${this.order.length}`;
    }
  }

  // Returns the card of a study, and adds it to the DOM if necessary.
  getCard(study) {
    let card = this.cards.get(study);
    if (!card) {
      card = this.makeCard(study);
      this.cards.set(study, card);
      card.node.style.top = `${this.offsets[this.positions.get(study)]}px`;
      this.host.append(card.node);
      this.resizeObserver.observe(card.node);
    }
    return card;
  }

  removeCard(study, card) {
    this.resizeObserver.unobserve(card.node);
    card.node.remove();
    this.cards.delete(study);
  }

  // Stores measured heights, and scrolls so that the cards in sight stay where they are.
  updateHeights(entries) {
    if (this.isShowingAll) return;
    const anchor = this.findPosition(-this.getTop()), oldOffset = this.offsets[anchor];
    let changed = false;
    for (const entry of entries) {
      const study = Number(entry.target.dataset.study), height = entry.borderBoxSize[0].blockSize;
      const total = height + this.getGap(entry.target);
      if (!this.positions.has(study) || Math.abs((this.heights.get(study) ?? 0) - total) < 1) continue;
      this.heights.set(study, total);
      changed = true;
    }
    if (!changed) return;
    this.layOut();
    const moved = this.offsets[anchor] - oldOffset;
    if (this.getTop() < 0 && Math.abs(moved) >= 1) scrollBy(0, moved);
    this.draw();
  }

  // Scrolls to the card at a position and focuses it.
  goTo(position) {
    if (!this.order.length) return;
    position = Math.min(Math.max(position, 0), this.order.length - 1);
    const card = this.getCard(this.order[position]);
    card.node.focus({preventScroll: true});
    const edge = parseFloat(getComputedStyle(this.host).scrollMarginTop) || 0;
    const start = this.getTop() + this.offsets[position];
    const end = start + (this.heights.get(this.order[position]) ?? this.estimatedHeight);
    if (start < edge || end > innerHeight) scrollBy(0, start - edge);
    this.draw();
  }
}
