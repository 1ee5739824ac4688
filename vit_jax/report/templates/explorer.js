"use strict";

const ATTENTION = "attention";
// Viridis: perceptually uniform, also with colour-blindness.
const COLOURS = [[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140],
  [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37]];

const contents = JSON.parse(document.getElementById("contents").textContent);
const byId = (id) => document.getElementById(id);
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}\u00a0%`;
const range = (count) => [...Array(count).keys()];

/** Create an element with properties and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { role, label, ...others } = properties;
  Object.assign(element, others);
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

/** Decode base64 to bytes. */
function decode(text) {
  const binary = atob(text);
  return Uint8Array.from({ length: binary.length }, (_, i) => binary.charCodeAt(i));
}

/** Rows of a quantised array. */
class Table {
  constructor({ shape, scales, values }) {
    this.shape = shape;
    this.scales = new DataView(decode(scales).buffer);
    this.values = decode(values);
  }

  /** Read the row at the indices of all axes but the last. */
  row(...index) {
    const number = index.reduce((sum, i, axis) => sum * this.shape[axis] + i, 0);
    const width = this.shape.at(-1);
    const scale = this.scales.getFloat32(4 * number, true);
    return Array.from(this.values.subarray(number * width, (number + 1) * width), (v) => v * scale);
  }

  /** Average the rows over the axis of heads, or read those of one head; null if it is missing. */
  ofHead(head, ...index) {
    const heads = this.shape[2];
    if (head >= 0) return head < heads ? this.row(index[0], index[1], head, ...index.slice(2)) : null;
    const rows = range(heads).map((h) => this.row(index[0], index[1], h, ...index.slice(2)));
    return rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / heads);
  }
}

const runs = contents.runs.map((run) => ({
  ...run,
  seen: new Table(run.seen),
  patches: new Table(run.patches),
  maps: Object.fromEntries(Object.entries(run.maps).map(([name, map]) => [name, new Table(map)])),
}));

// Positions are fractions of the image, so that runs with different patches share them; null is the
// token that the head sees. `hovered` is undefined unless the pointer is on a patch.
const state = {
  image: 0, block: Math.max(...runs.map((run) => run.depth)), head: -1, method: ATTENTION,
  name: runs[0].classes[0][0], pinned: null, hovered: undefined, strength: 65,
};

const query = () => (state.hovered === undefined ? state.pinned : state.hovered);

/** Find the patch of a run at a position: row, column. */
function patchAt(run, [y, x]) {
  return [Math.floor(y * run.grid[0]), Math.floor(x * run.grid[1])];
}

/** Describe the rows or columns that are averaged with one of them. */
function span(name, index, size, count) {
  const first = index - (index % size) + 1;
  const last = Math.min(first + size - 1, count);
  return first === last ? `${name} ${first}` : `${name}s ${first} to ${last}`;
}

/** Compute the shown values of a run: of all tokens for attention, else of patches. */
function look(run) {
  const of = (what, token, note = "") => ({ ...what, token, note });
  if (state.method !== ATTENTION) {
    const map = run.maps[state.method];
    const number = map && map.shape[1] > 1 ? run.classes[state.image].indexOf(state.name) : 0;
    if (!map) return of({ patches: null }, "", `${run.name} has no ${state.method}.`);
    if (number < 0) return of({ patches: null }, "", `No map of ${state.name} is stored.`);
    const values = map.row(state.image, number);
    return of({ patches: values }, map.shape[1] > 1 ? `evidence for ${state.name}` : "rollout");
  }
  const block = Math.min(state.block, run.depth) - 1;
  const position = query();
  let note = state.block > run.depth ? `It has ${run.depth} blocks: the last is shown. ` : "";
  let head = state.head;
  if (head >= run.heads) {
    note += `It has ${run.heads} heads: their mean is shown. `;
    head = -1;
  }
  let row;
  let token = run.view;
  if (position) {
    const [y, x] = patchAt(run, position);
    const [high, wide] = run.pooled;
    const index = Math.floor(y / high) * Math.ceil(run.grid[1] / wide) + Math.floor(x / wide);
    row = run.patches.ofHead(head, state.image, block, index);
    if (!row || (head >= 0 && run.patches.shape[2] < run.heads)) {
      note += "Of patches, single heads are left out: the mean is shown. ";
      row = run.patches.ofHead(-1, state.image, block, index);
    }
    const place = `${span("row", y, high, run.grid[0])}, ${span("column", x, wide, run.grid[1])}`;
    token = high * wide > 1 ? `mean of the patches in ${place}` : `patch in ${place}`;
  } else {
    row = run.seen.ofHead(head, state.image, block);
  }
  const others = row.slice(0, run.first);
  return of({ patches: row.slice(run.first), others, queried: position !== null }, token, note);
}

/** Interpolate the colour of a value in [0, 1]. */
function colour(value) {
  const place = Math.min(Math.max(value, 0), 1) * (COLOURS.length - 1);
  const low = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[low].map((c, i) => Math.round(c + (place - low) * (COLOURS[low + 1][i] - c)));
}

/** Paint values, divided by `largest`, on a canvas of one pixel each. */
function paint(canvas, rows, columns, values, largest) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  values.forEach((value, i) => {
    pixels.data.set([...colour(largest > 0 ? value / largest : 0), 255], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
}

/** Build the pane of a run; return a function that updates it. */
function makePane(run) {
  const image = make("img", { alt: "" });
  const heat = make("canvas");
  heat.setAttribute("aria-hidden", "true");
  const [grid, cells] = makeGrid(run);
  const scale = make("canvas");
  scale.setAttribute("aria-hidden", "true");
  const largest = make("span");
  const legend = make("div", { className: "legend" }, "0", scale, largest);
  const readout = make("p", { className: "readout" });
  readout.setAttribute("aria-live", "polite");
  const predicted = make("p", { className: "predicted" });
  const heading = make("h3");
  const bars = make("ul", { className: "bars" });
  const chart = makeChart();
  if (run.pixelated) image.className = "pixels";
  paint(scale, 1, 64, range(64), 63);
  byId("runs").append(make("section", { className: "pane", label: run.name },
    ...(runs.length > 1 ? [make("h2", {}, run.name)] : []), predicted,
    make("div", {}, make("div", { className: "frame" }, image, heat, grid),
      legend, readout),
    make("div", { className: "lens" }, heading, bars, chart)));

  return () => {
    const found = look(run);
    const classes = run.classes[state.image];
    const lens = run.lens[state.image];
    const block = Math.min(state.block, run.depth);
    image.src = run.images[state.image];
    image.classList.toggle("grey", Boolean(found.patches) && state.strength > 0);
    image.alt = contents.names[state.image];
    heat.style.opacity = found.patches ? state.strength / 100 : 0;
    const top = found.patches ? Math.max(...found.patches) : 0;
    if (found.patches) paint(heat, ...run.grid, found.patches, top);
    largest.textContent = percent(top, 2);
    legend.hidden = !found.patches;
    updateCells(run, cells, found);
    readout.textContent = describe(run, found);
    predicted.replaceChildren("Prediction: ", make("b", {}, `${classes[0]} ${percent(lens.at(-1)[0])}`),
      classes.slice(1, 3).map((name, i) => `, ${name} ${percent(lens.at(-1)[i + 1])}`).join(""));
    heading.textContent = `Classes in block ${block} of ${run.depth}`;
    updateBars(bars, classes, lens[block]);
    updateChart(chart, run, classes, lens, block);
  };
}

/** Describe what is shown, in words. */
function describe(run, found) {
  if (!found.patches) return found.note;
  const best = found.patches.indexOf(Math.max(...found.patches));
  const place = (i) => `row ${Math.floor(i / run.grid[1]) + 1}, column ${(i % run.grid[1]) + 1}`;
  let text = `${found.note}${found.token[0].toUpperCase()}${found.token.slice(1)}: `;
  text += `most at ${place(best)} (${percent(found.patches[best], 2)})`;
  const [cls, ...registers] = run.cls ? found.others ?? [] : [undefined, ...(found.others ?? [])];
  if (cls !== undefined) text += `; class token ${percent(cls, 2)}`;
  if (registers.length) {
    text += `; other tokens ${percent(registers.reduce((sum, v) => sum + v, 0), 2)}`;
  }
  const position = query();
  if (position && !found.queried) {
    const [y, x] = patchAt(run, position);
    const i = y * run.grid[1] + x;
    text += `; here, ${place(i)}: ${percent(found.patches[i], 2)}`;
  }
  return `${text}.`;
}

/** Make a grid of buttons, one per patch; return it and its rows. */
function makeGrid(run) {
  const [rows, columns] = run.grid;
  const cells = [];
  const label = `Patches of ${run.name}: the arrow keys move, Escape leaves`;
  const grid = make("div", { className: "grid", role: "grid", label });
  grid.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
  for (const y of range(rows)) {
    const line = make("div", { role: "row" });
    for (const x of range(columns)) {
      const cell = make("button", { type: "button", role: "gridcell", tabIndex: -1 });
      const position = [(y + 0.5) / rows, (x + 0.5) / columns];
      const pin = () => change({ pinned: position, hovered: undefined });
      cell.addEventListener("click", pin);
      // A pointer that has gone down will click, which pins too.
      cell.addEventListener("focus", () => cell.matches(":focus-visible") && pin());
      cell.addEventListener("pointerenter", (event) => {
        if (event.pointerType !== "touch") change({ hovered: position });
      });
      line.append(cell);
      cells.push(cell);
    }
    grid.append(line);
  }
  grid.addEventListener("pointerleave", () => change({ hovered: undefined }));
  grid.addEventListener("keydown", (event) => {
    const i = cells.indexOf(event.target);
    const [y, x] = [Math.floor(i / columns), i % columns];
    const moves = {
      ArrowUp: [y - 1, x], ArrowDown: [y + 1, x], ArrowLeft: [y, x - 1], ArrowRight: [y, x + 1],
      Home: [y, 0], End: [y, columns - 1],
    };
    const to = moves[event.key];
    if (!to) return;
    event.preventDefault();
    if (to[0] in range(rows) && to[1] in range(columns)) cells[to[0] * columns + to[1]].focus();
  });
  return [grid, cells];
}

/** Write the value of each patch to its label, and mark the chosen patch. */
function updateCells(run, cells, found) {
  const position = query();
  const columns = run.grid[1];
  const chosen = position && patchAt(run, position);
  const [high, wide] = found.queried ? run.pooled : [1, 1];
  const reachable = state.pinned ? patchAt(run, state.pinned) : [0, 0];
  cells.forEach((cell, i) => {
    const [y, x] = [Math.floor(i / columns), i % columns];
    const value = found.patches ? `: ${percent(found.patches[i], 2)}` : "";
    cell.setAttribute("aria-label", `row ${y + 1}, column ${x + 1}${value}`);
    cell.tabIndex = y === reachable[0] && x === reachable[1] ? 0 : -1;
    const same = chosen && Math.floor(y / high) === Math.floor(chosen[0] / high)
      && Math.floor(x / wide) === Math.floor(chosen[1] / wide);
    cell.classList.toggle("query", Boolean(same));
  });
}

/** Show the probability of each class in a block; a click chooses the class. */
function updateBars(list, classes, probabilities) {
  while (list.children.length < classes.length) {
    const bar = make("div", { className: "bar" });
    const button = make("button", { type: "button" }, make("span"), make("div", {}, bar),
      make("span", { className: "number" }));
    button.addEventListener("click", () => change({ name: button.firstChild.textContent }));
    list.append(make("li", {}, button));
  }
  const longest = Math.max(...classes.map((name) => name.length));
  list.style.setProperty("--names", `${Math.min(longest, 20) + 1}ch`);
  classes.forEach((name, i) => {
    const button = list.children[i].firstChild;
    button.setAttribute("aria-pressed", name === state.name);
    button.children[0].textContent = name;
    button.title = name; // which the column may cut
    button.children[1].firstChild.style.width = `${100 * probabilities[i]}%`;
    button.children[2].textContent = percent(probabilities[i]);
  });
}

const WIDTH = 320;
const HEIGHT = 110;

/** Create an SVG element with attributes. */
function makeSvg(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

function makeChart() {
  const viewBox = `-34 -8 ${WIDTH + 44} ${HEIGHT + 32}`;
  return makeSvg("svg", { class: "chart-lens", viewBox, role: "img" });
}

/** Draw the probabilities of the classes over the blocks. */
function updateChart(chart, run, classes, lens, block) {
  const x = (i) => (i / run.depth) * WIDTH;
  const y = (p) => (1 - p) * HEIGHT;
  const parts = [0, 0.5, 1].flatMap((p) => [
    makeSvg("line", { x1: 0, x2: WIDTH, y1: y(p), y2: y(p) }),
    makeSvg("text", { x: -6, y: y(p) + 4, "text-anchor": "end" }, percent(p, 0)),
  ]);
  parts.push(makeSvg("line", { class: "now", x1: x(block), x2: x(block), y1: 0, y2: HEIGHT }));
  const order = range(classes.length).sort((a, b) => (classes[a] === state.name) - (classes[b] === state.name));
  for (const k of order) {
    const points = lens.map((row, i) => `${x(i)},${y(row[k])}`).join(" ");
    parts.push(makeSvg("polyline", { points, class: classes[k] === state.name ? "chosen" : "" }));
  }
  parts.push(makeSvg("text", { x: 0, y: HEIGHT + 18 }, "embedding"));
  parts.push(makeSvg("text", { x: WIDTH, y: HEIGHT + 18, "text-anchor": "end" }, `block ${run.depth}`));
  chart.replaceChildren(...parts);
  const [name, probability] = run.top[state.image][block];
  const text = `Probabilities of ${classes.length} classes over the blocks; in block ${block} the most `
    + `probable is ${name}, ${percent(probability)}`;
  chart.setAttribute("aria-label", text);
}

/** Fill a select with options, [value, text] each. */
function fill(select, options, value) {
  select.replaceChildren(...options.map(([v, text]) => make("option", { value: v }, text)));
  select.value = value;
}

function setUp() {
  byId("images").append(...contents.names.map((name, i) => {
    const thumbnail = make("img", { src: runs[0].images[i], alt: name });
    if (runs[0].pixelated) thumbnail.className = "pixels";
    const button = make("button", { type: "button", title: name }, thumbnail);
    button.addEventListener("click", () => change({ image: i, name: runs[0].classes[i][0] }));
    return button;
  }));
  const methods = new Set([ATTENTION, ...runs.flatMap((run) => Object.keys(run.maps))]);
  fill(byId("method"), [...methods].map((name) => [name, name]), state.method);
  const heads = range(Math.max(...runs.map((run) => run.heads)));
  fill(byId("head"), [[-1, "mean"], ...heads.map((h) => [h, `head ${h + 1}`])], state.head);
  byId("block").max = state.block;
  byId("block").value = state.block;
  const views = [...new Set(runs.map((run) => run.view))].join(" or ");
  byId("view").textContent = `${views[0].toUpperCase()}${views.slice(1)}`;
  const listen = (id, event, read) => byId(id).addEventListener(event, () => change(read(byId(id).value)));
  listen("method", "change", (value) => ({ method: value }));
  listen("head", "change", (value) => ({ head: Number(value) }));
  listen("class", "change", (value) => ({ name: value }));
  listen("block", "input", (value) => ({ block: Number(value) }));
  listen("strength", "input", (value) => ({ strength: Number(value) }));
  byId("view").addEventListener("click", () => change({ pinned: null }));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (event.target.closest(".grid")) byId(state.method === ATTENTION ? "view" : "method").focus();
    change({ pinned: null, hovered: undefined });
  });
}

/** Update the controls to the state. */
function updateControls() {
  [...byId("images").children].forEach((button, i) => {
    button.setAttribute("aria-pressed", i === state.image);
  });
  const names = [...new Set(runs.flatMap((run) => run.classes[state.image]))];
  fill(byId("class"), names.map((name) => [name, name]), state.name);
  const attention = state.method === ATTENTION;
  byId("head").disabled = !attention;
  byId("class").disabled = !runs.some((run) => run.maps[state.method]?.shape[1] > 1);
  byId("block-value").textContent = state.block;
  byId("strength-value").textContent = `${state.strength} %`;
  byId("view").disabled = !attention;
  byId("view").setAttribute("aria-pressed", query() === null);
}

let scheduled = false;

/** Change the state, and update the page before the next frame. */
function change(changes) {
  Object.assign(state, changes);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(update);
}

setUp();
const panes = runs.map(makePane);

function update() {
  scheduled = false;
  updateControls();
  for (const pane of panes) pane();
}

update();
