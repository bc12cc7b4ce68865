// The drawer: everything about one arm, and the steps of its workload.
let chart = /** @type {Any} */ (null);
let logScale = false;
let byBatch = false;

function openArm(arm) {
  state.arm = arm.id;
  writeHash();
  const dialog = $("drawer");
  dialog.replaceChildren(...content(arm));
  if (!dialog.open) dialog.showModal();
  plot(arm);
  dialog.querySelector("button").focus();
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
    ["AP", arm.ap === null ? "" : (100 * arm.ap).toFixed(1) + " %"],
    ["GFLOP/s", arm.gflops === null ? "" : number(arm.gflops) + (arm.peak === null ? "" : `, ${(100 * arm.peak).toFixed(0)} % of the peak measured here`) + (arm.peak > 1 ? " (fewer multiplications than counted)" : "")],
    ["equal work", arm.base ? "" : arm.verdict],
    ["software", arm.software], ["options", arm.options], ["arm", arm.id], ["measure this workload", arm.group.command],
    ["status", arm.reason ? `${arm.status}: ${arm.reason}` : arm.status],
    ...arm.warnings.map((warning) => ["warning", D.strings[warning]]),
  ].filter(([, text]) => text);
  const drawn = arm.group.arms.some((one) => one.steps.length);
  return [
    div("top", h("h2", { id: "drawer-title" }, `${arm.name} · ${arm.group.title}`), button("✕", () => $("drawer").close(), { "aria-label": "Close" })),
    h("dl", {}, facts.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)])),
    arm.differences.length ? [h("h3", {}, "Unequal work"), h("ul", {}, arm.differences.map((d) => h("li", {}, `${D.strings[d[0]]}: ${D.strings[d[2]]}, the baseline has ${D.strings[d[1]]}` + (d[3] === null ? "" : ` (${percent(d[3])})`))))] : "",
    arm.unknown.length ? [h("h3", {}, "Not shown"), h("p", {}, arm.unknown.map((one) => D.strings[one]).join(", "))] : "",
    drawn ? [h("h3", {}, "Seconds of each step"), div("bar",
      button("Log scale", () => { logScale = !logScale; openArm(arm); }, { "aria-pressed": logScale }), arm.batch.length && button("This arm by batch", () => { byBatch = !byBatch; openArm(arm); }, { "aria-pressed": byBatch }), button("Steps as CSV", () => samples(arm))),
    note("In the order measured. Bands: launches. Hollow: warm-up or disturbed by other processes; it does not set the scale. Drag to zoom, double-click to go back."), h("div", { id: "chart" })] : "",
    arm.log ? [h("h3", {}, "End of the log"), h("pre", { tabindex: 0 }, arm.log)] : "",
  ].flat(2).filter(Boolean);
}

/** Launch and round of each step; of decimated steps neither is known. */
function places(arm) {
  if (!arm.design) return arm.steps.map(() => [null, 0]);
  return arm.design.split(";").flatMap((part) => {
    const [launch, round, count] = part.split(",").map(Number);
    return Array(count).fill([launch, round]);
  });
}
function samples(arm) {
  const rows = /** @type {Any[][]} */ ([["arm", "step", "launch", "round", "seconds"]]);
  for (const one of arm.group.arms) {
    const at = places(one);
    one.steps.forEach((seconds, index) => rows.push([one.id, index, ...at[index], seconds]));
  }
  download("steps.csv", "text/csv", csv(rows));
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
  const length = max(...list.map((one) => one.steps.length));
  const data = /** @type {Any[]} */ ([Array.from({ length }, (_, index) => index + 1)]);
  const series = /** @type {Any[]} */ ([{ label: "step" }]);
  let top = 0, least = Infinity;
  const seen = /** @type {Any} */ ({});
  for (const one of list) {
    const nth = seen[one.look[0]] = (seen[one.look[0]] ?? -1) + 1; // arms of one codebase: lighter, or darker on a dark page
    const colour = nth ? `color-mix(in srgb, ${one.look[0]} ${100 / (1 + nth)}%, ${css("muted")})` : one.look[0];
    const at = places(one), warm = at.map((p) => p[1] < 0);
    const pick = (wanted) => data[0].map((_, index) => index < one.steps.length && warm[index] === wanted ? one.steps[index] : null);
    for (const value of pick(false)) if (value !== null) { top = max(top, value); least = min(least, value); }
    data.push(pick(false), pick(true));
    const look = { stroke: colour, paths: () => null, value: (_, v) => (v === null || v === undefined ? NONE : number(v) + " s") };
    series.push({ ...look, label: one.name, points: { show: true, size: 6, fill: colour } }, { ...look, label: one.name + " (hollow)", points: { show: true, size: 6, fill: css("page") } });
  }
  if (!top) { top = max(...list.flatMap((one) => one.steps)); least = top / 10; }
  const bands = (u) => {
    places(list[0]).forEach((p, index) => {
      if (p[0] === null || p[0] % 2 === 0) return;
      const from = u.valToPos(index + 0.5, "x", true), to = u.valToPos(index + 1.5, "x", true);
      u.ctx.fillStyle = css("soft");
      u.ctx.fillRect(from, u.bbox.top, to - from, u.bbox.height);
    });
  };
  const lines = { stroke: css("text"), grid: { stroke: css("grid") }, ticks: { stroke: css("grid") }, font: "12px system-ui" };
  chart = new /** @type {Any} */ (window).uPlot({
    width: box.clientWidth, height: 300, hooks: { drawClear: [bands] }, series, cursor: { drag: { x: true, y: false } },
    scales: { x: { time: false }, y: logScale ? { distr: 3, range: () => [least * 0.8, top * 1.2] } : { range: () => [0, top * 1.1] } },
    axes: [{ ...lines }, { ...lines, label: "s/iter", size: 62 }],
  }, data, box);
}
