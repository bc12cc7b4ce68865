// Lists that draw only the rows in sight, and the matrix of workloads and codebases.

const VIRTUAL_ABOVE = 60;
/** Rows of one height in a scrolling box: all of them up to a number, else those in sight and some around them. */
function list(box, count, height, draw) {
  const body = h("div", { role: "rowgroup" });
  const most = printing ? 300 : VIRTUAL_ABOVE;
  let first = -1;
  const whole = count <= most || printing;
  function fill() {
    if (whole) {
      if (first < 0) body.replaceChildren(...Array.from({ length: min(count, most) }, (_, index) => draw(index)));
      first = 0;
      return;
    }
    const from = max(0, floor(box.scrollTop / height) - 10);
    if (from === first) return;
    first = from;
    const to = min(count, from + ceil((box.clientHeight || 500) / height) + 20);
    const before = h("div", { style: `height:${from * height}px`, role: "none" });
    const after = h("div", { style: `height:${(count - to) * height}px`, role: "none" });
    body.replaceChildren(before, ...Array.from({ length: to - from }, (_, index) => draw(from + index)), after);
  }
  box.classList.toggle("long", !whole);
  box.onscroll = whole ? null : () => fill();
  return { body, fill, top: (index) => { if (!whole) { box.scrollTop = index * height; fill(); } } };
}

const MOST_COLUMNS = 12;
/** Where the keyboard is in the matrix: row and column. */
let place = [0, 0];

function shade(ratio) {
  if (ratio === null || !(ratio > 0)) return "";
  const log = max(-2, min(2, log2(ratio)));
  const share = (0.06 + 0.24 * abs(log)).toFixed(2);
  return abs(log) < 0.004 ? "" : `--c:rgba(${log > 0 ? "0,114,178" : "230,140,0"},${share});--w:${round(25 * log + 50)}%`;
}

function tipOf(arm) {
  const ratio = ratioOf(arm);
  const base = baseOf(arm.group);
  const lines = [`${arm.name} · ${arm.group.title}`];
  if (ratio && base) lines.push(`${ratioText(ratio)} of ${base.name}'s throughput`);
  if (arm.median !== null) lines.push(`${number(arm.median)} s/iter, ${arm.launches} launches, ${arm.rounds} rounds`);
  for (const mark of marksOf(arm)) lines.push(`${mark} ${D.marks[mark]}`);
  if (arm.reason) lines.push(`${arm.status}: ${arm.reason.slice(0, 200)}`);
  return lines.join("\n");
}

function cell(row, name) {
  const arm = row.arms.find((one) => one.name === name);
  if (!arm) return h("div", { role: "gridcell", class: "cell value", tabindex: -1 }, span("only", name), NONE);
  const [, value, text, more] = METRICS[state.metric];
  const base = baseOf(row.group);
  const ratio = ratioOf(arm);
  const own = value(arm);
  let relative = /** @type {Any} */ (null);
  let said = own !== null ? text(own, arm) : arm.median !== null ? NONE : arm.status === "failed" ? "failed" : "no time";
  let small = "";
  if (state.metric === "ratio") {
    relative = own;
    small = ratioTexts(ratio)[1];
    if (arm === base && arm.median !== null) said = number(arm.median) + " s";
    else if (own === null && arm.median !== null && base) said = base.median === null ? "baseline failed" : state.base ? "not interleaved" : NONE;
  } else if (base && base !== arm && own !== null && value(base)) relative = more ? own / value(base) : value(base) / own;
  const marks = marksOf(arm);
  const unsure = ratio && !sure(ratio) && state.metric === "ratio";
  return h("div", { role: "gridcell", tabindex: -1, class: `cell value${unsure ? " hatch" : ""}${arm.median === null ? " failed" : ""}`,
    style: shade(relative), "data-arm": arm.index },
    span("only", h("span", { class: "swatch", style: `background:${arm.look[0]}` }), name),
    h("span", {}, said, marks && span("mark", " " + marks), small && h("small", {}, " " + small)));
}

function drawMatrix(left) {
  const box = $("matrix");
  const { kept } = names();
  const columns = kept.slice(0, MOST_COLUMNS);
  const template = `grid-template-columns:minmax(11rem,1.6fr) repeat(${columns.length},minmax(6.9rem,1fr))`;
  const height = phone() ? 26 * columns.length + 58 : 42;
  const grid = h("div", { class: "grid", role: "grid", "aria-label": "Ratios by workload and codebase", "aria-rowcount": left.length + 1, id: "matrix-grid", style: `max-width:${24 + 12 * columns.length}rem` });
  const row = (index) => {
    const one = left[index];
    return h("div", { class: "row", role: "row", style: template + `;height:${phone() ? height - 6 : height}px`, "data-row": index, "aria-rowindex": index + 2 },
      h("div", { class: "cell name", role: "rowheader", tabindex: -1, "data-q": one.group.title }, one.group.title), columns.map((name) => cell(one, name)));
  };
  const head = h("div", { class: "head", role: "row", style: template }, ["workload", ...columns].map((name, index) => {
    const key = index ? name : "workload";
    const sorted = state.sort === key ? "ascending" : state.sort === "-" + key ? "descending" : "none";
    const arrow = { ascending: " ↑", descending: " ↓", none: index || state.sort ? "" : ", as planned" }[sorted];
    return h("div", { class: `cell ${index ? "value" : "name"}`, role: "columnheader", "aria-sort": sorted },
      button(name + arrow, null, { tabindex: -1, "data-sort": key }));
  }));
  const virtual = list(grid, left.length, height, row);
  const means = columns.map((name) => geometric(left.flatMap((one) => one.arms.filter((arm) => arm.name === name))));
  const foot = means.some(Boolean) && h("div", { class: "foot", role: "row", style: template }, h("div", { class: "cell name", role: "rowheader" }, "geometric mean, equal work"),
    means.map((mean, at) => {
      const [value, interval] = ratioTexts(mean);
      return h("div", { class: "cell value", role: "gridcell", style: shade(mean ? mean.value : null) }, span("only", columns[at]),
        h("span", {}, value, mean && h("small", {}, ` ${interval} of ${mean.count}`)));
    }));
  grid.append(h("div", { role: "rowgroup", class: "top" }, head), virtual.body, foot ? h("div", { role: "rowgroup", class: "bottom" }, foot) : "");
  const more = kept.length - columns.length;
  box.replaceChildren(grid, more > 0 ? note(`${more} more columns: hide some to see them.`) : "");
  virtual.fill();
  grid.gridTop = virtual.top;
  place = [min(place[0], max(0, left.length - 1)), min(place[1], columns.length)];
  roving(grid, false);
}

/** One tab stop: the cell at `place`. */
function roving(grid, focus) {
  for (const old of grid.querySelectorAll('.row [tabindex="0"]')) old.tabIndex = -1;
  const find = () => grid.querySelector(`[data-row="${place[0]}"]`);
  if (!find() && grid.gridTop) grid.gridTop(place[0]);
  const target = find()?.children[place[1]];
  if (!target) return;
  target.tabIndex = 0;
  if (focus) target.focus();
}
function gridKey(event) {
  const grid = $("matrix-grid");
  const moves = /** @type {Any} */ ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageDown: [10, 0], PageUp: [-10, 0], Home: [-1e9, 0], End: [1e9, 0] });
  const target = /** @type {Any} */ (event.target);
  if (event.key === "Enter" && target.matches("[data-arm],[data-q]")) {
    event.preventDefault(); // or it would press the button that the drawer puts the focus on
    return target.click();
  }
  if (!moves[event.key] || !target.closest(".row")) return;
  event.preventDefault();
  const last = +grid.getAttribute("aria-rowcount") - 2;
  place = [max(0, min(last, place[0] + moves[event.key][0])), max(0, min(names().kept.length, place[1] + moves[event.key][1]))];
  roving(grid, true);
}
