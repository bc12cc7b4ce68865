// The data, the state of the page (it lives in the hash), and what follows from both.
let D = /** @type {Any} */ (null);
/** Arms as objects with their texts. @type {Any[]} */
let arms = [];
/** @type {Any[]} */
let groups = [];
const START = /** @type {Any} */ ({ q: "", task: "", model: "", level: "", hide: "", equal: "", sure: "", base: "", metric: "ratio", sort: "", arm: "" });
let state = /** @type {Any} */ ({ ...START });

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function load(data) {
  D = data;
  const text = (index) => D.strings[index];
  groups = D.groups.title.map((title, index) => ({
    index, title: text(title), model: text(D.groups.model[index]), task: text(D.groups.task[index]),
    cell: text(D.groups.cell[index]), command: text(D.groups.command[index]), levels: D.groups.levels[index].map(text), arms: [],
  }));
  arms = D.arms.id.map((id, index) => {
    const arm = /** @type {Any} */ ({ index, id });
    for (const [name, column] of Object.entries(D.arms))
      if (name !== "id") arm[name] = D.texts.includes(name) ? text(column[index]) : column[index];
    arm.group = groups[arm.group];
    arm.group.arms.push(arm);
    arm.ratio0 = arm.ratio === null ? null : { value: arm.ratio, low: arm.low, high: arm.high };
    arm.look = D.looks[arm.codebase];
    arm.key = [arm.group.title, arm.name, arm.codebase, arm.id].join(" ").toLowerCase();
    return arm;
  });
  for (const group of groups) group.base = group.arms.find((arm) => arm.base) || null;
}

// -- the hash --------------------------------------------------------------------------------------

function readHash() {
  state = { ...START };
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (Object.hasOwn(START, name)) state[name] = value;
  if (!Object.hasOwn(METRICS, state.metric)) state.metric = START.metric;
}
function writeHash() {
  const kept = Object.entries(state).filter(([name, value]) => value !== START[name]);
  const hash = new URLSearchParams(kept).toString();
  history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
}
const hidden = () => new Set(state.hide ? state.hide.split("|").map((name) => name.replaceAll("%7C", "|")) : []);

// -- ratios ----------------------------------------------------------------------------------------

/** Student's t at 97.5 % by degrees of freedom. */
const T = [0, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131];
const student = (freedom) => T[freedom] || 1.96 + 2.5 / freedom;

/** Seconds per step of each round: "launch,round" → mean. */
function rounds(arm) {
  if (arm.roundsFound) return arm.roundsFound;
  const found = new Map();
  let at = 0;
  for (const part of arm.design ? arm.design.split(";") : []) {
    const [launch, round, count] = part.split(",").map(Number);
    const sum = arm.steps.slice(at, at + count).reduce((a, b) => a + b, 0);
    if (round >= 0) found.set(launch + "," + round, sum / count);
    at += count;
  }
  return (arm.roundsFound = found);
}

/** Throughput of an arm over another of its cell, from their rounds; interval by Student's t, the wider one of launches and rounds. */
function recomputed(arm, base) {
  const launches = new Map();
  const theirs = rounds(base);
  for (const [key, seconds] of rounds(arm)) {
    if (!theirs.has(key)) continue;
    const launch = key.split(",")[0];
    launches.set(launch, [...(launches.get(launch) || []), log(theirs.get(key) / seconds) + log(arm.images / base.images)]);
  }
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const all = [...launches.values()].flat();
  if (!all.length) return null;
  const centre = mean(all);
  const half = max(...[all, [...launches.values()].map(mean)].filter((values) => values.length > 1).map((values) =>
    student(values.length - 1) * sqrt(values.reduce((sum, one) => sum + (one - centre) ** 2, 0) / (values.length - 1) / values.length)), all.length > 1 ? 0 : Infinity);
  return { value: exp(centre), low: exp(centre - half), high: Number.isFinite(half) ? exp(centre + half) : null };
}

/** The arm that a group is compared with now. */
function baseOf(group) {
  if (!state.base) return group.base;
  return group.arms.find((arm) => arm.name === state.base) || null;
}
/** The ratio to the baseline of now; null for the baseline, without one, and where there are no common rounds. */
function ratioOf(arm) {
  if (!state.base) return arm.ratio0;
  const base = baseOf(arm.group);
  if (!base || base === arm) return null;
  if (base === arm.group.base) return arm.ratio0;
  const key = "ratio:" + base.index;
  if (!(key in arm)) arm[key] = recomputed(arm, base);
  return arm[key];
}
/** Marks against the baseline of now: equal work was judged against the run's baseline only. */
function marksOf(arm) {
  const base = baseOf(arm.group);
  if (!base || base === arm.group.base) return arm.marks;
  const judged = (one) => one.base || one.verdict === "equal";
  const own = arm.marks.replace(/[≠?◇]/g, "");
  if (arm === base || (judged(arm) && judged(base))) return own;
  const has = (verdict) => [arm, base].some((one) => one.verdict === verdict);
  return (has("different models") ? "◇" : has("unequal") ? "≠" : "?") + own;
}
const isEqual = (arm) => !/[≠?✕◇]/.test(marksOf(arm));
const sure = (ratio) => ratio && ratio.high !== null && (ratio.low > 1 || ratio.high < 1);

/** Geometric mean of the ratios of equal work, and its interval. */
function geometric(list) {
  const found = list.filter(isEqual).map(ratioOf).filter(Boolean);
  if (!found.length) return null;
  const centre = found.reduce((sum, one) => sum + log(one.value), 0) / found.length;
  const wide = found.some((one) => one.high === null || one.low <= 0);
  const half = wide ? Infinity : sqrt(found.reduce((sum, one) => sum + (log(one.high / one.low) / 2) ** 2, 0)) / found.length;
  return { value: exp(centre), low: exp(centre - half), high: wide ? null : exp(centre + half), count: found.length };
}
/** Ratio and interval in the digits that the interval supports, as `bench.judge.numbers` writes them. */
function ratioTexts(ratio) {
  if (!ratio) return [NONE, ""];
  const { value, low, high } = ratio, power = (v) => floor(log10(v));
  if (high === null) return [number(value, 2) + "×", "(no interval)"];
  let write = (v) => number(v, 2);
  if (!(low > 0 && 100 * low < high)) {
    const half = (high - low) / 2;
    const digits = half <= value * 1e-6 ? 5 - power(value) : (half / 10 ** power(half) < 2 ? 1 : 0) - power(half);
    write = (v) => v.toFixed(min(12, max(0, digits, low > 0 ? ceil(-log10(low)) : 0)));
  }
  return [write(value) + "×", `[${write(low)}, ${write(high)}]`];
}
const ratioText = (ratio) => ratioTexts(ratio).join(" ");

// -- metrics and filters -----------------------------------------------------------------------------

/** What the matrix can show: title, value, text, and whether more is better. */
const METRICS = /** @type {Any} */ ({
  ratio: ["throughput ratio", (a) => ratioOf(a)?.value ?? null, (v, a) => ratioTexts(ratioOf(a))[0], true],
  seconds: ["s/iter", (a) => a.median, (v) => number(v) + " s", false],
  rate: ["images/s", (a) => a.rate, (v) => number(v), true],
  memory: ["max memory", (a) => a.memory, (v) => number(v, 4) + " MiB", false],
  ap: ["AP", (a) => a.ap, (v) => (100 * v).toFixed(1), true],
  training: ["seconds of training", (a) => a.curve.at(-1)?.[0] ?? null, (v) => number(v) + " s", false],
  peak: ["% of peak", (a) => a.peak, (v) => (100 * v).toFixed(0) + " %", true],
});

/** Names of arms, the baseline's first: the columns of the matrix. */
function names() {
  const found = new Map();
  for (const arm of arms) if (!found.has(arm.name) || arm.base) found.set(arm.name, found.get(arm.name) || arm.base);
  const off = hidden();
  const first = ([name, base]) => 2 * +(name === state.base) + base;
  const all = [...found].sort((a, b) => first(b) - first(a)).map(([name]) => name);
  return { all, kept: all.filter((name) => !off.has(name)) };
}
/** Groups that the filters leave, in the order asked for, each with the arms that are shown. */
function rows() {
  const off = hidden(), words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const passes = (arm) => words.every((word) => arm.key.includes(word));
  const found = [];
  for (const group of groups) {
    if (state.task && group.task !== state.task) continue;
    if (state.model && group.model !== state.model) continue;
    if (state.level && !group.levels.includes(state.level)) continue;
    let list = group.arms.filter((arm) => !off.has(arm.name));
    if (!list.some(passes)) continue;
    const base = baseOf(group);
    const others = list.filter((arm) => arm !== base);
    if (state.equal && others.length) list = list.filter((arm) => arm === base || isEqual(arm));
    if (state.sure && others.length) list = list.filter((arm) => arm === base || sure(ratioOf(arm)));
    if (others.length && !list.some((arm) => arm !== base)) continue;
    found.push({ group, arms: list });
  }
  const down = state.sort.startsWith("-");
  const column = state.sort.replace(/^-/, "");
  if (column === "workload") found.sort((a, b) => a.group.title.localeCompare(b.group.title) * (down ? -1 : 1));
  else if (column) {
    const value = METRICS[state.metric][1];
    const key = (row) => {
      const arm = row.arms.find((one) => one.name === column);
      return arm ? value(arm) : null;
    };
    const keyed = found.map((row) => ({ row, key: key(row) }));
    keyed.sort((a, b) => a.key === null || b.key === null ? (a.key === null ? 1 : 0) - (b.key === null ? 1 : 0) : (a.key - b.key) * (down ? -1 : 1));
    return keyed.map((one) => one.row);
  }
  return found;
}
