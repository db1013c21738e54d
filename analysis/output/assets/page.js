"use strict";
/* Theme, tables that are sorted and filtered, curves. Names from records enter the page by textContent,
   and Plotly's texts, which it reads as markup, by `literal`. */

const element = (id) => document.getElementById(id);

/* ---- Theme ---- */

const darkness = matchMedia("(prefers-color-scheme: dark)");
const paper = matchMedia("print");
const wide = matchMedia("(min-width: 44rem)"); // as in the style

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return !paper.matches && (chosen ? chosen === "dark" : darkness.matches);
}

function nameTheme() {
  element("theme").textContent = dark() ? "Light theme" : "Dark theme";
}

element("theme").hidden = false;
element("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  nameTheme();
  redraw();
});
for (const query of [darkness, paper, wide]) {
  query.addEventListener("change", () => {
    nameTheme();
    redraw();
  });
}
nameTheme();

/* ---- Contents: folded on a phone ---- */

const foldContents = () => (element("contents").open = wide.matches);
wide.addEventListener("change", foldContents);
foldContents();

/* ---- Tables ---- */

/* Only what scrolls is a stop of the Tab key. */
const sizes = new ResizeObserver((changes) => {
  for (const { target } of changes) {
    const box = target.closest(".box");
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
});
for (const one of document.querySelectorAll(".box, .box > table")) sizes.observe(one);

const texts = new Intl.Collator("en", { numeric: true });

function sortKey(cell) {
  if (cell.classList.contains("missing")) return null;
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
}

/* Numbers before texts; what is missing comes last, whichever the direction. */
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return sign * (typeof a === "number" ? -1 : 1);
  return sign * (typeof a === "number" ? (a > b) - (a < b) : texts.compare(a, b));
}

function sort(table, column) {
  const headers = [...table.tHead.rows[0].cells];
  const direction = headers[column].ariaSort === "ascending" ? "descending" : "ascending";
  const sign = direction === "ascending" ? 1 : -1;
  const keyed = [...table.tBodies[0].rows].map((row) => [sortKey(row.cells[column]), row]);
  keyed.sort(([a], [b]) => compare(a, b, sign)); // stable: an earlier order breaks ties
  table.tBodies[0].replaceChildren(...keyed.map(([, row]) => row));
  for (const header of headers) header.ariaSort = header === headers[column] ? direction : "none";
  element("live").textContent = `${table.ariaLabel}: sorted by ${headers[column].textContent}, ${direction}`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sort(table, column));
    header.replaceChildren(button);
    header.ariaSort = "none";
  });
}

const runs = [...document.querySelectorAll("#runs tbody tr")].map((row) => [row, row.textContent.toLowerCase()]);

function filter() {
  const words = element("filter").value.toLowerCase().split(/\s+/);
  let count = 0;
  for (const [row, text] of runs) {
    row.hidden = !words.every((word) => text.includes(word));
    count += !row.hidden;
  }
  const total = runs.length.toLocaleString("en");
  element("count").textContent = count === runs.length ? `${total} runs` : `${count.toLocaleString("en")} of ${total} runs`;
}

element("runs-controls").hidden = false;
element("filter").addEventListener("input", filter);
filter();

/* ---- Curves ---- */

const CLEAR = 8; // of more curves, bands hide each other: they are drawn when asked for
const MANY = 20; // of more configurations, those of one optimizer are folded
let data = { styles: {}, groups: [] };
let bandsChosen = false; // by the reader
let linear = false; // whether the metric that is drawn may be negative

/* Plotly reads its texts as markup: with these three, names are what they are. */
const literal = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const digits = (value) => (value === null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: 4 }));
const group = () => data.groups[element("group").value];
const chosenText = (id) => element(id).selectedOptions[0].textContent;
const colourOf = (curve) => data.styles[curve.optimizer][dark() ? "dark" : "colour"];

/* What can be drawn: finite, and above zero where the axis is logarithmic. */
function drawable(x, y) {
  return x !== null && y !== null && (x > 0 || !element("log-x").checked) && (y > 0 || !element("log-y").checked);
}

function lineOf(curve) {
  const x = curve.x[element("axis").value] ?? [];
  const [y, low, high] = curve.y[element("metric").value] ?? [[], [], []];
  const where = chosenText("axis");
  return {
    name: literal(curve.label),
    visible: curve.shown,
    x: x,
    y: x.map((at, i) => (drawable(at, y[i] ?? null) ? y[i] : null)),
    mode: "lines+markers",
    line: { color: colourOf(curve), width: 1.8, dash: curve.dash },
    marker: { symbol: data.styles[curve.optimizer].symbol, size: 6.5, maxdisplayed: 12 },
    hoverinfo: "text",
    hovertext: x.map(
      (at, i) =>
        `<b>${literal(curve.label)}</b><br>${at === null ? "–" : at.toLocaleString("en")} ${where}` +
        `<br>${digits(y[i] ?? null)} [${digits(low[i] ?? null)}, ${digits(high[i] ?? null)}], n = ${curve.n[i]}`,
    ),
  };
}

/* A polygon for each stretch of points that have both quartiles. */
function bandOf(curve) {
  const x = curve.x[element("axis").value] ?? [];
  const [, low, high] = curve.y[element("metric").value] ?? [[], [], []];
  const band = { x: [], y: [] };
  let stretch = [];
  const close = () => {
    const back = stretch.toReversed();
    band.x.push(...stretch.map((i) => x[i]), ...back.map((i) => x[i]), null);
    band.y.push(...stretch.map((i) => high[i]), ...back.map((i) => low[i]), null);
    stretch = [];
  };
  x.forEach((at, i) => (drawable(at, low[i] ?? null) && (high[i] ?? null) !== null ? stretch.push(i) : close()));
  close();
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colourOf(curve).slice(at, at + 2), 16));
  return {
    ...band,
    visible: curve.shown && element("bands").checked,
    mode: "lines",
    line: { width: 0 },
    fill: "toself",
    fillcolor: `rgba(${red}, ${green}, ${blue}, 0.16)`,
    hoverinfo: "skip",
  };
}

function layoutOf(lines) {
  const { color, backgroundColor } = getComputedStyle(document.body);
  const grid = getComputedStyle(document.querySelector(".box")).borderTopColor;
  const axis = (id, logarithmic) => ({
    title: { text: literal(id), standoff: 8 },
    type: logarithmic ? "log" : "linear",
    tickmode: "array",
    tickangle: 0,
    gridcolor: grid,
    linecolor: grid,
    zeroline: false,
    automargin: true,
  });
  const target = group().target?.metric === element("metric").value ? group().target : null;
  const empty = !lines.some((line) => line.visible && line.y.some((y) => y !== null));
  return {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: color },
    paper_bgcolor: backgroundColor,
    plot_bgcolor: backgroundColor,
    hoverlabel: { bgcolor: backgroundColor, font: { color: color }, align: "left", namelength: -1 },
    margin: { t: 12, r: 12, b: 44, l: 52 },
    showlegend: false,
    hovermode: "closest",
    dragmode: wide.matches ? "zoom" : false, // on a phone a finger scrolls the page
    xaxis: axis(chosenText("axis"), element("log-x").checked),
    yaxis: axis(chosenText("metric"), element("log-y").checked),
    // Toggling a curve keeps the zoom; another diagram starts afresh.
    uirevision: ["group", "metric", "axis"].map((id) => element(id).value) + [element("log-x"), element("log-y")].map((box) => box.checked),
    shapes: target
      ? [
          {
            type: "line",
            xref: "paper",
            x0: 0,
            x1: 1,
            y0: target.value,
            y1: target.value,
            line: { color: color, width: 1, dash: "dot" },
            label: { text: literal(target.text), textposition: "start", yanchor: "bottom", padding: 3 },
          },
        ]
      : [],
    annotations: empty
      ? [{ text: "nothing to draw: no finite value", xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false }]
      : [],
  };
}

/* ---- Ticks: 1, 2, 5, or powers of ten, or equal steps; never so many that their labels touch ---- */

const TICKS = 9;

function* equalSteps(low, high) {
  for (let power = Math.floor(Math.log10((high - low) / TICKS)); ; power++)
    for (const factor of [1, 2, 5]) {
      const step = Number(`${factor}e${power}`);
      const places = Math.min(100, Math.max(0, -power));
      const [first, last] = [Math.ceil(low / step), Math.floor(high / step)];
      if (last - first < TICKS)
        yield Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toFixed(places)));
    }
}

function* logarithmicSteps(low, high) {
  const powers = Array.from({ length: Math.floor(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
  const inside = (value) => Math.log10(value) >= low && Math.log10(value) <= high;
  const fine = powers.flatMap((power) => [1, 2, 5].map((factor) => Number(`${factor}e${power}`))).filter(inside);
  if (fine.length < 3) return yield* equalSteps(10 ** low, 10 ** high);
  yield fine;
  for (let every = 1; ; every++) yield powers.filter((power) => power % every === 0).map((power) => 10 ** power).filter(inside);
}

function tickText(value) {
  const size = Math.abs(value);
  if (size && (size < 1e-4 || size >= 1e6)) return Number(value.toPrecision(12)).toExponential().replace("+", "");
  return value.toLocaleString("en", { maximumFractionDigits: 12 });
}

/* The first choice whose labels have room on an axis of Plotly's. */
function ticksOf(axis) {
  const logarithmic = axis.type === "log";
  const [low, high] = axis.range.toSorted((a, b) => a - b);
  const place = (value) => (((logarithmic ? Math.log10(value) : value) - low) / (high - low)) * axis._length;
  const half = (value) => (axis._id === "x" ? 4 * tickText(value).length + 6 : 11); // of a label's pixels
  const apart = (value, i, all) => !i || place(value) - place(all[i - 1]) >= half(value) + half(all[i - 1]);
  for (const values of logarithmic ? logarithmicSteps(low, high) : equalSteps(low, high)) {
    if (values.every(apart)) return values;
  }
}

/* What depends on the axes' ranges, which are known when the diagram is drawn. */
function fit() {
  const { xaxis, yaxis, shapes } = element("plot")._fullLayout;
  const changes = {};
  for (const axis of [xaxis, yaxis]) {
    const values = ticksOf(axis);
    if (String(values) === String(axis.tickvals)) continue;
    changes[`${axis._name}.tickvals`] = values;
    changes[`${axis._name}.ticktext`] = values.map(tickText);
  }
  // The target's name is below its line where above it would be outside.
  const anchor = shapes.length && yaxis.l2p(yaxis.d2l(shapes[0].y0)) < 24 ? "top" : "bottom";
  if (shapes.length && shapes[0].label.yanchor !== anchor) changes["shapes[0].label.yanchor"] = anchor;
  if (Object.keys(changes).length) Plotly.relayout(element("plot"), changes);
}

function redraw() {
  if (!data.groups.length) return;
  const curves = group().curves;
  const shown = curves.filter((curve) => curve.shown).length;
  if (!bandsChosen) element("bands").checked = shown <= CLEAR;
  const lines = curves.map(lineOf);
  const config = { responsive: true, displaylogo: false, displayModeBar: false, showTips: false };
  Plotly.react(element("plot"), [...curves.map(bandOf), ...lines], layoutOf(lines), config).then(fit);
  element("plot").ariaLabel = `${chosenText("metric")} against ${chosenText("axis")}: ${group().name}`;
  const untimed = curves.filter((curve) => !curve.x[element("axis").value]).length;
  element("curves-remark").textContent =
    (shown < curves.length ? `${shown} of ${curves.length} configurations are drawn. ` : "") +
    (untimed ? `${untimed} ${untimed > 1 ? "are" : "is"} not timed, and so without seconds.` : "");
  drawSwatches();
}

/* ---- The list of configurations, which is the diagram's legend ---- */

const SHAPES = {
  circle: "M15 3.5a3.5 3.5 0 1 0 .01 0z",
  square: "M12 4h6v6h-6z",
  "triangle-up": "M15 3l4 7h-8z",
  "triangle-down": "M15 11l4-7h-8z",
  diamond: "M15 2.5l4.5 4.5-4.5 4.5-4.5-4.5z",
  cross: "M13.5 3h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
  x: "M12 2.5l3 3 3-3 1.5 1.5-3 3 3 3-1.5 1.5-3-3-3 3-1.5-1.5 3-3-3-3z",
};
const DASHES = { solid: "none", dash: "6 3", dot: "2 2.5", dashdot: "6 2.5 2 2.5" };
let swatches = []; // [curve, its drawing]

function make(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function swatchOf(curve) {
  const line = make("path", { d: "M0 7h30", "stroke-width": 2, "stroke-dasharray": DASHES[curve.dash] });
  const mark = make("path", { d: SHAPES[data.styles[curve.optimizer].symbol] ?? SHAPES.circle, "stroke-width": 0 });
  const swatch = make("svg", { viewBox: "0 0 30 14", "aria-hidden": "true" }, line, mark);
  swatches.push([curve, swatch]);
  return swatch;
}

function drawSwatches() {
  for (const [curve, swatch] of swatches) {
    swatch.setAttribute("stroke", colourOf(curve));
    swatch.setAttribute("fill", colourOf(curve));
  }
}

/* A checkbox for some curves: of one configuration, or all of an optimizer. */
function boxFor(curves, text, ...before) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  const name = document.createElement("span");
  box.type = "checkbox";
  name.textContent = text;
  box.addEventListener("change", () => show(curves, box.checked));
  box.refresh = () => {
    box.checked = curves.some((curve) => curve.shown);
    box.indeterminate = box.checked && !curves.every((curve) => curve.shown);
  };
  label.append(box, ...before, name);
  return label;
}

function show(curves, shown) {
  for (const curve of curves) curve.shown = shown;
  for (const box of element("configurations").querySelectorAll("input")) box.refresh();
  redraw();
}

/* The configurations of one optimizer, whose name is not said again. */
function variantsOf(curves) {
  const details = document.createElement("details");
  const summary = details.appendChild(document.createElement("summary"));
  summary.textContent = `${curves.length} configurations`;
  details.open = group().curves.length <= MANY;
  const list = details.appendChild(document.createElement("ul"));
  for (const curve of curves) {
    const start = `${curve.optimizer} `;
    const text = curve.label.startsWith(start) ? curve.label.slice(start.length) : curve.label;
    list.appendChild(document.createElement("li")).append(boxFor([curve], text, swatchOf(curve)));
  }
  return details;
}

function listConfigurations() {
  swatches = [];
  const list = element("configurations");
  list.replaceChildren();
  for (const [optimizer, curves] of Map.groupBy(group().curves, (curve) => curve.optimizer)) {
    const item = document.createElement("li");
    if (curves.length > 1) item.append(boxFor(curves, optimizer, swatchOf(curves[0])), variantsOf(curves));
    else item.append(boxFor(curves, curves[0].label, swatchOf(curves[0])));
    list.append(item);
  }
  for (const box of list.querySelectorAll("input")) box.refresh();
}

/* ---- The diagram's controls ---- */

function openGroup() {
  const seconds = element("axis").querySelector('[value="train_seconds"]');
  seconds.disabled = !group().curves.some((curve) => curve.x.train_seconds);
  seconds.textContent = "training seconds" + (seconds.disabled ? " (not timed)" : "");
  if (seconds.disabled && seconds.selected) element("axis").value = "step";
  listConfigurations();
  redraw();
}

/* Ranges of logarithmic axes are in powers of ten, so that one rule serves both. */
function zoom(factor) {
  const ranges = {};
  for (const axis of ["xaxis", "yaxis"]) {
    const [low, high] = element("plot")._fullLayout[axis].range;
    const [middle, half] = [(low + high) / 2, ((high - low) / 2) * factor];
    ranges[`${axis}.range`] = [middle - half, middle + half];
  }
  Plotly.relayout(element("plot"), ranges);
}

function reset() {
  Plotly.relayout(element("plot"), { "xaxis.autorange": true, "yaxis.autorange": true });
}

/* What may be negative has a linear axis, and the reader may choose another. */
function openMetric() {
  const wasLinear = linear;
  linear = "linear" in element("metric").selectedOptions[0].dataset;
  if (linear !== wasLinear) element("log-y").checked = !linear;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

async function start() {
  data = await unpack(element("data").textContent);
  element("waiting").hidden = true;
  element("no-curves").hidden = data.groups.length > 0;
  if (!data.groups.length) return;
  element("panel").hidden = false;
  data.groups.forEach(({ name }, i) => element("group").add(new Option(name, i)));
  const wanted = data.groups[0].target?.metric;
  if ([...element("metric").options].some((option) => option.value === wanted)) element("metric").value = wanted;
  openMetric();
  element("metric").addEventListener("change", openMetric);
  element("group").addEventListener("change", openGroup);
  element("bands").addEventListener("change", () => (bandsChosen = true));
  for (const id of ["metric", "axis", "log-x", "log-y", "bands"]) element(id).addEventListener("change", redraw);
  element("all").addEventListener("click", () => show(group().curves, true));
  element("none").addEventListener("click", () => show(group().curves, false));
  element("zoom-in").addEventListener("click", () => zoom(0.6));
  element("zoom-out").addEventListener("click", () => zoom(1 / 0.6));
  element("reset").addEventListener("click", reset);
  element("save").addEventListener("click", () =>
    Plotly.downloadImage(element("plot"), { format: "svg", width: 900, height: 560, filename: "curves" }),
  );
  openGroup();
  element("plot").on("plotly_relayout", fit);
}

start().then(() => setTimeout(() => document.querySelector(".many")?.classList.remove("many"), 1000));
