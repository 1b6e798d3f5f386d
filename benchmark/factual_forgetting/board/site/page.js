"use strict";
// Every text comes into the document as text, never as markup.
const data = JSON.parse(document.getElementById("board").textContent);
const at = (id) => document.getElementById(id);
const PAGE = 100, STEP = 500, COLORS = 8, MANY = 150;
const state = { bundle: 0, table: "learns", sort: null, up: true, shown: PAGE, selected: [] };
const loaded = new Map(), waiting = new Map();

// Adjacent data calls this; a script works from file:// where fetch doesn't.
window.factualForgetting = (name, value) => {
  loaded.set(name, value);
  for (const resolve of waiting.get(name) || []) resolve(value);
  waiting.delete(name);
};
function load(name) {
  if (loaded.has(name)) return Promise.resolve(loaded.get(name));
  return new Promise((resolve) => {
    if (waiting.has(name)) { waiting.get(name).push(resolve); return; }
    waiting.set(name, [resolve]);
    const script = document.createElement("script");
    script.src = `data/${name}.js`;
    script.onerror = () => window.factualForgetting(name, null);
    document.head.append(script);
  });
}

function make(tag, attributes, ...children) {
  const drawn = ["svg", "g", "line", "circle", "path", "text", "rect"].includes(tag);
  const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
// Addresses of the page's own making, and still only https.
const anchor = (text, url) => /^https:\/\//.test(url || "") ? make("a", { href: url, rel: "noopener noreferrer" }, text) : text;
const number = (value) => value === null || value === undefined ? "–" : value.toFixed(3).replace(/^(-?)0\./, "$1.");
const bundle = () => data.bundles[state.bundle];
const rowOf = (key) => bundle().byKey.get(key);
const color = (row) => { const slot = state.selected.indexOf(row.key); return slot < 0 ? null : slot % COLORS; };

const COLUMNS = {
  rank: { title: "Rank", value: (r) => r.rank[state.table], cell: (r) => make("span", { class: "rank" }, r.rank[state.table] === null ? "–" : String(r.rank[state.table])) },
  method: { title: "Method", value: (r) => r.method, head: true, cell: methodCell },
  p90: { title: "S@P90", value: (r) => r.p90 && r.p90[0], cell: (r) => r.p90 ? interval(r.p90, r.marks) : make("span", { class: "range" }, r.why) },
  S: { title: "S", value: (r) => r.S && r.S[0], cell: (r) => interval(r.S) },
  P: { title: "P", value: (r) => r.P && r.P[0], cell: (r) => number(r.P && r.P[0]) },
  T: { title: "T", value: (r) => r.T && r.T[0], cell: (r) => number(r.T && r.T[0]) },
  lost: { title: "Lost", value: (r) => r.lost && r.lost[0], cell: (r) => state.table === "any" ? interval(r.lost) : number(r.lost && r.lost[0]) },
  gained: { title: "Gained", value: (r) => r.gained && r.gained[0], cell: (r) => interval(r.gained) },
  asked: { title: "Asked", value: (r) => r.asked, cell: (r) => r.asked },
  train: { title: "D_train", value: (r) => r.train, cell: (r) => r.train },
  loss: { title: "Loss", value: (r) => r.loss && r.loss[0], cell: (r) => number(r.loss && r.loss[0]) },
  seeds: { title: "Seeds", value: (r) => r.seeds, cell: (r) => String(r.seeds) },
  track: { title: "Track", value: (r) => r.track, cell: (r) => r.trials ? `${r.track} (${r.trials} trial${r.trials === 1 ? "" : "s"})` : r.track },
  level: { title: "Level", value: (r) => r.level, cell: (r) => r.level },
};
const SHOWN = {
  learns: ["rank", "method", "p90", "S", "P", "lost", "seeds", "track", "level"],
  keeps: ["rank", "method", "S", "T", "lost", "loss", "seeds", "track", "level"],
  any: ["rank", "method", "asked", "train", "S", "lost", "gained", "level"],
};
const TABLES = Object.keys(SHOWN);
const EXPLAIN = {
  learns: "For those whose model has to learn: stability at the moment when 90 % of the new facts are learned. A method that never gets there is listed, not ranked.",
  any: "For any checkpoint of the base, whatever it was trained on: what it knows of the held-out facts with other exemplars before the question (few-shot), and what it lost of what the base gets right there.",
  keeps: "For those who only teach a task from data that holds new facts too: final stability of methods that learn the task (T of .95 or more) and were exposed to the new facts (P of .10 or more). Freezing belongs here. Known_only, which never saw them, is the ceiling.",
};

// Long names break after a sign and never in a word.
const breakable = (text) => text.split(/(?<=[(,=_])/).flatMap((part, index) => index ? [make("wbr"), part] : [part]);
function methodCell(row) {
  const cell = make("span", {}, make("button", { type: "button", class: "open", onclick: () => open(row.key) }, ...breakable(row.method)));
  if (row.leak === "included") cell.append(make("span", { class: "tag warn" }, "trained on D_Held"));
  if (row.leak === "unknown") cell.append(make("span", { class: "tag" }, "undeclared"));
  if (row.reference) cell.append(make("span", { class: "tag" }, state.table === "keeps" ? "the ceiling" : "reference"));
  else if (row.unranked[state.table] && row.unranked[state.table] !== row.told) cell.append(make("span", { class: "tag" }, row.unranked[state.table]));
  cell.append(make("small", {}, `${row.protocol.split("@")[0]}, by `, anchor(row.submitter, row.by), ...(row.source ? [", ", anchor("records", row.source)] : [])));
  return cell;
}
function interval(estimate, marks) {
  if (!estimate) return make("span", { class: "range" }, "–");
  const [value, low, high] = estimate, x = (share) => 2 + 80 * share;
  if (low === null) return make("b", {}, number(value));
  const spark = make("svg", { class: "spark", viewBox: "0 0 84 12", "aria-hidden": "true" },
    make("rect", { x: 2, y: 5, width: 80, height: 2 }),
    make("line", { x1: x(low), x2: x(high), y1: 6, y2: 6 }), make("circle", { cx: x(value), cy: 6, r: 2.5 }));
  return make("span", {}, spark, make("b", {}, (marks || "") + number(value)), " ", make("span", { class: "range" }, `[${number(low)}, ${number(high)}]`));
}

function matching() {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = Object.fromEntries(["track", "level", "family"].map((name) => [name, at(name).value]));
  const fits = (row) => Object.entries(wanted).every(([name, value]) => !value || row[name] === value) &&
    words.every((word) => row.text.includes(word));
  const rows = bundle()[state.table].map((place) => bundle().rows[place]).filter((row) => !row.reference && fits(row));
  if (!state.sort) return rows;
  const { value } = COLUMNS[state.sort], sign = state.up ? 1 : -1;
  return rows.map((row, index) => [row, value(row), index]).sort((a, b) => {
    if (a[1] === null || a[1] === undefined || b[1] === null || b[1] === undefined) return (a[1] ?? null) === (b[1] ?? null) ? a[2] - b[2] : (a[1] ?? null) === null ? 1 : -1;
    return a[1] < b[1] ? -sign : a[1] > b[1] ? sign : a[2] - b[2];
  }).map(([row]) => row);
}

// What never trained on D_train has no plasticity and no curve.
const plotted = () => state.table !== "any";
function draw() {
  state.rows = matching();
  drawTable(state.rows);
  if (plotted()) { drawPlane(state.rows); drawSteps(); }
  tellStatus();
}
function tellStatus() {
  const total = bundle()[state.table].filter((place) => !bundle().rows[place].reference).length, found = state.rows.length;
  at("status").textContent = `${found} of ${total} methods${found < total ? "; ranks are of the whole table" : ""}. ` +
    (plotted() ? `${state.selected.length} selected.` : "");
}
// What a selection changes, and nothing else: the focus stays where it is.
function drawSelection() {
  for (const line of document.querySelectorAll("#table tr[data-key]")) {
    const chosen = plotted() && state.selected.includes(line.dataset.key);
    line.classList.toggle("on", chosen);
    if (plotted()) line.querySelector("input").checked = chosen;
  }
  if (plotted()) { drawChosen(); drawSteps(); }
  tellStatus();
}

function drawTable(rows) {
  const names = SHOWN[state.table];
  const table = at("table");
  table.caption.textContent = `${at(state.table).textContent}, bundle ${bundle().title}`;
  table.tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, make("span", { class: "range" }, plotted() ? "Show" : "")), ...names.map(header)));
  at("ranked").replaceChildren();
  drawMore();
  const known = bundle()[state.table].map((place) => bundle().rows[place]).filter((row) => row.reference).map((row) => tableRow(row, names));
  at("references").replaceChildren(...known, ...bundle().references.map((row) => referenceRow(row, names)));
}
function drawMore() {
  const there = at("ranked").children.length, { rows } = state;
  const added = rows.slice(there, state.shown).map((row) => tableRow(row, SHOWN[state.table]));
  at("ranked").append(...added);
  const shown = there + added.length;
  at("more").hidden = shown === rows.length;
  at("more").textContent = `Show ${Math.min(STEP, rows.length - shown)} more (${shown} of ${rows.length} shown)`;
  return added;
}
function header(name) {
  const sorted = state.sort === name;
  const sort = () => {
    const falling = ["p90", "S", "P", "T", "gained", "seeds"].includes(name);
    if (state.sort === name) state.up = !state.up;
    else { state.sort = name; state.up = !falling; }
    draw();
    document.querySelector(`th[data-name="${name}"] button`).focus();
  };
  const { title } = COLUMNS[name];
  return make("th", { scope: "col", "data-name": name, "aria-sort": sorted ? (state.up ? "ascending" : "descending") : null },
    make("button", { type: "button", onclick: sort }, title + (sorted ? (state.up ? " ▲" : " ▼") : "")));
}
function tableRow(row, names) {
  const slot = plotted() ? color(row) : null;
  const box = make("input", { type: "checkbox", "aria-label": `Show the curve of ${row.method}`, onchange: () => select(row.key) });
  box.checked = slot !== null;
  return make("tr", { "data-key": row.key, class: slot !== null ? "on" : null },
    make("td", {}, plotted() ? box : null),
    ...names.map((name) => {
      const { head, cell } = COLUMNS[name];
      return make(head ? "th" : "td", { scope: head ? "row" : null }, cell(row));
    }));
}
function referenceRow(row, names) {
  const cells = { rank: "–", method: row.name, S: interval(state.table === "any" && row.fewShot || row.S), p90: "–", P: "not trained", T: "not trained" };
  return make("tr", {}, make("td", {}), ...names.map((name) =>
    make(name === "method" ? "th" : "td", { scope: name === "method" ? "row" : null }, cells[name] ?? "")));
}

const BOX = { left: 52, right: 548, top: 14, bottom: 352 };
function frame(svg, xs, ys, xTitle, yTitle, x, y) {
  svg.replaceChildren();
  for (const tick of xs) svg.append(make("line", { class: "grid", x1: x(tick), x2: x(tick), y1: BOX.top, y2: BOX.bottom }), make("text", { x: x(tick), y: BOX.bottom + 18, "text-anchor": "middle" }, label(tick)));
  for (const tick of ys) svg.append(make("line", { class: "grid", x1: BOX.left, x2: BOX.right, y1: y(tick), y2: y(tick) }), make("text", { x: BOX.left - 6, y: y(tick) + 4, "text-anchor": "end" }, label(tick)));
  svg.append(make("text", { x: (BOX.left + BOX.right) / 2, y: 394, "text-anchor": "middle" }, xTitle), make("text", { transform: `translate(14 ${(BOX.top + BOX.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle));
}
const label = (tick) => Number.isInteger(tick) ? String(tick) : tick.toFixed(2).replace(/^0/, "").replace(/0$/, "");
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9; i++) found.push(Number((i * step).toPrecision(6)));
  return found;
}
function line(points, x, y) {
  const there = points.filter(([a, b]) => a !== null && b !== null);
  return there.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
}

let plane = null; // What the plot of all methods was drawn with.
function drawPlane(rows) {
  const svg = at("plane"), references = bundle().rows.filter((row) => row.reference);
  const placed = [...rows, ...references].filter((row) => row.P && row.S);
  const floor = floorOf(placed);
  const x = (v) => BOX.left + v * (BOX.right - BOX.left), y = (v) => BOX.bottom - (v - floor) / (1 - floor) * (BOX.bottom - BOX.top);
  frame(svg, [0, .2, .4, .6, .8, 1], ticks(floor, 1, 5), "plasticity P: new facts learned", "stability S: known facts kept", x, y);
  svg.append(make("line", { class: "guide", x1: x(.9), x2: x(.9), y1: BOX.top, y2: BOX.bottom }), make("text", { class: "guided", x: x(.9) - 5, y: BOX.bottom - 8, "text-anchor": "end" }, "P .90"));
  const [whisked, ways, dots, named] = [0, 1, 2, 3].map(() => make("g"));
  svg.append(whisked, ways, dots, named);
  plane = { placed, floor, x, y, whisked, ways, named, circles: new Map() };
  for (const row of placed) {
    const circle = make("circle", { class: "dot", "data-key": row.key, r: 5, cx: x(row.P[0]).toFixed(1), cy: y(row.S[0]).toFixed(1) });
    plane.circles.set(row.key, circle);
    dots.append(circle);
  }
  drawChosen();
}
function floorOf(placed) {
  const curves = state.selected.flatMap((key) => loaded.get(key)?.curve || []).map((point) => point[3]);
  const lows = [...placed.map((row) => row.S[1]), ...curves.filter((v) => v !== null)];
  return Math.max(0, Math.floor(lows.reduce((a, b) => Math.min(a, b), .9) * 10) / 10);
}
function drawChosen() {
  if (floorOf(plane.placed) < plane.floor) { drawPlane(state.rows); return; }
  const { placed, x, y, whisked, ways, named, circles } = plane;
  const there = placed.filter((row) => color(row) !== null);
  whisked.replaceChildren(...(placed.length > MANY ? there : placed).flatMap((row) => whiskers(row, x, y)));
  ways.replaceChildren(...state.selected.map(rowOf).filter((row) => row && loaded.get(row.key)).map((row) =>
    make("path", { class: `way s${color(row)}`, d: line(loaded.get(row.key).curve.map((p) => [p[2], p[3]]), x, y) })));
  for (const circle of at("plane").querySelectorAll(".chosen")) { circle.setAttribute("class", "dot"); circle.setAttribute("r", 5); }
  for (const row of there) { circles.get(row.key).setAttribute("class", `dot chosen f${color(row)}`); circles.get(row.key).setAttribute("r", 7); }
  drawNames(named, there.map((row) => [row, x(row.P[0]), y(row.S[0])]));
}
function whiskers(row, x, y) {
  const slot = color(row), kind = `whisker${slot === null ? "" : ` s${slot}`}`;
  return [make("line", { class: kind, x1: x(row.P[1]), x2: x(row.P[2]), y1: y(row.S[0]), y2: y(row.S[0]) }),
    make("line", { class: kind, x1: x(row.P[0]), x2: x(row.P[0]), y1: y(row.S[1]), y2: y(row.S[2]) })];
}
function drawNames(layer, placed) {
  // Each name goes to the first free place around its point, tied to it by a line if that is far.
  layer.replaceChildren();
  const taken = [at("plane").querySelector(".guided").getBBox()];
  for (const [, px, py] of placed) taken.push({ x: px - 8, y: py - 8, width: 16, height: 16 });
  for (const [row, px, py] of placed.sort((a, b) => a[2] - b[2])) {
    const node = make("text", { class: `name t${color(row)}` }, short(row.method));
    layer.append(node);
    const { width, height } = node.getBBox();
    const apart = (box) => taken.every((other) => box.x + width <= other.x || other.x + other.width <= box.x || box.y + height <= other.y || other.y + other.height <= box.y);
    const box = around(px, py, width, height).find(apart);
    if (!box) { node.remove(); continue; }
    taken.push({ ...box, width, height });
    node.setAttribute("x", box.x);
    node.setAttribute("y", box.y + .8 * height);
    if (Math.abs(box.y + height / 2 - py) > 1.5 * height)
      layer.prepend(make("line", { class: `tie s${color(row)}`, x1: px, y1: py, x2: Math.min(Math.max(px, box.x), box.x + width), y2: box.y + (box.y > py ? 0 : height) }));
  }
}
function around(px, py, width, height) {
  const found = [];
  for (let away = 0; away < 20; away++) for (const down of away ? [-away, away] : [0]) for (const x of [px - 11 - width, px + 11, px - width / 2]) {
    const y = py - height / 2 + down * height * .8;
    if (x >= BOX.left && x + width <= BOX.right && y >= BOX.top && y + height <= BOX.bottom) found.push({ x, y });
  }
  return found;
}
const short = (text) => text.length > 30 ? `${text.slice(0, 29)}…` : text;

function drawSteps() {
  const svg = at("steps");
  const chosen = state.selected.map(rowOf).filter(Boolean).map((row) => [row, loaded.get(row.key)]).filter(([, found]) => found && found.curve.length > 1);
  const last = chosen.reduce((most, [, found]) => Math.max(most, found.curve[found.curve.length - 1][0]), 1);
  const x = (v) => BOX.left + v / last * (BOX.right - BOX.left), y = (v) => BOX.bottom - v * (BOX.bottom - BOX.top);
  frame(svg, ticks(0, last, 6), [0, .2, .4, .6, .8, 1], "optimizer steps", "S solid, P dashed", x, y);
  for (const [row, found] of chosen) {
    const slot = color(row);
    for (const [index, dashed] of [[3, ""], [2, " dashed"]]) {
      found.seeds.forEach((seed) => svg.append(make("path", { class: `seed s${slot}${dashed}`, d: line(found.curve.map((p, i) => [p[0], seed[i][index - 2]]), x, y) })));
      svg.append(make("path", { class: `way s${slot}${dashed}`, d: line(found.curve.map((p) => [p[0], p[index]]), x, y) }));
    }
  }
  if (!chosen.length) svg.append(make("text", { x: 300, y: 180, "text-anchor": "middle" }, "Select methods to see their curves."));
}

const keyOf = (event) => event.target.closest("[data-key]")?.dataset.key ?? null;
function hover(key, event) {
  for (const node of document.querySelectorAll(".hot")) node.classList.remove("hot");
  at("tip").hidden = true;
  if (!key) return;
  for (const node of document.querySelectorAll(`[data-key="${CSS.escape(key)}"]`)) node.classList.add("hot");
  if (event) tip(rowOf(key), event);
}
function tip(row, event) {
  const node = at("tip");
  const told = (name, e) => e ? `${name} ${number(e[0])} [${number(e[1])}, ${number(e[2])}]` : `${name} –`;
  node.textContent = [row.method, told("P", row.P), told("S", row.S), row.p90 ? told("S@P90", row.p90) : `S@P90 ${row.why}`].join("\n");
  node.hidden = false;
  node.style.left = `${Math.min(event.clientX + 14, innerWidth - node.offsetWidth - 8)}px`;
  node.style.top = `${Math.min(event.clientY + 14, innerHeight - node.offsetHeight - 8)}px`;
}
function select(key) {
  const found = state.selected.indexOf(key);
  if (found >= 0) state.selected.splice(found, 1);
  else state.selected.push(key);
  if (state.selected.length > COLORS) state.selected.shift();
  drawSelection();
  load(key).then(drawSelection);
}

const text = (value) => value === null || value === undefined || value === "" ? "–" : String(value);
function pairs(entries) {
  return make("dl", { class: "pairs" }, ...entries.flatMap(([name, value, url]) => [make("dt", {}, name), make("dd", {}, anchor(text(value), url))]));
}
function open(key) {
  const row = rowOf(key);
  if (!row) return;
  at("detail-title").replaceChildren(...breakable(row.method));
  at("detail-body").replaceChildren(make("p", {}, "Loading …"));
  if (!at("detail").open) at("detail").showModal();
  history.replaceState(null, "", `#${encodeURIComponent(key)}`);
  Promise.all([load(key), load(bundle().facts)]).then(async ([found, facts]) => {
    const records = found && await Promise.all(found.records.map((id) => load(`record-${id}`)));
    if (at("detail-title").textContent !== row.method) return;
    if (!records || records.includes(null)) at("detail-body").replaceChildren(make("p", { class: "notice" }, "The folder data/ is missing beside this page."));
    else at("detail-body").replaceChildren(pairs(found.numbers), ...records.map((record) => recordPart(record, facts, records.length === 1)));
  });
}
function recordPart(record, facts, only) {
  const body = make("div", {});
  const part = make("details", { class: "record", "data-record": record.id, ontoggle: () => { if (part.open && !body.childNodes.length) fill(body, record, facts); } },
    make("summary", {}, `Seed ${text(record.seed)}: S ${number(record.S)}, P ${number(record.P)}, ${record.lost.length} facts lost, ${record.learned.length} ${learned(record)}`), body);
  if (only) part.open = true;
  return part;
}
// What never trained on D_Unk knew it, or guessed.
const learned = (record) => record.P === null ? "right" : "learned";
function fill(body, record, facts) {
  body.append(make("h3", {}, "Make it again"), make("pre", { tabindex: "0" }, record.command), copyButton(record.command),
    make("h3", {}, "Provenance"), pairs(record.provenance),
    make("h3", {}, `${record.lostTitle}: ${record.lost.length}`), factList(record.lost, facts && facts.heldout, true),
    make("h3", {}, `Facts of D_Unk ${learned(record)}: ${record.learned.length}`), factList(record.learned.map((index) => [index, null]), facts && facts.unknown, false));
}
function copyButton(command) {
  const button = make("button", { type: "button", onclick: () => {
    const done = navigator.clipboard ? navigator.clipboard.writeText(command) : Promise.reject();
    done.then(() => { button.textContent = "Copied"; }, () => { button.textContent = "Select the text to copy it"; });
  } }, "Copy");
  return button;
}
function factList(entries, facts, answers) {
  const item = ([index, answer]) => {
    const fact = facts && facts[index];
    const told = make("li", {}, fact ? fact[0] : `fact ${index}`, " ", make("span", {}, fact && fact[1] ? `→ ${fact[1]}` : ""));
    if (answers && answer !== null) told.append(make("span", {}, `; answered: ${answer || "nothing"}`));
    return told;
  };
  const list = make("ul", { class: "facts", tabindex: "-1" }, ...entries.slice(0, 50).map(item));
  if (entries.length <= 50) return list;
  const rest = make("button", { type: "button", onclick: () => { list.append(...entries.slice(50).map(item)); list.focus(); rest.remove(); } }, `Show all ${entries.length}`);
  return make("div", {}, list, rest);
}

function options(id, values, all) {
  const found = [...new Set(values)].sort();
  at(id).replaceChildren(...(all ? [make("option", { value: "" }, "all")] : []), ...found.map((value) => make("option", { value }, value)));
}
function enter() {
  const { rows } = bundle();
  for (const name of ["track", "level", "family"]) options(name, rows.map((row) => row[name]), true);
  for (const row of rows) row.text = `${row.method} ${row.protocol} ${row.submitter} ${row.family}`.toLowerCase();
  // What the table shows elsewhere.
  for (const row of rows) row.told = row.leak === "included" ? "trained on D_Held" : row.why === "never" ? "never reaches P .90" : row.why;
  bundle().byKey = new Map(rows.map((row) => [row.key, row]));
  at("about").replaceChildren(bundle().about, ...bundle().links.filter(([, url]) => url).flatMap(([name, url]) => [" ", anchor(name, url)]));
  Object.assign(state, { shown: PAGE, selected: [], sort: null });
  const table = [state.table, ...TABLES].find((name) => bundle()[name].length);
  const first = bundle()[table].map((place) => rows[place]);
  const start = [...first.filter((row) => !row.reference).slice(0, 3), ...rows.filter((row) => row.family === "sft" || row.reference)];
  state.selected = [...new Set(start.map((row) => row.key))].slice(0, 5);
  at("any").hidden = !bundle().any.length;
  tab(table);
  Promise.all(state.selected.map(load)).then(draw);
}
function tab(name) {
  Object.assign(state, { table: name, sort: null });
  for (const other of TABLES) at(other).setAttribute("aria-pressed", String(other === name));
  at("explain").textContent = EXPLAIN[name];
  at("plots").hidden = !plotted();
  draw();
}
function start() {
  at("bundle").replaceChildren(...data.bundles.map((one, index) => make("option", { value: index }, one.title)));
  at("bundle").addEventListener("change", () => { state.bundle = Number(at("bundle").value); enter(); });
  for (const name of ["track", "level", "family"]) at(name).addEventListener("change", draw);
  let timer = 0;
  at("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(draw, 80); });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const name of TABLES) at(name).addEventListener("click", () => tab(name));
  at("more").addEventListener("click", () => {
    state.shown += STEP;
    const [first] = drawMore();
    if (at("more").hidden) first.querySelector("input, button").focus();
  });
  at("plane").addEventListener("click", (event) => { const key = keyOf(event); if (key) select(key); });
  at("plane").addEventListener("mouseover", (event) => hover(keyOf(event), event));
  at("plane").addEventListener("mouseleave", () => hover(null));
  at("table").addEventListener("mouseover", (event) => hover(keyOf(event)));
  at("table").addEventListener("mouseleave", () => hover(null));
  at("close").addEventListener("click", () => at("detail").close());
  at("detail").addEventListener("close", () => history.replaceState(null, "", "#"));
  at("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    theme(dark ? "light" : "dark");
    try { localStorage.setItem("theme", dark ? "light" : "dark"); } catch { /* Private windows forget. */ }
  });
  try { theme(localStorage.getItem("theme")); } catch { /* The system decides. */ }
  const asked = decodeURIComponent(location.hash.slice(1));
  const place = data.bundles.findIndex((one) => one.rows.some((row) => row.key === asked));
  if (place >= 0) { state.bundle = place; at("bundle").value = String(place); }
  if (data.bundles.length) enter();
  if (place >= 0) open(asked);
}
function theme(name) {
  if (name === "light" || name === "dark") document.documentElement.dataset.theme = name;
}
start();
