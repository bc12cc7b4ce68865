// Helpers. Text from records reaches the page through textContent and setAttribute only.
/** @typedef {any} Any */
const $ = (id) => /** @type {Any} */ (document.getElementById(id));
const ROOT = document.documentElement;
const { max, min, abs, log, exp, sqrt, floor, ceil, round, log2, log10 } = Math;
const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes, listeners (on…), children. @returns {Any} */
function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) value && element.addEventListener(name.slice(2), value);
    else if ((value ?? false) !== false || name.startsWith("aria-")) element.setAttribute(name, value);
  }
  element.append(...children.flat(9).filter((one) => one || one === "0").map(shown));
  return element;
}
const h = (tag, attributes = {}, ...children) =>
  make(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) =>
  make(document.createElementNS(SVG, tag), attributes, children);

/** Control and bidirectional characters as escapes. */
function shown(value) {
  if (value instanceof Node) return value;
  return String(value).replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
    (char) => "\\u" + char.charCodeAt(0).toString(16).padStart(4, "0"));
}

const div = (name, ...children) => h("div", { class: name }, children);
const span = (name, ...children) => h("span", { class: name }, children);
const button = (text, onclick, attributes = {}) => h("button", { type: "button", onclick, ...attributes }, text);
/** A colour of the theme. */
const css = (name) => getComputedStyle(ROOT).getPropertyValue("--" + name).trim();
const note = (text) => h("p", { class: "note" }, text);
/** @template T */ const unique = (list) => [...new Set(list)];
/** A table that scrolls by itself. */
const table = (name, head, rows) => [h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": name }, h("table", {},
  h("thead", {}, h("tr", {}, head.map((one) => h("th", { scope: "col" }, one)))),
  h("tbody", {}, rows.slice(0, MOST_TWIN).map((row) => h("tr", {}, row.map((one, at) => h(at ? "td" : "th", at ? {} : { scope: "row" }, String(one ?? NONE)))))))),
  rows.length > MOST_TWIN ? note(`The first ${MOST_TWIN} of ${rows.length} rows.`) : ""];
/** What is drawn when a reader opens it. */
const fold = (title, draw) => h("details", { class: "lazy", ontoggle: (event) => event.target.children[1] || event.target.append(...[draw()].flat()) }, h("summary", {}, title));
/** The values of a figure. */
const twin = (head, rows) => fold("Show as table", () => table("Values", head, rows()));

const MOST_TWIN = 200;
const NONE = "–";
/** So many significant digits, never in scientific notation. */
function number(value, digits = 3) {
  if (!Number.isFinite(value)) return NONE;
  if (value === 0) return "0";
  const decimals = max(0, digits - 1 - floor(log10(abs(value))));
  return value.toFixed(min(decimals, 12));
}
const say = (text) => { $("status").textContent = text; };
const phone = () => matchMedia("(max-width: 40rem)").matches;
let printing = false;

function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** One CSV cell; what a spreadsheet would take for a formula gets an apostrophe. */
function csvCell(value) {
  let text = String(value ?? "");
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = "'" + text;
  return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}
const csv = (rows) => rows.map((row) => row.map(csvCell).join(",")).join("\n") + "\n";
const markdownCell = (text) => String(text).replace(/[\\|`*_<>[\]]/g, (char) => "\\" + char).replace(/\s+/g, " ");

/** An SVG with the colours that it has now, as a file of its own. */
function svgText(svg) {
  const copy = svg.cloneNode(true);
  copy.setAttribute("xmlns", SVG);
  const text = new XMLSerializer().serializeToString(copy).replace(/var\(--(\w+)\)/g, (_, name) => css(name));
  return text.replace(">", `><style>text{fill:${css("text")};font:12px Verdana,sans-serif}</style>`);
}
function svgPng(svg, name) {
  const image = new Image();
  image.onload = () => {
    const canvas = h("canvas", { width: 2 * svg.getAttribute("width"), height: 2 * svg.getAttribute("height") });
    const context = canvas.getContext("2d");
    context.fillStyle = css("page");
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => download(name, "image/png", blob));
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svgText(svg));
}

/** A codebase's marker around (x, y). */
function marker(shape, x, y, r, attributes) {
  const paths = /** @type {Any} */ ({
    s: `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    "^": `M${x},${y - r}L${x + r},${y + r}H${x - r}z`,
    v: `M${x},${y + r}L${x + r},${y - r}H${x - r}z`,
    D: `M${x},${y - r * 1.2}L${x + r * 1.2},${y}L${x},${y + r * 1.2}L${x - r * 1.2},${y}z`,
    P: `M${x - r},${y}h${2 * r}M${x},${y - r}v${2 * r}`,
    X: `M${x - r},${y - r}l${2 * r},${2 * r}m0,${-2 * r}l${-2 * r},${2 * r}`,
  });
  return paths[shape] ? s("path", { d: paths[shape], stroke: attributes.fill, "stroke-width": 2, ...attributes }) : s("circle", { cx: x, cy: y, r, ...attributes });
}

/** Round ticks of a logarithmic axis. */
function logTicks(low, high) {
  const span = high / low;
  if (span < 4) {
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].find((one) => (high - low) / one <= 8) || 1;
    const first = ceil(low / step);
    return Array.from({ length: floor(high / step) - first + 1 }, (_, i) => +((first + i) * step).toFixed(2));
  }
  const found = [];
  for (let power = floor(log10(low)); power <= log10(high); power++)
    for (const step of span < 200 ? [1, 2, 4] : [1]) {
      const tick = step * 10 ** power;
      if (tick >= low && tick <= high) found.push(+tick.toPrecision(2));
    }
  return found;
}
