// The drawer: everything about one arm, and the steps of its workload.
let chart = /** @type {Any} */ (null);
let logScale = false;
let byBatch = false;
let wall = false;

function openArm(arm) {
  if (!arm) return;
  state.arm = arm.id;
  writeHash();
  const dialog = $("drawer");
  const focused = document.activeElement?.textContent;
  dialog.replaceChildren(...content(arm));
  if (!dialog.open) dialog.showModal();
  plot(arm);
  const buttons = [...dialog.querySelectorAll("button")];
  (buttons.find((one) => one.textContent === focused) || buttons[0]).focus(); // a switch keeps the focus
}
/** The command with the arms of the recipe that this ratio needs. */
function only(arm) {
  const wanted = unique([baseOf(arm.group) || arm, arm].map((one) => one.recipe_arm));
  return wanted.includes("") ? "" : `${arm.group.command} --set 'arms=[${wanted.join(",").replaceAll("'", "'\\''")}]'`;
}
function shut() {
  if (chart) chart.destroy();
  chart = null;
  state.arm = "";
  writeHash();
}

function content(arm) {
  const ratio = ratioOf(arm), base = baseOf(arm.group);
  const facts = [
    ["throughput ratio", ratio && base ? `${ratioText(ratio)} of ${base.name}` : arm === base ? "this is the baseline" : NONE],
    ["marks", [...marksOf(arm)].map((mark) => `${mark} ${D.marks[mark]}`).join("; ")],
    ["detectable effect", arm.detectable !== null && !state.base ? `an effect smaller than ${number(100 * arm.detectable, 2)} % would not have been seen (in 80 % of such runs)` : ""],
    ["s/iter", arm.median === null ? NONE : `${number(arm.median)} (p5–p95: ${number(arm.p5)}–${number(arm.p95)})`],
    ["by batch", arm.batches],
    ["images/s", arm.median === null ? "" : `${number(arm.rate)}, ${arm.images} images per step`],
    ["design", arm.median === null ? "" : `${arm.sessions > 1 ? arm.sessions + " sessions, " : ""}${arm.launches} launches, ${arm.rounds} rounds in all`],
    ["max memory", arm.memory === null ? "" : number(arm.memory, 4) + " MiB" + (arm.resident ? `, ${number(arm.resident, 4)} MiB of it before the model was built` : "")],
    ["AP", arm.ap === null ? "" : `${(100 * arm.ap).toFixed(1)} %` + (arm.interval.length ? ` [${arm.interval.slice(0, 2).map((v) => (100 * v).toFixed(1)).join(", ")}] on other images (${arm.interval[2]} were evaluated)` : "")],
    ["GFLOP/s", arm.gflops === null ? "" : number(arm.gflops) + (arm.peak === null ? "" : `, ${(100 * arm.peak).toFixed(0)} % of the peak measured here`) + (arm.peak > 1 ? " (fewer multiplications than counted)" : "")],
    ["equal work", arm.base ? "" : arm.verdict],
    ["software", arm.software], ["options", arm.options], ["arm", arm.id], ["measure this workload", arm.group.command], ["measure this arm only", only(arm)],
    ["status", arm.reason ? `${arm.status}: ${arm.reason}` : arm.status],
    ...["notes", "without", "warnings"].flatMap((name) => arm[name].map((one) => [/** @type {Any} */ ({ notes: "audit", without: "one operator", warnings: "warning" })[name], D.strings[one]])),
  ].filter(([, text]) => text);
  const drawn = arm.group.arms.some((one) => one.steps.length);
  return [
    div("top", h("h2", { id: "drawer-title" }, `${arm.name} · ${arm.group.title}`), button("✕", () => $("drawer").close(), { "aria-label": "Close" })),
    h("dl", {}, facts.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)])),
    arm.differences.length ? [h("h3", {}, "Unequal work"), h("ul", {}, arm.differences.map((d) => h("li", {}, `${D.strings[d[0]]}: ${D.strings[d[2]]}, the baseline has ${D.strings[d[1]]}` + (d[3] === null ? "" : ` (${percent(d[3])})`))))] : "",
    arm.agreed.length ? fold(`${arm.agreed.length} kinds of facts agree with the baseline`, () => table("Facts that agree", ["fact", "baseline", "this arm", "apart", "tolerance", "facts"], arm.agreed.map(([fact, theirs, own, apart, allowed, count]) => [D.strings[fact], D.strings[theirs], D.strings[own], short(apart), short(allowed), count]))) : "",
    arm.unknown.length ? [h("h3", {}, "Not shown"), h("p", {}, arm.unknown.map((one) => D.strings[one]).join(", "))] : "",
    drawn ? [h("h3", {}, "Seconds of each step"), div("bar",
      button("Log scale", () => { logScale = !logScale; openArm(arm); }, { "aria-pressed": logScale }),
      clocks(arm.group) && button("By time", () => { wall = !wall; openArm(arm); }, { "aria-pressed": wall }), arm.batch.length && button("This arm by batch", () => { byBatch = !byBatch; openArm(arm); }, { "aria-pressed": byBatch }), button("Steps as CSV", () => download("steps.csv", "text/csv", csv(stepRows(arm))))),
    note("In the order measured. Bands: launches; lines: the median of each. Hollow: warm-up or disturbed by other processes; it does not set the scale. Drag to zoom, double-click to go back."), h("div", { id: "chart" }), twin(["arm", "step", "launch", "round", "seconds"], () => stepRows(arm).slice(1))] : "",
    arm.log ? [h("h3", {}, "End of the log"), h("pre", { tabindex: 0 }, arm.log)] : "",
  ].flat(2).filter(Boolean);
}

/** Launch, round and start of its round of each step; of decimated steps none is known. */
function places(arm) {
  if (!arm.design) return arm.steps.map(() => [null, 0, NaN]);
  return arm.design.split(";").flatMap((part) => {
    const [launch, round, count, start, position] = part.split(",").map(Number);
    return Array(count).fill([launch, round, start, position]);
  });
}
/** When each step of each arm began, in seconds, launch after launch; null where that is not known. */
function clocks(group) {
  const ends = /** @type {Any} */ ({}), begun = new Map();
  for (const arm of group.arms.filter((one) => one.steps.length)) {
    let block = null, now = 0;
    begun.set(arm.index, places(arm).map((place, index) => {
      if (place !== block) [block, now] = [place, place[2]];
      const start = now;
      now += arm.steps[index];
      ends[place[0]] = max(ends[place[0]] || 0, now);
      return [place[0], start];
    }));
  }
  let sum = 0;
  for (const launch of Object.keys(ends)) [ends[launch], sum] = [sum, sum + ends[launch]];
  for (const [index, found] of begun) begun.set(index, found.map(([launch, start]) => ends[launch] + start));
  return Number.isFinite(sum) ? begun : null;
}
function stepRows(arm) {
  const rows = /** @type {Any[][]} */ ([["arm", "step", "launch", "round", "seconds"]]);
  for (const one of arm.group.arms) {
    const at = places(one);
    one.steps.forEach((seconds, index) => rows.push([one.id, index, ...at[index].slice(0, 2), seconds]));
  }
  return rows;
}

function plot(arm) {
  const box = $("chart");
  if (chart) chart.destroy();
  chart = null;
  if (!box) return;
  const batches = byBatch ? unique(arm.batch).sort((a, b) => a - b).slice(0, 8) : [];
  const light = css("page") === "#ffffff" ? 38 : 68;
  const list = batches.length ? batches.map((batch, at) => ({ ...arm, name: "batch " + batch, look: [`hsl(${45 * at} 60% ${light}%)`],
    steps: arm.steps.map((value, index) => arm.batch[index] === batch ? value : null) }))
    : arm.group.arms.filter((one) => one.steps.length && !hidden().has(one.name));
  const times = wall && clocks(arm.group);
  const series = /** @type {Any[]} */ ([{ label: times ? "seconds" : "step" }]), tables = /** @type {Any[]} */ ([]), medians = /** @type {Any[]} */ ([]);
  let top = 0, least = Infinity;
  const seen = /** @type {Any} */ ({});
  for (const one of list) {
    const nth = seen[one.look[0]] = (seen[one.look[0]] ?? -1) + 1; // arms of one codebase: lighter, or darker on a dark page
    const colour = nth ? `color-mix(in srgb, ${one.look[0]} ${100 / (1 + nth)}%, ${css("muted")})` : one.look[0];
    const at = places(one), xs = times ? times.get(one.index) : one.steps.map((_, index) => index + 1), warm = at.map((p) => p[1] < 0);
    const pick = (wanted) => one.steps.map((value, index) => warm[index] === wanted ? value : null);
    for (const value of pick(false)) if (value !== null) { top = max(top, value); least = min(least, value); }
    tables.push([xs, pick(false), pick(true)]);
    const index = new Map(xs.map((x, step) => [x, step]));
    const value = (u, v, _, at0) => {
      const step = index.get(u.data[0][at0]), place = at[step];
      return v === null || v === undefined ? NONE : [number(v) + " s", place[0] !== null && `launch ${place[0] + 1}, ${place[1] < 0 ? "not counted" : `round ${place[1] + 1}, turn ${place[3]}`}`, one.batch[step] >= 0 && "batch " + one.batch[step]].filter(Boolean).join(" · ");
    };
    const look = { stroke: colour, paths: () => null, value };
    series.push({ ...look, label: one.name, points: { show: true, size: 6, fill: colour } }, { ...look, label: one.name + " (hollow)", points: { show: true, size: 6, fill: css("page") } });
    for (const launch of unique(at.map((p) => p[0]))) {
      const own = xs.map((_, step) => step).filter((step) => at[step][0] === launch && !warm[step] && one.steps[step] !== null);
      const sorted = own.map((step) => one.steps[step]).sort((a, b) => a - b), half = sorted.length >> 1;
      if (half && launch !== null) medians.push([colour, xs[own[0]], xs[own.at(-1)], sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2]);
    }
  }
  if (!top) { top = max(...list.flatMap((one) => one.steps)); least = top / 10; }
  const bands = (u) => {
    const xs = tables[0][0];
    let from = 0;
    places(list[0]).forEach((p, index, all) => {
      if (index + 1 < all.length && all[index + 1][0] === p[0]) return;
      const edge = (step) => u.valToPos((xs[step] ?? 2 * xs.at(-1) - xs.at(-2)) - (times ? 0 : 0.5), "x", true);
      u.ctx.fillStyle = css("soft");
      if (p[0] % 2) u.ctx.fillRect(edge(from), u.bbox.top, edge(index + 1) - edge(from), u.bbox.height);
      from = index + 1;
    });
  };
  const levels = (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineWidth = 1.5 * devicePixelRatio;
    for (const [colour, from, to, value] of medians) {
      ctx.strokeStyle = colour;
      ctx.beginPath();
      ctx.moveTo(u.valToPos(from, "x", true), u.valToPos(value, "y", true));
      ctx.lineTo(u.valToPos(to, "x", true), u.valToPos(value, "y", true));
      ctx.stroke();
    }
    ctx.restore();
  };
  const lines = { stroke: css("text"), grid: { stroke: css("grid") }, ticks: { stroke: css("grid") }, font: "12px system-ui" };
  const { uPlot } = /** @type {Any} */ (window);
  chart = new uPlot({
    width: box.clientWidth, height: 300, hooks: { drawClear: [bands], draw: [levels] }, series, cursor: { drag: { x: true, y: false } },
    scales: { x: { time: false }, y: logScale ? { distr: 3, range: () => [least * 0.8, top * 1.2] } : { range: () => [0, top * 1.1] } },
    axes: [{ ...lines, label: times ? "seconds, launch after launch" : "step", labelFont: "12px system-ui", labelSize: 18 }, { ...lines, label: "s/iter", size: 62 }],
  }, uPlot.join(tables), box);
}
