// Filters, tools, keys, and drawing it all.

function chip(name, title) {
  return button(title, () => set({ [name]: state[name] ? "" : "1" }), { "aria-pressed": state[name] === "1" });
}
function choice(name, title, options) {
  if (options.length < (options[0]?.[0] ? 2 : 3)) return "";
  return h("select", { "aria-label": title, onchange: (event) => set({ [name]: event.target.value }) },
    options.map(([value, text]) => h("option", { value, selected: state[name] === value }, text)));
}
const distinct = (key, values = groups.map((group) => group[key])) => [["", `all ${key}s`], ...unique(values).map((one) => [one, one])];

let unfolded = false;
const controls = () => /** @type {Any[]} */ ([...$("filters").querySelectorAll("input,select,button")]);
function drawFilters() {
  const { all } = names(), off = hidden();
  const typed = h("input", { type: "search", id: "query", placeholder: "filter (/)", "aria-label": "Filter by text", value: state.q, oninput: (event) => set({ q: event.target.value }, true) });
  const metrics = Object.entries(METRICS).filter(([, metric]) => arms.some((arm) => metric[1](arm) !== null)).map(([key, metric]) => [key, metric[0]]);
  const comparable = all.filter((name) => arms.some((arm) => arm.name === name && arm.median !== null));
  const rest = [
    choice("task", "Task", distinct("task")),
    choice("model", "Model", distinct("model")),
    choice("level", "Level", distinct("level", groups.flatMap((group) => group.levels))),
    chip("equal", "equal work only"), chip("sure", "sure only"),
    phone() ? choice("sort", "Order", [["", "as planned"], ...names().kept.flatMap((name) => [["-" + name, name + " ↓"], [name, name + " ↑"]])]) : "",
    choice("metric", "Metric", metrics),
    D.interleaved ? choice("base", "Baseline", [["", "baseline of the run"], ...comparable.slice(0, 50).map((name) => [name, "against " + name])]) : "",
    all.length > 1 ? all.slice(0, MOST_COLUMNS).map((name) => button(name, () => {
      off.delete(name) || off.add(name);
      set({ hide: [...off].map((one) => one.replaceAll("|", "%7C")).join("|") });
    }, { class: "column", "aria-pressed": !off.has(name) })) : ""].flat().filter(Boolean);
  $("filters").replaceChildren(typed, ...(phone() ? [h("details", { open: unfolded, ontoggle: (event) => { unfolded = event.target.open; } }, h("summary", {}, "Filters and order"), div("bar", rest))] : rest),
    h("span", { id: "count" }), button("Reset", () => set({ ...START })));
}

/** Change the state; `typing` keeps the field that has the focus. */
function set(change, typing = false) {
  Object.assign(state, change);
  writeHash();
  if (!typing) {
    const index = controls().indexOf(document.activeElement);
    drawFilters();
    controls()[index]?.focus();
  }
  render();
}

let current = /** @type {Any[]} */ ([]);
function render() {
  current = rows();
  drawMatrix(current);
  const forest = drawForest(current);
  $("views").replaceChildren(forest && forest[0]);
  if (forest) forest[1]();
  clearTimeout(timer); // what is further down the page can come a moment later
  if (printing) rest();
  else timer = setTimeout(rest);
  const text = `${current.length} of ${groups.length} rows`;
  $("count").textContent = text;
  say(text);
}
let timer = 0;
function rest() {
  $("views").append(...[drawPhases, drawMemory, drawScatter, drawSweeps, drawAudit].map((draw) => draw(current)).filter(Boolean));
  drawSide();
}

function drawSide() {
  const places = [["answer", "Answer"], ["results", "Ratios"], ...[...$("views").children].map((one) => [one.id, one.querySelector("h2").firstChild.textContent]), ["history", "History"], ["notes", "Trust, machine, reproduce"]];
  $("side").replaceChildren(...places.filter(([id]) => $(id)).map(([id, text]) => h("a", { href: "#" + id, "data-jump": id }, text)));
  spy();
}
/** Mark the section that is read now. */
function spy() {
  const links = [...$("side").children], end = innerHeight + scrollY > ROOT.scrollHeight - 4;
  const at = end ? links.at(-1) : links.filter((one) => $(one.dataset.jump)?.getBoundingClientRect().top < 150).at(-1);
  for (const one of links) one.setAttribute("aria-current", one === (at || links[0]));
}

function rowsShown() {
  const head = ["workload", "codebase", "baseline", "s/iter", "images/s", "ratio", "low", "high", "memory MiB", "AP", "marks", "status"];
  const body = current.flatMap((row) => row.arms.map((arm) => {
    const ratio = ratioOf(arm), base = baseOf(row.group);
    return [row.group.title, arm.name, base ? base.name : "", arm.median, arm.rate, ratio?.value, ratio?.low, ratio?.high, arm.memory, arm.ap, marksOf(arm), arm.reason ? `${arm.status}: ${arm.reason}` : arm.status];
  }));
  return [head, ...body];
}
function json() {
  const [head, ...body] = rowsShown();
  return JSON.stringify(body.map((row) => Object.fromEntries(row.map((value, at) => [head[at], value ?? null]))), null, 1);
}
function copyMarkdown() {
  const [head, ...body] = rowsShown().map((row) => row.map((value) => typeof value === "number" ? number(value, 4) : markdownCell(value ?? "")));
  const text = [head, head.map(() => "---"), ...body].map((row) => `| ${row.join(" | ")} |`).join("\n") + "\n";
  navigator.clipboard?.writeText(text).then(() => say("copied"));
}

function drawTools() {
  const dark = () => (ROOT.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  $("tools").replaceChildren(
    button("CSV", () => download("rows.csv", "text/csv", csv(rowsShown()))),
    button("JSON", () => download("rows.json", "application/json", json())), button("Copy Markdown", copyMarkdown), button("BibTeX", () => download("citation.bib", "text/plain", D.citation)),
    button("Theme", () => { ROOT.dataset.theme = dark() ? "light" : "dark"; render(); }), button("?", keys, { "aria-label": "Keys" }));
}
function keys() {
  const list = [["/", "filter"], ["arrow keys", "move in the matrix"], ["Enter", "all about an arm; on a workload: filter by it"], ["Esc", "close"], ["?", "this list"]];
  $("keys").replaceChildren(h("h2", { id: "keys-title" }, "Keys"), h("dl", {}, list.map(([key, text]) => [h("dt", {}, key), h("dd", {}, text)])),
    button("Close", () => $("keys").close()));
  $("keys").showModal();
}

function tip(event) {
  const target = event.target instanceof Element ? event.target.closest("[data-arm]") : null;
  const box = $("tip");
  if (!target || event.type === "focusout" || event.type === "mouseout") { box.hidden = true; return; }
  box.textContent = String(shown(tipOf(arms[+target.dataset.arm]))).replaceAll("\\u000a", "\n");
  box.hidden = false;
  const at = target.getBoundingClientRect();
  box.style.left = max(4, min(at.left, innerWidth - box.offsetWidth - 8)) + "px";
  box.style.top = (at.bottom + box.offsetHeight + 8 > innerHeight ? at.top - box.offsetHeight - 4 : at.bottom + 4) + "px";
}

function listen() {
  document.addEventListener("click", (event) => {
    const target = /** @type {Any} */ (event.target);
    const jump = target.closest("[data-jump]");
    if (jump) { // the hash holds the state: sections are scrolled to, not written over it
      event.preventDefault();
      document.getElementById(jump.dataset.jump)?.scrollIntoView();
      return;
    }
    const sort = target.closest("[data-sort]");
    if (sort) {
      const key = sort.dataset.sort;
      return set({ sort: state.sort === "-" + key ? key : state.sort === key ? "" : "-" + key });
    }
    const name = target.closest("[data-q]");
    if (name) return set({ q: state.q ? "" : name.dataset.q });
    const link = target.closest('[href^="#arm="]');
    if (link) event.preventDefault();
    const arm = target.closest("[data-arm]");
    if (arm || link) openArm(arm ? arms[+arm.dataset.arm] : armOf(decodeURIComponent(link.hash.slice(5))));
  });
  for (const type of ["mouseover", "mouseout", "focusin", "focusout"]) document.addEventListener(type, tip);
  document.addEventListener("keydown", (event) => {
    const target = /** @type {Any} */ (event.target);
    if (event.key === "Escape") $("tip").hidden = true;
    if (/^(input|select|textarea)$/i.test(target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); $("query").focus(); }
    else if (event.key === "?") keys();
    else if (target.closest?.("#matrix-grid")) gridKey(event);
  });
  $("drawer").addEventListener("close", shut);
  addEventListener("hashchange", () => { readHash(); drawFilters(); render(); openFromHash(); });
  addEventListener("beforeprint", () => {
    printing = true;
    render();
    for (const one of document.querySelectorAll("#answer details, #audit details:not(.lazy)")) one.setAttribute("open", "");
  });
  addEventListener("afterprint", () => { printing = false; render(); });
  addEventListener("scroll", spy, { passive: true });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; render(); } });
}
const armOf = (id) => arms.find((one) => one.id === id);
const openFromHash = () => openArm(armOf(state.arm));

unpack($("data").textContent).then((data) => {
  load(data);
  readHash();
  drawTools();
  for (const id of ["results", "history", "notes"]) $(id)?.querySelector("h2").append(anchor(id, id));
  if (arms.length) { drawFilters(); render(); } else $("matrix").textContent = "No arm has a record.";
  $("static").remove(); // it stays where any of this fails
  listen();
  openFromHash();
  setTimeout(() => document.getElementById(location.hash.slice(1))?.scrollIntoView());
  ROOT.dataset.ready = String(round(performance.now()));
}, (error) => say("This browser shows the table only: " + error.message));
