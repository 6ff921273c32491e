// The controls of the page, keyboard shortcuts and color themes.

(function () {
  const byId = (id) => document.getElementById(id);
  const isInput = (node) => node.matches?.("input, select, textarea");

  // Color theme: the system's, or the reader's choice.
  const themes = ["auto", "light", "dark"], names = {auto: "Auto", light: "Light", dark: "Dark"};
  const loadTheme = () => { try { return localStorage.getItem("mcsam-theme"); } catch { return null; } };
  function setTheme(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = names[theme];
    byId("theme").setAttribute("aria-label", `Color theme: ${theme === "auto" ? "system" : theme}`);
    byId("theme").value = theme;
    try { localStorage.setItem("mcsam-theme", theme); } catch { /* some browsers deny storage to local files */ }
  }
  setTheme(themes.includes(loadTheme()) ? loadTheme() : "auto");
  byId("theme").addEventListener("click", () => setTheme(themes[(themes.indexOf(byId("theme").value) + 1) % 3]));

  const studies = new Studies(JSON.parse(byId("data").textContent));
  if (!studies.count) {
    byId("help-button").hidden = true;
    byId("print").addEventListener("click", () => print());
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
    ? [["any", "all studies"], ["reference", "positive in the reference"], ["agree", "agrees"], ["missed", "missed"],
       ["invented", "invented"], ["wrong", "missed or invented"], ["right", "no error"],
       ...(studies.comparesDetails ? [["differs", "differs in a detail"]] : [])]
    : [["any", "all studies"]]);
  fill(byId("sort"), [...studies.sortKeys].map(([value, key]) => [value, key.name]));

  const readNumber = (input) => input.value === "" ? null : Number(input.value);
  let descending = false;
  function apply() {
    const start = performance.now();
    const sortKey = byId("sort").value, hasRange = studies.sortKeys.get(sortKey).isScore;
    document.querySelectorAll("[data-range]").forEach((node) => { node.hidden = !hasRange; });
    const order = studies.select({
      text: byId("search").value, finding: Number(byId("finding").value), relation: byId("relation").value, sortKey,
      descending, low: hasRange ? readNumber(byId("low")) : null, high: hasRange ? readNumber(byId("high")) : null});
    list.setOrder(order);
    byId("count").textContent = order.length === studies.count
      ? `${order.length} ${order.length === 1 ? "study" : "studies"}` : `${order.length} of ${studies.count} studies`;
    byId("nothing").hidden = order.length > 0;
    if (list.getTop() < 0) byId("bar").scrollIntoView({block: "start"});
    document.body.offsetHeight;                       // forces layout, so that it is part of the measured time
    document.body.dataset.milliseconds = (performance.now() - start).toFixed(1);
  }
  function setDescending(value) {
    descending = value;
    byId("direction").textContent = descending ? "↓" : "↑";
    byId("direction").setAttribute("aria-label", descending ? "Highest first" : "Lowest first");
  }
  function reset() {
    byId("bar").reset();
    setDescending(false);
    apply();
  }
  byId("bar").addEventListener("submit", (event) => event.preventDefault());
  byId("bar").addEventListener("reset", () => setTimeout(() => { setDescending(false); apply(); }));
  byId("bar").addEventListener("input", apply);
  byId("direction").addEventListener("click", () => { setDescending(!descending); apply(); });
  byId("nothing-reset").addEventListener("click", reset);
  document.querySelectorAll("[data-finding]").forEach((button) => button.addEventListener("click", () => {
    byId("finding").value = studies.data.findings.indexOf(button.dataset.finding);
    apply();
    byId("studies").scrollIntoView();
  }));

  // Keyboard shortcuts. Focus stays on the study while the reader moves through its words; they are announced.
  const findCard = (node) => {
    const article = node.closest?.("article.card");
    return article ? list.cards.get(Number(article.dataset.study)) : null;
  };
  const announce = (text) => { byId("announcement").textContent = text; };
  const showHelp = () => byId("help").open || byId("help").showModal();
  byId("help-button").addEventListener("click", showHelp);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const target = event.target, card = findCard(target);
    if (isInput(target)) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const position = card ? list.positions.get(card.study) : list.findPosition(Math.max(0, -list.getTop())) - 1;
    const actions = {j: () => list.goTo(position + 1), k: () => list.goTo(position - 1), "?": showHelp,
                   "/": () => { byId("search").focus(); byId("search").select(); }};
    if (card) Object.assign(actions, {
      ArrowDown: actions.j, ArrowUp: actions.k,
      ArrowRight: () => announce(card.movePin(1)), ArrowLeft: () => announce(card.movePin(-1)),
      Home: () => card.pinned >= 0 ? announce(card.pin(0)) : list.goTo(0),
      End: () => card.pinned >= 0 ? announce(card.pin(card.words.length - 1)) : list.goTo(list.order.length - 1),
      Escape: () => announce(card.pin(-1)),
      m: () => { if (card.details) card.details.open = !card.details.open; },
    });
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });

  // Printing draws all studies of the list. The button waits until their images can be drawn; the browser's own command
  // doesn't, so images that were never in sight may be missing there.
  function showAll() {
    list.showAll();
    byId("print-note").textContent = list.order.length === studies.count ? ""
      : `${byId("count").textContent}: those that the search and the filters select`;
    return [...document.querySelectorAll("article img")];
  }
  addEventListener("beforeprint", showAll);
  addEventListener("afterprint", () => list.showVisible());
  byId("print").addEventListener("click", async () => {
    await Promise.allSettled(showAll().map((image) => image.decode()));
    print();
  });

  addEventListener("resize", updateScrollMargin);
  function updateScrollMargin() {                         // cards are scrolled to below the bar if it is sticky
    const isSticky = getComputedStyle(byId("bar")).position === "sticky";
    byId("list").style.scrollMarginTop = `${12 + (isSticky ? byId("bar").offsetHeight : 0)}px`;
  }
  updateScrollMargin();
  apply();
  document.body.dataset.ready = performance.now().toFixed(0);
})();
