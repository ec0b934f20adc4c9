// Charts for the report and the explorer: makeChart(element, spec) draws points, lines and bands as SVG.
// No dependency, no global style of its own (`.chart` lives in theme.css), and text enters by textContent only.
//
// spec = {
//   title, describe,                         // describe: what a screen reader says of the whole chart
//   width?, height?,                         // in pixels; width is that of the container unless it has none
//   x: {label, log?, ticks?: [[value, "text"]..], min?, max?},
//   y: {label, zero?, min?, max?},           // zero: 0 is always in view; points beyond min or max stand at the edge
//   series: [{name, colour, group?, shape: "dot"|"ring"|"square"|"none", line?, dash?, faint?, hidden?, small?,
//             points: [{x, y, low?, high?, tip, key?}..], band?: [{x, low, high}..]}..],
//   legend?,                                 // buttons that show and hide a series, gathered under its group
//   onPick?(point, series),                  // click or Enter
// }
// It returns {update(spec), destroy()}. What a reader has hidden stays hidden over an update.

// Scripts are joined into one: all names but makeChart stay in here.
const makeChart = (() => {
const SVG = "http://www.w3.org/2000/svg";
const REACH = 28; // pixels from the pointer within which a point is meant

function makeChart(element, spec) {
  const chart = {spec, hidden: new Map(), places: [], at: -1, drawn: 0};
  chart.root = htmlNode("div", "chart");
  chart.title = htmlNode("p", "chart-title");
  chart.above = htmlNode("p", "chart-label");
  chart.stage = htmlNode("div", "chart-stage");
  chart.tip = htmlNode("div", "chart-tip");
  chart.below = htmlNode("p", "chart-label chart-below");
  chart.legend = htmlNode("div", "chart-legend");
  chart.tip.hidden = true;
  chart.root.append(chart.title, chart.above, chart.stage, chart.below, chart.legend);
  element.append(chart.root);
  // One unit of the drawing is one pixel of the page, so that text keeps its size on a narrow screen.
  const watch = new ResizeObserver(() => {
    if (Math.abs(chart.root.clientWidth - chart.drawn) > 1) drawChart(chart);
  });
  watch.observe(chart.root);
  listenToChart(chart);
  updateChart(chart, spec);
  return {
    update: (next) => updateChart(chart, next),
    destroy: () => { watch.disconnect(); chart.root.remove(); },
  };
}

function updateChart(chart, spec) {
  chart.spec = spec;
  for (const series of spec.series) {
    if (!chart.hidden.has(series.name)) chart.hidden.set(series.name, Boolean(series.hidden));
  }
  chart.title.textContent = spec.title || "";
  chart.title.hidden = !spec.title;
  chart.above.textContent = (spec.y && spec.y.label) || "";
  chart.below.textContent = (spec.x && spec.x.label) || "";
  drawLegend(chart);
  drawChart(chart);
}

// --- scales ---------------------------------------------------------------------------------

function findExtent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  return low <= high ? [low, high] : [0, 1];
}

function makeScale(domain, range, log) {
  const bend = log ? Math.log10 : (value) => value;
  const [low, high] = domain.map(bend);
  const slope = (range[1] - range[0]) / (high - low || 1);
  return (value) => range[0] + (bend(value) - low) * slope;
}

function niceStep(span, count) {
  const rough = span / Math.max(1, count), power = 10 ** Math.floor(Math.log10(rough || 1));
  return power * [1, 2, 5, 10].find((each) => each * power >= rough * 0.999);
}

function niceTicks([low, high], count) {
  const step = niceStep(high - low || 1, count), ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) ticks.push(at * step);
  const digits = Math.min(12, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  return ticks.map((value) => [value, formatTick(value, digits)]);
}

function formatTick(value, digits) {
  const near = Math.abs(value) < 10 ** -digits / 2 ? 0 : value;
  const text = Math.abs(near).toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  return near < 0 ? `−${text}` : text;
}

function logTicks([low, high]) {
  const ticks = [], wide = Math.log10(high / low) > 3;
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const each of wide ? [1] : [1, 2, 5]) {
      const value = each * 10 ** power;
      if (value >= low && value <= high) ticks.push([value, shortNumber(value)]);
    }
  }
  return ticks;
}

function shortNumber(value) {
  for (const [size, letter] of [[1e9, "b"], [1e6, "m"], [1e3, "k"]]) {
    if (value >= size) return `${+(value / size).toPrecision(3)}${letter}`;
  }
  return String(+value.toPrecision(3));
}

function measureX(spec, shown) {
  const values = shown.flatMap((series) => [...series.points, ...(series.band || [])].map((each) => each.x));
  let [low, high] = findExtent(values.concat((spec.x.ticks || []).map((tick) => tick[0])));
  if (spec.x.log) {
    const room = Math.max((high / low) ** 0.05, 1.1);
    [low, high] = [low / room, high * room];
  } else {
    const room = 0.05 * (high - low) || 0.5;
    [low, high] = [low - room, high + room];
  }
  return [spec.x.min ?? low, spec.x.max ?? high];
}

function measureY(spec, shown) {
  const values = shown.flatMap((series) => [
    ...series.points.flatMap((each) => [each.y, each.low, each.high]),
    ...(series.band || []).flatMap((each) => [each.low, each.high]),
  ]);
  if (spec.y.zero) values.push(0);
  const [low, high] = findExtent(values), room = 0.06 * (high - low) || 0.5;
  return [spec.y.min ?? low - (low === 0 ? 0 : room), spec.y.max ?? high + room];
}

// --- drawing --------------------------------------------------------------------------------

function htmlNode(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function svgNode(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function drawChart(chart) {
  const spec = chart.spec, shown = spec.series.filter((series) => !chart.hidden.get(series.name));
  const focused = chart.stage.contains(document.activeElement), kept = keyOf(chart.places[chart.at]);
  const letter = parseFloat(getComputedStyle(chart.root).fontSize) || 16;
  chart.drawn = chart.root.clientWidth;
  const width = chart.drawn || spec.width || 720;
  const height = spec.height || Math.round(Math.min(480, Math.max(260, width * 0.52)));
  const frame = {width, height, letter, xs: measureX(spec, shown), ys: measureY(spec, shown)};
  frame.yTicks = niceTicks(frame.ys, Math.max(2, Math.floor(height / (letter * 3.4))));
  const widest = Math.max(...frame.yTicks.map((tick) => tick[1].length), 1);
  frame.left = Math.round(letter * (0.55 * widest + 0.9));
  frame.right = width - Math.round(letter * 0.9);
  frame.top = Math.round(letter * 0.6);
  frame.bottom = height - Math.round(letter * 1.8);
  frame.x = makeScale(frame.xs, [frame.left, frame.right], spec.x.log);
  frame.y = makeScale(frame.ys, [frame.bottom, frame.top], false);
  const svg = svgNode("svg", {viewBox: `0 0 ${width} ${height}`, role: "group"});
  svg.setAttribute("aria-label", [spec.title, spec.describe].filter(Boolean).join(". "));
  svg.append(drawAxes(spec, frame));
  // Lines and bands may run out of the view: a nested svg cuts them off.
  const {left, right, top, bottom} = frame;
  const inner = svgNode("svg", {
    x: left, y: top, width: Math.max(1, right - left), height: bottom - top,
    viewBox: `${left} ${top} ${Math.max(1, right - left)} ${bottom - top}`, "aria-hidden": "true",
  });
  svg.append(inner);
  chart.places = [];
  for (const series of shown) {
    inner.append(drawLines(series, frame));
    svg.append(drawPoints(chart, series, frame));
  }
  chart.stage.replaceChildren(svg, chart.tip);
  chart.svg = svg;
  const again = chart.places.findIndex((place) => keyOf(place) === kept);
  chart.at = -1;
  hideTip(chart);
  rove(chart, again >= 0 ? again : 0, focused);
}

function keyOf(place) {
  return place ? `${place.series.name}\n${place.point.key ?? `${place.point.x} ${place.point.y}`}` : null;
}

function drawAxes(spec, frame) {
  const axes = svgNode("g", {class: "chart-axes", "aria-hidden": "true"});
  const {left, right, top, bottom, letter} = frame;
  for (const [value, text] of frame.yTicks) {
    const y = frame.y(value);
    axes.append(svgNode("line", {x1: left, x2: right, y1: y, y2: y, class: value === 0 ? "chart-zero" : "chart-grid"}));
    axes.append(svgNode("text", {x: left - letter * 0.45, y: y + letter * 0.3, "text-anchor": "end"}, text));
  }
  axes.append(svgNode("line", {x1: left, x2: right, y1: bottom, y2: bottom, class: "chart-axis"}));
  const many = Math.max(2, Math.floor((right - left) / (letter * 5)));
  const ticks = spec.x.ticks || (spec.x.log ? logTicks(frame.xs) : niceTicks(frame.xs, many));
  let last = -Infinity;
  for (const [value, text] of ticks) {
    const x = frame.x(value), half = text.length * letter * 0.29;
    if (x < left - 1 || x > right + 1) continue;
    axes.append(svgNode("line", {x1: x, x2: x, y1: bottom, y2: bottom + letter * 0.35, class: "chart-axis"}));
    if (x - half < last + letter * 0.4) continue; // its name would run into the one before
    last = Math.min(x + half, frame.width);
    const middle = Math.min(Math.max(x, half), frame.width - half);
    axes.append(svgNode("text", {x: middle, y: bottom + letter * 1.4, "text-anchor": "middle"}, text));
  }
  axes.append(svgNode("line", {x1: left, x2: left, y1: top, y2: bottom, class: "chart-axis"}));
  return axes;
}

function seriesGroup(series) {
  const group = svgNode("g", {class: `chart-series${series.faint ? " chart-faint" : ""}`});
  group.style.setProperty("--series", series.colour); // a page's policy allows this where it forbids style=""
  return group;
}

function drawLines(series, frame) {
  const group = seriesGroup(series);
  const band = (series.band || []).filter((each) => Number.isFinite(each.low) && Number.isFinite(each.high));
  if (band.length > 1) {
    const path = [...band.map((each) => [each.x, each.high]), ...band.map((each) => [each.x, each.low]).reverse()];
    group.append(svgNode("polygon", {points: path.map((at) => placeAt(frame, ...at)).join(" "), class: "chart-band"}));
  }
  for (const run of series.line ? unbroken(series.points) : []) {
    const line = svgNode("polyline", {points: run.map((each) => placeAt(frame, each.x, each.y)).join(" "), class: "chart-line"});
    if (series.dash) line.setAttribute("stroke-dasharray", series.dash === true ? "7 5" : series.dash);
    group.append(line);
  }
  for (const {x, low, high} of series.points) {
    if (!Number.isFinite(low) || !Number.isFinite(high)) continue;
    const at = frame.x(x), a = frame.y(low), b = frame.y(high);
    group.append(svgNode("path", {d: `M${at} ${a}V${b}M${at - 5} ${a}h10M${at - 5} ${b}h10`, class: "chart-whisker"}));
  }
  return group;
}

function placeAt(frame, x, y) {
  return `${frame.x(x).toFixed(1)},${frame.y(y).toFixed(1)}`;
}

function unbroken(points) { // a value that is not known breaks the line, it is not bridged
  const runs = [[]];
  for (const point of points) {
    if (Number.isFinite(point.y)) runs[runs.length - 1].push(point);
    else runs.push([]);
  }
  return runs.filter((run) => run.length > 1);
}

function drawPoints(chart, series, frame) {
  const group = seriesGroup(series), role = chart.spec.onPick ? "button" : "img";
  if (series.shape === "none") return group;
  for (const point of series.points) {
    if (!Number.isFinite(point.y) || !Number.isFinite(point.x)) continue;
    const x = frame.x(point.x), real = frame.y(point.y);
    const y = Math.min(Math.max(real, frame.top), frame.bottom);
    const node = drawMark(series, x, y, Math.sign(Math.round(real - y)));
    node.setAttribute("role", role);
    node.setAttribute("tabindex", "-1");
    node.setAttribute("aria-label", (point.tip || "").replace(/\n/g, ", "));
    chart.places.push({x, y, point, series, node});
    group.append(node);
  }
  return group;
}

function drawMark(series, x, y, beyond) {
  const size = series.small ? 3.5 : 6, shape = series.shape || "dot";
  const name = `chart-mark chart-${shape}`;
  if (beyond) { // a caret that points to where the value lies
    const tip = y + beyond * size * 1.3, foot = y - beyond * size * 0.6;
    return svgNode("path", {d: `M${x - size} ${foot}L${x} ${tip}L${x + size} ${foot}Z`, class: name});
  }
  if (shape === "square") {
    return svgNode("rect", {x: x - size, y: y - size, width: 2 * size, height: 2 * size, class: name});
  }
  return svgNode("circle", {cx: x, cy: y, r: size, class: name});
}

// --- legend ---------------------------------------------------------------------------------

function drawLegend(chart) {
  const groups = new Map();
  for (const series of chart.spec.legend ? chart.spec.series : []) {
    const name = series.group || "";
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(series);
  }
  const focused = chart.legend.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  chart.legend.replaceChildren(...[...groups].map(([name, members]) => drawGroup(chart, name, members)));
  for (const button of focused === null ? [] : chart.legend.querySelectorAll("button")) {
    if (button.dataset.name === focused) button.focus();
  }
}

function drawGroup(chart, name, members) {
  const group = htmlNode("div", "chart-group");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", name || "shown in the chart");
  if (name) group.append(htmlNode("span", "chart-caption", name));
  for (const series of members) group.append(drawButton(chart, series));
  if (members.length > 3) {
    for (const [word, hide] of [["all", false], ["none", true]]) {
      const button = htmlNode("button", "chart-all", word);
      button.type = "button";
      button.dataset.name = `${name}\n${word}`;
      button.setAttribute("aria-label", `${word} ${name}`.trim());
      button.addEventListener("click", () => toggleSeries(chart, members, hide));
      group.append(button);
    }
  }
  return group;
}

function drawButton(chart, series) {
  const button = htmlNode("button", "chart-toggle");
  button.type = "button";
  button.dataset.name = series.name;
  button.setAttribute("aria-pressed", String(!chart.hidden.get(series.name)));
  const swatch = svgNode("svg", {viewBox: "0 0 24 16", width: 24, height: 16, "aria-hidden": "true"}), group = seriesGroup(series);
  if (series.line) group.append(svgNode("line", {x1: 1, x2: 23, y1: 8, y2: 8, class: "chart-line"}));
  if (series.line && series.dash) group.lastChild.setAttribute("stroke-dasharray", "5 4");
  if (series.shape !== "none") group.append(drawMark({...series, small: false}, 12, 8, 0));
  swatch.append(group);
  button.append(swatch, htmlNode("span", "", series.name));
  button.addEventListener("click", () => toggleSeries(chart, [series], !chart.hidden.get(series.name)));
  return button;
}

function toggleSeries(chart, members, hide) {
  for (const series of members) chart.hidden.set(series.name, hide);
  drawLegend(chart);
  drawChart(chart);
}

// --- pointer and keys -----------------------------------------------------------------------

function listenToChart(chart) {
  const stage = chart.stage;
  stage.addEventListener("pointermove", (event) => pointAt(chart, event));
  stage.addEventListener("pointerdown", (event) => pointAt(chart, event));
  stage.addEventListener("pointerleave", () => {
    if (!stage.contains(document.activeElement)) hideTip(chart);
  });
  stage.addEventListener("click", (event) => {
    const at = findNearest(chart, event);
    if (at >= 0) { rove(chart, at, true); pickPoint(chart); }
  });
  stage.addEventListener("focusin", (event) => {
    const at = chart.places.findIndex((place) => place.node === event.target);
    if (at >= 0) { rove(chart, at, false); showTip(chart, at); }
  });
  stage.addEventListener("focusout", () => hideTip(chart));
  stage.addEventListener("keydown", (event) => steer(chart, event));
}

function findNearest(chart, event) {
  if (!chart.svg) return -1;
  const box = chart.svg.getBoundingClientRect(), ratio = chart.svg.viewBox.baseVal.width / (box.width || 1);
  const x = (event.clientX - box.left) * ratio, y = (event.clientY - box.top) * ratio;
  let best = -1, least = REACH ** 2;
  chart.places.forEach((place, at) => {
    const far = (place.x - x) ** 2 + (place.y - y) ** 2;
    if (far <= least) { best = at; least = far; } // of equals the one drawn last, which lies on top
  });
  return best;
}

function pointAt(chart, event) {
  const at = findNearest(chart, event);
  if (at < 0) hideTip(chart);
  else showTip(chart, at);
  chart.stage.classList.toggle("chart-over", at >= 0 && Boolean(chart.spec.onPick));
}

// One point at a time is in the page's tab order; arrows go on from there.
function rove(chart, at, focus) {
  const place = chart.places[at];
  if (!place) return;
  if (chart.places[chart.at]) chart.places[chart.at].node.setAttribute("tabindex", "-1");
  chart.at = at;
  place.node.setAttribute("tabindex", "0");
  if (focus) place.node.focus({preventScroll: true});
}

function steer(chart, event) {
  const here = chart.places[chart.at];
  if (!here || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Enter" || event.key === " ") pickPoint(chart);
  else if (event.key === "Escape") hideTip(chart);
  else {
    const next = findNext(chart, here, event.key);
    if (next < 0) return;
    rove(chart, next, true);
  }
  event.preventDefault();
}

function findNext(chart, here, key) {
  const own = chart.places.filter((place) => place.series === here.series).sort((a, b) => a.x - b.x || b.y - a.y);
  const at = own.indexOf(here);
  const along = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: own.length - 1}[key];
  if (along !== undefined) return own[along] ? chart.places.indexOf(own[along]) : -1;
  if (key !== "ArrowUp" && key !== "ArrowDown") return -1;
  // Up and down go to the other series: its point nearest in x.
  const names = [...new Set(chart.places.map((place) => place.series))];
  const other = names[names.indexOf(here.series) + (key === "ArrowDown" ? 1 : -1)];
  const there = chart.places.filter((place) => place.series === other);
  there.sort((a, b) => Math.abs(a.x - here.x) - Math.abs(b.x - here.x));
  return there.length ? chart.places.indexOf(there[0]) : -1;
}

function pickPoint(chart) {
  const place = chart.places[chart.at];
  if (place && chart.spec.onPick) chart.spec.onPick(place.point, place.series);
}

function showTip(chart, at) {
  const place = chart.places[at], ratio = (chart.svg.getBoundingClientRect().width || 1) / chart.svg.viewBox.baseVal.width;
  if (chart.lit) chart.lit.classList.remove("chart-lit");
  chart.lit = place.node;
  chart.lit.classList.add("chart-lit");
  chart.tip.textContent = place.point.tip || "";
  chart.tip.hidden = !place.point.tip;
  chart.tip.style.left = "0px"; // measured where it has all the room it may have
  const wide = chart.tip.offsetWidth, tall = chart.tip.offsetHeight, x = place.x * ratio, y = place.y * ratio;
  chart.tip.style.left = `${Math.max(0, Math.min(x - wide / 2, chart.stage.clientWidth - wide))}px`;
  chart.tip.style.top = `${y - tall - 14 < -40 ? y + 14 : y - tall - 14}px`;
}

function hideTip(chart) {
  chart.tip.hidden = true;
  if (chart.lit) chart.lit.classList.remove("chart-lit");
  chart.lit = null;
}

return makeChart;
})();
