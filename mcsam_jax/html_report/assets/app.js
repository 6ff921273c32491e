// Controls, keys and colours.

(function () {
  const byId = (id) => document.getElementById(id);
  const typing = (node) => node.matches?.("input, select, textarea");

  // Colours: as the system has them, or as the reader wants them.
  const themes = ["auto", "light", "dark"], names = {auto: "Auto", light: "Light", dark: "Dark"};
  const remembered = () => { try { return localStorage.getItem("mcsam-theme"); } catch { return null; } };
  function setTheme(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = names[theme];
    byId("theme").setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system has them" : theme}`);
    byId("theme").value = theme;
    try { localStorage.setItem("mcsam-theme", theme); } catch { /* a file may not store anything */ }
  }
  setTheme(themes.includes(remembered()) ? remembered() : "auto");
  byId("theme").addEventListener("click", () => setTheme(themes[(themes.indexOf(byId("theme").value) + 1) % 3]));

  const studies = new Studies(JSON.parse(byId("data").textContent));
  if (!studies.count) {
    byId("help-button").hidden = true;
    return;
  }
  const hide = (selector) => document.querySelectorAll(selector).forEach((node) => { node.hidden = true; });
  if (!studies.hasLabels) hide("[data-needs=labels]");
  if (!studies.hasReference) hide("[data-needs=reference], .legend.marks");

  const opened = new Set();
  const list = new List(byId("list"), (study) => new Card(studies, study, opened));

  function fill(select, options) {
    select.replaceChildren(...options.map(([value, name]) => make("option", {value}, name)));
  }
  fill(byId("finding"), [[-1, "any finding"], ...studies.data.findings.map((name, number) => [number, name])]);
  fill(byId("relation"), studies.hasReference
    ? [["any", "all studies"], ["reference", "reference states"], ["agree", "agrees"], ["missed", "is missed"],
       ["invented", "is invented"], ["wrong", "is missed or invented"], ["right", "has no error"]]
    : [["any", "all studies"]]);
  fill(byId("sort"), [...studies.keys].map(([value, key]) => [value, key.name]));

  const number = (input) => input.value === "" ? null : Number(input.value);
  let down = false;
  function apply() {
    const begun = performance.now();
    const key = byId("sort").value, range = studies.keys.get(key).score;
    document.querySelectorAll("[data-range]").forEach((node) => { node.hidden = !range; });
    const order = studies.select({
      text: byId("search").value, finding: Number(byId("finding").value), relation: byId("relation").value, key, down,
      low: range ? number(byId("low")) : null, high: range ? number(byId("high")) : null});
    list.setOrder(order);
    byId("count").textContent = order.length === studies.count
      ? `${order.length} ${order.length === 1 ? "study" : "studies"}` : `${order.length} of ${studies.count} studies`;
    byId("nothing").hidden = order.length > 0;
    if (list.top() < 0) byId("bar").scrollIntoView({block: "start"});
    document.body.offsetHeight;                                         // layout belongs to the time that it takes
    document.body.dataset.milliseconds = (performance.now() - begun).toFixed(1);
  }
  function turn(value) {
    down = value;
    byId("direction").textContent = down ? "↓" : "↑";
    byId("direction").setAttribute("aria-label", down ? "Highest first" : "Lowest first");
  }
  function reset() {
    byId("bar").reset();
    turn(false);
    apply();
  }
  byId("bar").addEventListener("submit", (event) => event.preventDefault());
  byId("bar").addEventListener("reset", () => setTimeout(() => { turn(false); apply(); }));
  byId("bar").addEventListener("input", apply);
  byId("direction").addEventListener("click", () => { turn(!down); apply(); });
  byId("nothing-reset").addEventListener("click", reset);
  document.querySelectorAll("[data-finding]").forEach((button) => button.addEventListener("click", () => {
    byId("finding").value = studies.data.findings.indexOf(button.dataset.finding);
    apply();
    byId("studies").scrollIntoView();
  }));

  // Keys. Focus stays on the study while its words are walked through; a status line speaks them.
  const cardOf = (node) => {
    const article = node.closest?.("article.card");
    return article ? list.cards.get(Number(article.dataset.study)) : null;
  };
  const speak = (text) => { byId("spoken").textContent = text; };
  const help = () => byId("help").open || byId("help").showModal();
  byId("help-button").addEventListener("click", help);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const target = event.target, card = cardOf(target);
    if (typing(target)) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const place = card ? list.places.get(card.study) : list.at(Math.max(0, -list.top())) - 1;
    const moves = {j: () => list.go(place + 1), k: () => list.go(place - 1), "?": help,
                   "/": () => { byId("search").focus(); byId("search").select(); }};
    if (card) Object.assign(moves, {
      ArrowDown: moves.j, ArrowUp: moves.k,
      ArrowRight: () => speak(card.step(1)), ArrowLeft: () => speak(card.step(-1)),
      Home: () => card.pinned >= 0 ? speak(card.pin(0)) : list.go(0),
      End: () => card.pinned >= 0 ? speak(card.pin(card.words.length - 1)) : list.go(list.order.length - 1),
      Escape: () => speak(card.pin(-1)),
      m: () => { if (card.details) card.details.open = !card.details.open; },
    });
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  });

  addEventListener("resize", fit);
  function fit() {                                        // what is scrolled to stands below the bar, which sticks
    const sticks = getComputedStyle(byId("bar")).position === "sticky";
    byId("list").style.scrollMarginTop = `${12 + (sticks ? byId("bar").offsetHeight : 0)}px`;
  }
  fit();
  apply();
  document.body.dataset.ready = performance.now().toFixed(0);
})();
