// Forest plot, phases, memory, accuracy, audit: each draws what the filters leave.
const MOST_BARS = 30;
const swatch = (arm) => h("span", { class: "swatch", style: `background:${arm.look[0]}` });
const label = (arm) => h("span", { "data-arm": arm.index }, swatch(arm), arm.name, " · ", arm.group.title);
const titled = (arm) => `${arm.name} · ${arm.group.title}`;
const measured = (list) => list.flatMap((row) => row.arms);
const room = () => printing ? 1000 : $("matrix").clientWidth || 900;

/** A section, with the buttons of its figure beside the heading. */
function section(id, title, tools, ...children) {
  return h("section", { id }, div("title", h("h2", {}, title, anchor(id, title)), div("bar", tools)), children);
}
const anchor = (id, title) => h("a", { class: "anchor", href: "#" + id, "aria-label": "Link to " + title, "data-jump": id }, "¶");
/** Buttons that save a figure. */
const saved = (name, whole) => [button("SVG", () => download(name + ".svg", "image/svg+xml", svgText(whole()))), button("PNG", () => svgPng(whole(), name + ".png"))];
/** One drawing of all rows, with their names: text at the left, what `draw` gives at the right. */
function stacked(title, found, draw, ...below) {
  const kept = found.slice(0, MOST_BARS), height = 22 * kept.length + 24;
  return s("svg", { width: 1000, height, viewBox: `0 0 1000 ${height}` }, s("title", {}, title), s("desc", {}, `${kept.length} of ${found.length} rows`),
    kept.map((arm, index) => s("g", { transform: `translate(0,${22 * index})` }, s("text", { y: 15 }, `${arm.group.title} · ${arm.name}`.slice(0, 60)), s("g", { transform: "translate(400)" }, draw(arm)))),
    s("g", { transform: `translate(400,${height - 24})` }, below));
}

// -- forest ------------------------------------------------------------------------------------------

function scaleOf(list) {
  let low = 1, high = 1;
  for (const arm of list) {
    const ratio = ratioOf(arm);
    low = min(low, ratio.low || ratio.value);
    high = max(high, ratio.high ?? ratio.value);
  }
  const pad = max((high / low) ** 0.06, 1.01);
  return { low: low / pad, high: high * pad };
}
const across = (scale, value, width) =>
  max(0, min(1, log(value / scale.low) / log(scale.high / scale.low))) * width;

function forestLine(arm, scale, width) {
  const ratio = ratioOf(arm), [colour, shape] = arm.look, x = (v) => across(scale, v, width), d = 1 + arm.detectable;
  return [
    logTicks(scale.low, scale.high).map((tick) => s("line", { x1: x(tick), x2: x(tick), y1: 0, y2: 22, stroke: "var(--grid)" })),
    d > 1 && s("rect", { x: x(1 / d), y: 2, width: x(d) - x(1 / d), height: 18, fill: "var(--line)", opacity: 0.45 }),
    s("line", { x1: x(1), x2: x(1), y1: 0, y2: 22, stroke: "var(--muted)" }),
    s("line", { x1: x(ratio.low || scale.low), x2: x(ratio.high ?? scale.high), y1: 11, y2: 11, stroke: colour, "stroke-width": 2 }),
    marker(shape, x(ratio.value), 11, 4.5, { fill: sure(ratio) ? colour : "var(--page)", stroke: colour, "stroke-width": 1.6 }),
  ];
}
function axis(scale, width, y) {
  let before = -99;
  return logTicks(scale.low, scale.high).map((tick) => {
    const x = across(scale, tick, width);
    if (x - before < 34) return "";
    before = x;
    return s("text", { x: min(max(x, 14), width - 16), y, "text-anchor": "middle", class: "muted" }, tick + "×");
  }).concat(minor(scale).map((tick) => s("path", { d: `M${across(scale, tick, width)},${y + 1}v4`, stroke: "var(--muted)" })));
}
/** Ticks without a number: halves of narrow axes, 1 to 9 of each power on wide ones. */
function minor({ low, high }) {
  const found = high / low < 4 ? logTicks(low, high).flatMap((tick, at, all) => at ? [(tick + all[at - 1]) / 2] : [])
    : Array.from({ length: 90 }, (_, at) => (at % 9 + 1) * 10 ** (floor(log10(low)) + floor(at / 9)));
  return found.filter((tick) => tick > low && tick < high);
}
const forestText = (arm) => ratioText(ratioOf(arm)) + " ";

function drawForest(left) {
  const found = measured(left).filter(ratioOf);
  if (!found.length) return "";
  const scale = scaleOf(found), full = room();
  const width = phone() ? full - 190 : max(160, full - min(448, full * 0.34) - 264);
  const line = (index) => h("div", { class: "frow", "data-arm": found[index].index }, label(found[index]),
    s("svg", { width, height: 22, "aria-hidden": "true" }, forestLine(found[index], scale, width)),
    span("numbers", h("span", {}, forestText(found[index])), span("mark", marksOf(found[index]))));
  const box = h("div", { class: "forest", role: "group", "aria-label": "Ratios with 95 % intervals; the matrix is the same as a table", tabindex: 0 });
  const ruler = (at) => h("div", { class: "axis " + at, "aria-hidden": "true" },
    div("frow", h("span"), s("svg", { width, height: 18 }, axis(scale, width, 13)), h("span")));
  const virtual = list(box, found.length, phone() ? 46 : 22, line);
  virtual.body.setAttribute("role", "none");
  box.append(ruler("top"), virtual.body, ruler("bottom"));
  const whole = () => stacked("Throughput ratios with 95 % intervals", found,
    (arm) => [forestLine(arm, scale, 400), s("text", { x: 412, y: 15 }, forestText(arm) + marksOf(arm))], axis(scale, 400, 16));
  return [section("forest", "Forest plot", saved("ratios", whole),
    note("Right of 1, the baseline: faster. Hollow: the interval contains 1. Grey band: effects that this design would not have seen."), box,
    twin(["arm", "ratio", "marks", "not seen below"], () => found.map((arm) => [titled(arm), forestText(arm), marksOf(arm), arm.detectable === null ? NONE : percent(arm.detectable)]))), virtual.fill];
}

// -- phases and memory ---------------------------------------------------------------------------------

let difference = false, parts = "phases";
/** Whether white text is easier to read on a colour than black. */
const dark = (colour) => [1, 3, 5].reduce((sum, at, index) => sum + parseInt(colour.slice(at, at + 2), 16) * [0.299, 0.587, 0.114][index], 0) < 115;
/** A section with one drawing per arm. */
function bars(id, title, found, draw, values, ...above) {
  const key = () => Object.values(id === "phases" && colours(found)).map(([name, colour], at) => [s("rect", { x: 95 * at, y: 8, width: 10, height: 10, fill: colour }), s("text", { x: 95 * at + 14, y: 17 }, name)]);
  return found.length ? section(id, title, saved(id, () => stacked(title, found, draw, key())), above, div("bars", found.slice(0, MOST_BARS).map((arm) => [label(arm), draw(arm)])),
    found.length > MOST_BARS && note(`The first ${MOST_BARS} of ${found.length} rows; filter to see others.`), twin(...values)) : "";
}
/** Titles and colours of the phases, or operators, that arms have. */
const colours = (found) => Object.fromEntries(unique(found.flatMap((arm) => arm[parts].map((p) => p[0]))).map((name) => [name, D.phases[name]]));
const barWidth = () => max(260, min(600, room() - (phone() ? 8 : 476)));

function drawPhases(left) {
  const width = barWidth();
  const all = measured(left), profiled = all.some((arm) => arm.operators.length);
  if (!profiled) parts = "phases";
  const found = all.filter((arm) => arm[parts].length), key = colours(found);
  const total = (arm) => arm[parts].reduce((sum, p) => sum + p[1], 0);
  const bar = (arm) => {
    const base = baseOf(arm.group), theirs = new Map(difference && base ? base[parts] : []), all = arm.group.arms;
    if (difference && (!base || base === arm)) return note(base ? "baseline" : "no baseline");
    const own = new Map(arm[parts]), pieces = unique([...own.keys(), ...theirs.keys()]).map((name) => [D.phases[name], (own.get(name) || 0) - (theirs.get(name) || 0)]);
    const zero = difference ? width / 2 : 0;
    const most = difference ? max(...all.map((one) => max(total(one), total(base)) - min(total(one), total(base))), ...pieces.map((p) => abs(p[1]))) * 1.6 || 1 : max(...all.map(total));
    const scale = (width - zero - 80) / most;
    const words = (v) => difference ? `${v > 0 ? "+" : ""}${number(1000 * v)} ms` : number(v) + " s";
    let at = 0, right = 0;
    const svg = s("svg", { width, height: 20, role: "img", "aria-label": pieces.map((p) => `${p[0][0]} ${words(p[1])}`).join(", ") });
    for (const [[title, colour], seconds] of pieces) {
      const from = zero + scale * min(at, at + seconds), wide = scale * abs(seconds);
      svg.append(s("rect", { x: from, y: 2, width: max(0.5, wide), height: 16, fill: colour }, s("title", {}, `${title}: ${words(seconds)}`)));
      if (wide > 7 * title.length + 8) svg.append(s("text", { x: from + 4, y: 14, style: `fill:${dark(colour) ? "#fff" : "#111"}` }, title));
      at += seconds;
      right = max(right, from + scale * abs(seconds));
    }
    svg.append(s("text", { x: max(right, zero) + 5, y: 14 }, words(at)), s("line", { x1: zero, x2: zero, y1: 0, y2: 20, stroke: "var(--muted)" }));
    return svg;
  };
  return bars("phases", "Phases of a step", found, bar, [["arm", ...Object.values(key).map(([title]) => title + " (s)")], () => found.map((arm) => [titled(arm), ...Object.keys(key).map((name) => number(new Map(arm[parts]).get(name)))])],
    div("key", button("Difference to the baseline", () => { difference = !difference; render(); }, { "aria-pressed": difference }),
      profiled && button("By operator", () => { parts = parts === "phases" ? "operators" : "phases"; render(); }, { "aria-pressed": parts === "operators" }),
      Object.values(key).map(([title, colour]) => h("span", {}, h("span", { class: "swatch", style: `background:${colour};border-radius:0` }), title))),
    note(parts === "phases" ? "Median seconds of each phase, from a pass of its own that synchronises between phases. One scale per workload." : "Median seconds of each operator in a profiled step. One scale per workload."));
}

function drawMemory(left) {
  const found = measured(left).filter((arm) => arm.memory !== null), width = barWidth();
  const top = max(...found.map((arm) => arm.memory));
  const x = (mib) => 4 + mib / top * (width - 190);
  const dots = (arm) => {
    const base = baseOf(arm.group), other = base && base !== arm && base.memory, before = x(arm.resident || 0);
    return s("svg", { width, height: 20, role: "img", "aria-label": number(arm.memory, 4) + " MiB" },
      s("path", { d: `M${before},10H${x(arm.memory)}M${before},4v12`, stroke: arm.look[0] }),
      other && marker(base.look[1], x(other), 10, 4, { fill: "var(--page)", stroke: base.look[0] }),
      marker(arm.look[1], x(arm.memory), 10, 4.5, { fill: arm.look[0] }),
      s("text", { x: x(max(arm.memory, other || 0)) + 9, y: 14 }, number(arm.memory, 4) + " MiB" + (other ? ` (${number(arm.memory / other)}×)` : "")));
  };
  return bars("memory", "Max memory", found, dots, [["arm", "MiB", "before the model", "ratio"], () => found.map((arm) => {
    const base = baseOf(arm.group);
    return [titled(arm), number(arm.memory, 4), number(arm.resident ?? NaN, 4), base && base !== arm ? number(arm.memory / (base.memory ?? NaN)) : NONE];
  })], note("Filled: the arm. Hollow: its baseline. Tick: resident before the model was built."));
}

const percent = (v) => `${v > 0 ? "+" : ""}${number(100 * v, 2)} %`;

// -- accuracy and audit ----------------------------------------------------------------------------------

let xMetric = "rate", bySteps = false;
function drawScatter(left) {
  const found = [drawTradeoff(left), drawCurves(left), drawLosses(left)].flat(9).filter(Boolean);
  return found.length ? section("accuracy", "Speed and accuracy", [], found) : "";
}
const select = (title, options, chosen, change) => h("select", { "aria-label": title, onchange: (event) => { change(event.target.value); render(); } },
  options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
/** A figure below its heading and buttons. */
const figure = (name, title, svg, values, ...tools) => [div("title", h("h3", {}, title), div("bar", tools, saved(name, () => svg))), svg, twin(...values)];
const line = (points, attributes) => s("polyline", { points: points.join(" "), fill: "none", "stroke-width": 1.5, ...attributes });

function drawTradeoff(left) {
  const [title, value, , more] = METRICS[xMetric], rated = measured(left).filter((arm) => arm.ap !== null), found = rated.filter((arm) => value(arm) !== null);
  if (!rated.length) return "";
  const { svg, px, py, text, width } = plane(title, "AP (%)", found.map(value), found.flatMap((arm) => [100 * arm.ap, 100 * (arm.interval[1] || 0)]));
  for (const model of unique(found.map((arm) => arm.group.model))) {
    let best = -1;
    const front = found.filter((arm) => arm.group.model === model).sort((a, b) => (value(b) - value(a)) * (more ? 1 : -1)).filter((arm) => arm.ap > best && ((best = arm.ap), true));
    svg.append(line(front.map((arm) => [px(value(arm)), py(100 * arm.ap)]), { stroke: "var(--muted)", "stroke-dasharray": "3 3" }));
  }
  const taken = /** @type {number[][]} */ ([]);
  for (const arm of found) {
    const x = px(value(arm)), y0 = py(100 * arm.ap), end = x > width - 110, [low, high] = arm.interval.map((v) => py(100 * v));
    if (arm.interval.length) svg.append(s("path", { d: `M${x - 3},${low}h6M${x},${low}V${high}M${x - 3},${high}h6`, stroke: arm.look[0], fill: "none" }));
    svg.append(marker(arm.look[1], x, y0, 5, { fill: arm.look[0], "data-arm": arm.index }));
    text(end ? x - 9 : x + 9, free(taken, x, y0 + 4), arm.name + " " + marksOf(arm), end ? "end" : "start", "halo");
  }
  const keys = ["rate", "seconds", "memory", "training"].filter((key) => rated.some((arm) => METRICS[key][1](arm) !== null));
  const images = min(...rated.map((arm) => arm.interval[2] || 1e9));
  return [note("Dashed: the arms of one model that no other one beats in both." + (images < 1e9 ? ` Bars: 95 % intervals for other images, not for another training; of ${images} images${images < 50 ? ", which is few" : ""}.` : "")),
    figure("accuracy", "AP against " + title, svg, [["arm", title, "AP (%)", "95 % interval"], () => found.map((arm) => [titled(arm), METRICS[xMetric][2](value(arm), arm), (100 * arm.ap).toFixed(1), arm.interval.slice(0, 2).map((v) => (100 * v).toFixed(1)).join(" – ")])], select("Horizontal axis", keys.map((key) => [key, METRICS[key][0]]), xMetric, (key) => { xMetric = key; }))];
}
/** The first height from `y` on at which a label at `x` covers no other one. */
function free(taken, x, y) {
  while (taken.some(([a, b]) => abs(a - x) < 90 && abs(b - y) < 13)) y += 13;
  taken.push([x, y]);
  return y;
}
/** A few round values between two, as numbers and texts. */
function ticks(low, high) {
  const raw = (high - low) / 6, power = 10 ** floor(log10(raw)), step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw * 0.999) || power;
  return Array.from({ length: floor(high / step) - ceil(low / step) + 1 }, (_, i) => (ceil(low / step) + i) * step).map((value) => [value, value.toFixed(max(0, -floor(log10(step) + 1e-9)))]);
}
/** An empty plane: the horizontal axis starts at 0, and the vertical one too where no value is below. */
function plane(title, above, xs, ys, width = min(900, room()), height = 360) {
  const right = max(0, ...xs) * 1.08 || 1, least = min(0, ...ys) * 1.15, span = max(0, ...ys) * 1.15 - least || 1;
  const px = (v) => 56 + v / right * (width - 70), py = (v) => height - 40 - (v - least) / span * (height - 60);
  const svg = s("svg", { width, height, role: "img", "aria-label": `${above} against ${title}` }, s("desc", {}, `${xs.length} points`));
  const text = (x, y, words, anchor = "middle", name = "") => svg.append(s("text", { x, y, "text-anchor": anchor, class: name }, words));
  for (const [value, words] of ticks(least, least + span)) {
    svg.append(line([[56, py(value)], [width, py(value)]], { stroke: "var(--grid)" }));
    text(50, py(value) + 4, words, "end");
  }
  for (const [value, words] of ticks(0, right)) text(px(value), height - 22, words);
  if (least < 0) svg.append(line([[56, py(0)], [width, py(0)]], { stroke: "var(--muted)" }));
  text(width / 2, height - 4, title);
  text(2, 12, above, "start");
  return { svg, px, py, text, width };
}
/** Attributes of the nth arm with one colour. */
const dashed = (list, arm) => ({ stroke: arm.look[0], "data-arm": arm.index, "stroke-dasharray": list.filter((one) => one.look[0] === arm.look[0]).indexOf(arm) % 2 ? "5 3" : "" });
/** AP while arms were trained. */
function drawCurves(left) {
  const found = measured(left).filter((arm) => arm.curve.length > 1).slice(0, MOST_BARS), at = bySteps ? 1 : 0, all = found.flatMap((arm) => arm.curve);
  if (!found.length) return "";
  const axis = bySteps ? "step" : "seconds of training";
  const taken = /** @type {number[][]} */ ([]);
  const { svg, px, py, text } = plane(axis, "AP (%)", all.map((one) => one[at]), all.map((one) => 100 * one[2]));
  for (const arm of found) {
    const points = arm.curve.map((one) => [px(one[at]), py(100 * one[2])]), end = points.at(-1);
    svg.append(line(points, dashed(found, arm)), ...points.map(([x, y]) => marker(arm.look[1], x, y, 3, { fill: arm.look[0], "data-arm": arm.index })));
    text(end[0] - 6, free(taken, end[0], end[1] + 16), arm.name + " " + marksOf(arm), "end", "halo");
  }
  return figure("curves", "AP while training", svg, [["arm", "seconds", "step", "AP (%)"], () => found.flatMap((arm) => arm.curve.map((one) => [titled(arm), number(one[0]), one[1], (100 * one[2]).toFixed(1)]))], select("Axis of curves", [["", "seconds of training"], ["1", "step"]], bySteps ? "1" : "", (key) => { bySteps = !!key; }));
}
const MOST_LOSSES = 4;
/** Losses of the steps, and what they are above the baseline's, of each workload. */
function drawLosses(left) {
  const found = left.map((row) => [row.group, row.arms.filter((arm) => arm.losses.length)]).filter((row) => row[1].length);
  return found.slice(0, MOST_LOSSES).map(([group, list]) => {
    const base = baseOf(group), width = min(900, room() > 760 ? room() / 2 - 10 : room()), [{ stretch }] = list;
    const curve = (arm, minus) => arm.losses.map((value, at) => [at * stretch + (stretch + 1) / 2, (value ?? NaN) - (minus ? minus.losses[at] ?? NaN : 0)]).filter((one) => Number.isFinite(one[1]));
    const panel = (title, shown, minus) => {
      const curves = shown.map((arm) => curve(arm, minus)), all = curves.flat();
      if (!all.length) return "";
      const { svg, px, py } = plane("step", title, all.map((one) => one[0]), all.map((one) => one[1]), width, 260);
      shown.forEach((arm, at) => svg.append(line(curves[at].map(([x, y]) => [px(x), py(y)]), dashed(list, arm))));
      return div("", svg, div("bar", saved("losses", () => svg)), twin(["arm", "step", title], () => shown.flatMap((arm, at) => curves[at].map(([x, y]) => [arm.name, x, number(y, 4)]))));
    };
    return [h("h3", {}, `Losses: ${group.title}`), note(stretch > 1 ? `Means of ${stretch} steps.` : "Of every step."), div("key", list.map((arm) => h("span", { "data-arm": arm.index }, swatch(arm), arm.name, dashed(list, arm)["stroke-dasharray"] && " (dashed)"))),
      div("pair", panel("total loss", list), base && base.losses.length && panel("difference to " + base.name, list.filter((arm) => arm !== base), base))];
  }).concat(found.length > MOST_LOSSES ? [[note(`Losses of the first ${MOST_LOSSES} of ${found.length} workloads; filter to see others.`)]] : []);
}

/** Rates over batch sizes and resolutions: of the whole run. */
function drawSweeps() {
  const found = D.sweeps.map(({ x, y, curves }) => {
    const points = curves.flatMap((one) => one[4]), taken = /** @type {number[][]} */ ([]);
    const { svg, px, py, text, width } = plane(x, y, points.map((p) => p[0]), points.map((p) => p[2]));
    const end = (one) => -one[4].at(-1)[2];
    [...curves].sort((a, b) => end(a) - end(b)).forEach(([, name, [stroke, shape], flat, list], at) => {
      const placed = list.map((p) => [px(p[0]), py(p[2])]), [last, height] = placed.at(-1);
      svg.append(line(placed, { stroke, "stroke-dasharray": ["", "5 3", "2 2"][at % 3] }), ...placed.map(([a, b]) => marker(shape, a, b, 4, { fill: stroke })), flat === null ? "" : s("circle", { cx: placed[flat][0], cy: placed[flat][1], r: 8, fill: "none", stroke }));
      text(min(last, width - 8), free(taken, last, height - 10), name, "end", "halo");
    });
    return figure("sweep", `${y} by ${x}`, svg, [["curve", x, y], () => curves.flatMap((one) => one[4].map((p) => [`${one[1]} · ${one[0]}`, p[1], number(p[2])]))]);
  });
  return found.length ? section("sweeps", "Batch sizes and resolutions", [], note("Ring: from here on every rate is within 5 % of the highest one measured. Filters do not change this figure."), found) : "";
}

/** Facts of arms by their kind: entries that differ, that agree, and how many were not observed, by the name of the arm. */
function facts(found) {
  const kinds = new Map();
  const add = (arm, fact, which, entry) => {
    const kind = D.strings[D.kinds[fact] ?? fact], row = kinds.get(kind) || { differ: 0, agree: 0, unknown: 0, cells: new Map() };
    kinds.set(kind, row);
    const cell = row.cells.get(arm.name) || { differ: [], agree: [], unknown: [] };
    row.cells.set(arm.name, cell);
    row[which]++;
    cell[which].push(entry);
  };
  for (const arm of found) for (const which of ["differ", "agree", "unknown"])
    for (const entry of arm[FACTS[which]]) add(arm, entry[0] ?? entry, which, entry);
  return [...kinds];
}
const FACTS = { differ: "differences", agree: "agreed", unknown: "unknown" };
const factText = (entry) => D.strings[entry[2]] + (entry[1] === entry[2] ? "" : `, baseline ${D.strings[entry[1]]}`);
const tolerance = (v) => v > 0 && `tolerance ${short(v)}`;
const short = (v) => number(100 * v, 2).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "") + " %";
/** The value where all entries have the same one, else their number. */
const inAll = (entries, mark) => {
  const texts = unique(entries.map(factText)), count = entries.length > 1 ? ` in ${entries.length}` : "";
  return mark + (texts.length > 1 ? count : " " + texts[0] + count);
};
/** Of one kind of fact and one codebase: value, difference to the baseline, tolerance, verdict. */
function auditCell(cell) {
  if (!cell) return NONE;
  const { differ, agree, unknown } = cell;
  const changes = differ.map((one) => one[3]).filter((one) => one !== null), apart = max(...agree.map((one) => one[3]));
  return [
    differ.length && inAll(differ, "≠"),
    changes.length && unique([min(...changes), max(...changes)]).map(percent).join(" … "),
    ...(differ.length ? [tolerance(max(...differ.map((one) => one[4])))] : agree.length && [inAll(agree, "="), apart > 0 && "off by " + short(apart), tolerance(max(...agree.map((one) => one[4])))] || []),
    unknown.length && `? in ${unknown.length}`,
  ].filter(Boolean).join(" · ");
}
const MOST_FACTS = 10;
function drawAudit(left) {
  const all = measured(left), notes = new Map(), found = facts(all);
  for (const arm of all) for (const note of arm.notes) notes.set(note, [...(notes.get(note) || []), arm]);
  if (!found.length && !notes.size) return "";
  const columns = unique(all.filter((arm) => !arm.base).map((arm) => arm.name)).slice(0, MOST_COLUMNS);
  const grid = (entries) => table("Facts", ["fact", ...columns], entries.map(([kind, row]) => [kind, ...columns.map((name) => auditCell(row.cells.get(name)))]));
  const differ = found.filter(([, row]) => row.differ).sort((a, b) => b[1].differ - a[1].differ), unknown = found.filter(([, row]) => !row.differ && row.unknown), agree = found.filter(([, row]) => !row.differ && !row.unknown);
  return section("audit", "Equal work", [], note(`Kinds of facts against the run's baseline: ${differ.length} differ, ${unknown.length} could not be observed in both arms, ${agree.length} agree. –: the fact does not apply, or a factor that is compared explains it.`),
    differ.length && grid(differ.slice(0, MOST_FACTS)), differ.length > MOST_FACTS && h("details", {}, h("summary", {}, `${differ.length - MOST_FACTS} more that differ`), grid(differ.slice(MOST_FACTS))), unknown.length && h("details", {}, h("summary", {}, "What was not shown"), grid(unknown)),
    agree.length && fold(`${agree.length} that agree`, () => grid(agree)),
    notes.size && h("ul", {}, [...notes].slice(0, MOST_BARS).map(([one, list]) => h("li", {}, D.strings[one], ": ", list.slice(0, 4).map((arm) => [label(arm), " "]), list.length > 4 && `and ${list.length - 4} more`))));
}
