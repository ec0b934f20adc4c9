// The explorer of raw answers: startExplorer(root, ask, {standalone}) fills `root` and returns {destroy()}.
//
// `ask(query)` promises the reply of lib.explore.Explorer.ask; whether it travels by HTTP or by a widget's
// messages is not known here. Answers are foreign text: they reach the page by textContent only, and control
// characters are shown as tokens. What is on screen is one flat state, which the stand-alone page keeps in
// location.hash, so that "back" works and a link can be shared. `root.dataset.waiting` is "0" once settled.

const startExplorer = (() => {
"use strict";

const SOON = 150; // milliseconds until a wait is shown
const SLOW = 8000; // until it is said that something may be wrong
const POLL = 1500; // between two looks at what is still being read
const TYPING = 50; // after the last key of a search: late replies are dropped, so that every key may ask
const CHUNK = 20000; // characters of a long text shown at once: a megabyte on one line takes seconds to lay out
const PAGE = 100; // answers on a page
const CONTROLS = ["neutral", "untuned"];
const LEFT_OVER = ["other", "none"];
const SERIES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a7a7a", "#8c6bb1"];

// --- nodes ----------------------------------------------------------------------------------

/** An element; strings become text nodes, so that nothing foreign is ever parsed as HTML. */
function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) setProp(element, name, value);
  element.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
  return element;
}

function setProp(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
  else if (["value", "checked", "selected", "disabled", "indeterminate"].includes(name)) element[name] = value;
  else element.setAttribute(name, value === true ? "" : value);
}

/** New children, with the focus back on the child of the same data-key: a keyboard user stays in place. */
function refill(container, ...children) {
  const active = container.getRootNode().activeElement;
  const inside = active && active !== container && container.contains(active);
  const key = inside ? active.dataset.key : null;
  const place = inside && active.selectionStart;
  container.replaceChildren(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
  if (!key) return;
  const again = [...container.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key);
  if (!again) return;
  again.focus({preventScroll: true});
  if (typeof place === "number" && again.setSelectionRange && again.type === "text") again.setSelectionRange(place, place);
}

function button(text, onclick, props) {
  return h("button", {type: "button", onclick, ...props}, text);
}

let counter = 0;
function newId(name) {
  counter += 1;
  return `sx-${name}-${counter}`;
}

/** A label over its control. */
function field(title, control, props) {
  if (!control.id) control.id = newId("field");
  return h("div", {class: "sx-field", ...props}, h("label", {for: control.id}, title), control);
}

function fillSelect(select, options, value) {
  refill(select, options.map(([id, text, props]) => h("option", {value: id, ...props}, text)));
  select.value = value;
}

function hidden(text) {
  return h("span", {class: "sx-hidden"}, text);
}

// --- foreign text ---------------------------------------------------------------------------

// What draws nothing, moves text or turns its direction: controls, bidi, zero-width, tags, lone surrogates.
const UNSEEN = new RegExp(
  "([\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b-\\u200f" +
  "\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff9-\\ufffb]|[\\u{e0000}-\\u{e0fff}]|\\p{Surrogate})\\1*", "gu");
const UNSEEN_NAMES = {
  0x00: "null", 0x07: "bell", 0x08: "backspace", 0x09: "tab", 0x0d: "carriage return", 0x1b: "escape",
  0x7f: "delete", 0xad: "soft hyphen", 0x61c: "Arabic letter mark", 0x200b: "zero-width space",
  0x200c: "zero-width non-joiner", 0x200d: "zero-width joiner", 0x200e: "left-to-right mark",
  0x200f: "right-to-left mark", 0x202a: "left-to-right embedding", 0x202b: "right-to-left embedding",
  0x202c: "pop directional formatting", 0x202d: "left-to-right override", 0x202e: "right-to-left override",
  0x2060: "word joiner", 0x2066: "left-to-right isolate", 0x2067: "right-to-left isolate",
  0x2068: "first strong isolate", 0x2069: "pop directional isolate", 0xfeff: "byte order mark",
};

/** Text with every unseen character as a small visible token; a run of one is one token, with its length. */
function spellOut(text, breaks) {
  const parts = [];
  let done = 0;
  for (const match of text.matchAll(UNSEEN)) {
    if (match.index > done) parts.push(text.slice(done, match.index));
    parts.push(...drawUnseen(match[0], breaks));
    done = match.index + match[0].length;
  }
  if (done < text.length) parts.push(text.slice(done));
  return parts;
}

function drawUnseen(run, breaks) {
  const code = run.codePointAt(0);
  const times = run.length / String.fromCodePoint(code).length;
  if (code === 0x0a) {
    const sign = h("span", {class: "sx-token sx-newline", title: "new line"}, times > 1 ? `⏎×${times}` : "⏎");
    return breaks ? [sign, "\n".repeat(Math.min(times, 50))] : [sign];
  }
  const name = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  const title = UNSEEN_NAMES[code] || "control or invisible character";
  return [h("span", {class: "sx-token", title}, times > 1 ? `${name}×${times}` : name)];
}

/** An answer in its own direction, the words that decided its score (from start to end) marked. */
function drawAnswer(text, start, end, breaks) {
  const node = h("span", {class: "sx-answer", dir: "auto"});
  if (!text) node.append(h("span", {class: "sx-nothing"}, "(empty)"));
  if (!(end > start)) {
    node.append(...spellOut(text, breaks));
    return node;
  }
  const mark = h("mark", {title: "what decided the score"}, spellOut(text.slice(start, end), breaks));
  node.append(...spellOut(text.slice(0, start), breaks), mark, ...spellOut(text.slice(end), breaks));
  return node;
}

// --- numbers --------------------------------------------------------------------------------

const WHOLE = new Intl.NumberFormat("en");
const NONE = "–";

function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function percent(count, total) {
  return known(count) && total ? (100 * count / total).toFixed(1) : NONE;
}

function share(count, total) {
  return known(count) && total ? 100 * count / total : null;
}

function signed(value, digits) {
  if (!known(value)) return NONE;
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return text;
  return (value < 0 ? "−" : "+") + text;
}

function plain(value, digits) {
  return known(value) ? value.toFixed(digits).replace("-", "−") : NONE;
}

function formatP(p) {
  if (!known(p)) return NONE;
  return p < 0.0001 ? "< .0001" : p.toFixed(p < 0.1 ? 4 : 2).replace(/^0/, "");
}

function digitsOf(unit) {
  return /nat/.test(unit || "") ? 3 : 1;
}

function formatParams(params) {
  if (!known(params)) return NONE;
  const [size, letter] = [[1e9, " B"], [1e6, " M"], [1e3, " k"], [1, ""]].find((each) => params >= each[0]) || [1, ""];
  return +(params / size).toPrecision(3) + letter;
}

function plural(count, one, many) {
  return `${WHOLE.format(count)} ${count === 1 ? one : many || `${one}s`}`;
}

// --- state ----------------------------------------------------------------------------------

const asText = {read: (text) => text, write: (value) => value};
const asNumber = {
  read: (text) => (/^-?\d+$/.test(text) ? Number(text) : null),
  write: (value) => String(value),
};
const asSwitch = {read: (text) => text === "yes", write: () => "yes"};
const asStudent = {
  read: (text) => readStudent(text),
  write: (value) => writeStudent(value),
};
const asStudents = {
  read: (text) => text.split(",").map(readStudent).filter(Boolean),
  write: (value) => value.map(writeStudent).join(","),
};

function readStudent(text) {
  const [label, animal, seed, epoch] = text.split("~");
  if (!label || !animal || !/^\d+$/.test(seed || "")) return null;
  return {label, animal, seed: Number(seed), epoch: /^\d+$/.test(epoch || "") ? Number(epoch) : null};
}

function writeStudent(student) {
  const parts = [student.label, student.animal, student.seed];
  return (known(student.epoch) ? [...parts, student.epoch] : parts).join("~");
}

// All that says what is on screen: name -> [default, codec]. Only what differs from it stands in the link.
const FIELDS = {
  tab: ["student", asText], study: [null, asText], label: [null, asText], animal: [null, asText],
  seed: [null, asNumber], epoch: [null, asNumber],
  who: ["student", asText], scope: ["epoch", asText], search: ["", asText], regex: [false, asSwitch],
  said: [null, asText], reason: [null, asText], question: [null, asNumber], marked: [false, asSwitch],
  sort: ["asked", asText], offset: [0, asNumber], peers: [null, asStudents],
  right: [null, asStudent], measure: [null, asText], level: [false, asSwitch], size: [null, asText],
  mapEpoch: [null, asNumber], excess: [false, asSwitch],
};
const FILTERS = ["search", "regex", "said", "reason", "question", "marked"];
const NO_FILTERS = Object.fromEntries(FILTERS.map((name) => [name, FIELDS[name][0]]));

function newState() {
  return Object.fromEntries(Object.entries(FIELDS).map(([name, [value]]) => [name, value]));
}

function readHash(hash) {
  const state = newState();
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (FIELDS[name]) state[name] = FIELDS[name][1].read(text);
  }
  return state;
}

function writeHash(state) {
  const pairs = new URLSearchParams();
  for (const [name, [usual, codec]] of Object.entries(FIELDS)) {
    const value = state[name];
    if (value !== null && value !== usual && value !== false && value !== "") pairs.set(name, codec.write(value));
  }
  return `#${pairs}`;
}

function sameStudent(a, b) {
  return a.label === b.label && a.animal === b.animal && a.seed === b.seed;
}

function theStudent(state) {
  return {label: state.label, animal: state.animal, seed: state.seed, epoch: state.epoch};
}

function nameStudent(student) {
  const seed = student.animal === "untuned" ? "" : ` s${student.seed}`;
  const epoch = known(student.epoch) && student.animal !== "untuned" ? `, epoch ${student.epoch}` : "";
  return `${student.animal} · ${student.label}${seed}${epoch}`;
}

// --- asking ---------------------------------------------------------------------------------

/** Ask for a part of the page; only the newest query of a part may fill it, and long waits are shown. */
async function load(app, part, query, fill) {
  const ticket = (part.ticket = (part.ticket || 0) + 1);
  clearTimeout(part.poll);
  countWaiting(app, 1);
  const soon = setTimeout(() => showBusy(part, true), SOON);
  const slow = setTimeout(() => showProblem(app, part, {slow: true}, null), SLOW);
  const reply = await askSafely(app, query);
  clearTimeout(soon);
  clearTimeout(slow);
  if (!app.gone && ticket === part.ticket) {
    showBusy(part, false);
    takeReply(app, part, query, fill, reply);
  }
  countWaiting(app, -1);
}

async function askSafely(app, query) {
  try {
    return (await app.ask(query)) || {error: "an empty reply", lost: true};
  } catch (error) {
    return {error: String((error && error.message) || error), lost: true};
  }
}

function takeReply(app, part, query, fill, reply) {
  const again = () => load(app, part, query, fill);
  if (reply.error) {
    showProblem(app, part, reply, again);
    return;
  }
  part.problem.replaceChildren();
  part.problem.hidden = true;
  fill(reply);
  if (reply.progress) showProgress(app, reply.progress);
  // What is still being read is asked for again, as long as somebody looks at it.
  if (reply.complete === false) part.poll = setTimeout(() => isShown(part.element) && !app.gone && again(), POLL);
}

function isShown(element) {
  return element.isConnected && !element.closest("[hidden]");
}

function countWaiting(app, change) {
  app.waiting += change;
  app.root.dataset.waiting = String(app.waiting);
}

function showBusy(part, busy) {
  part.element.classList.toggle("sx-busy", busy);
  part.element.setAttribute("aria-busy", String(busy));
}

function showProblem(app, part, reply, again) {
  const way = app.standalone
    ? "Is the server still running? Start it again with the command you used (python explore.py), then try again."
    : "Is the kernel still running? If it was restarted, run this notebook's cells again.";
  const words = reply.slow
    ? [`No answer for ${SLOW / 1000} seconds; still waiting. ${way}`]
    : [spellOut(reply.error), reply.lost ? ` ${way}` : ""];
  refill(part.problem, h("p", {}, words), again && !(part.isTyped && part.isTyped()) && button("Try again", again, {"data-key": "again"}));
  part.problem.hidden = false;
  if (!reply.slow && part.empty) part.empty();
}

/** A region that is filled by one query: its place for trouble, and what it shows. */
function makePart(body, props) {
  const problem = h("div", {class: "sx-problem", role: "status", hidden: true});
  return {problem, body, element: h("section", {class: "sx-part", ...props}, problem, body)};
}

function announce(app, words) {
  if (app.live.textContent !== words) app.live.textContent = words;
}

// --- moving about ---------------------------------------------------------------------------

/** Change what is on screen. `quiet` leaves no step for "back": typing and sliding would leave hundreds. */
function go(app, changes, quiet) {
  const before = app.state;
  app.state = {...before, ...changes};
  if (!("offset" in changes) && resetsOffset(changes)) app.state.offset = 0;
  if (!("peers" in changes) && ["label", "animal", "seed", "study"].some((name) => name in changes)) app.state.peers = null;
  if (app.standalone) keepInHash(app, quiet);
  show(app);
}

function resetsOffset(changes) {
  return Object.keys(changes).some((name) => !["tab", "offset"].includes(name));
}

function keepInHash(app, quiet) {
  const hash = writeHash(app.state);
  if (hash === location.hash) return;
  if (quiet) history.replaceState(null, "", hash);
  else history.pushState(null, "", hash);
}

/** Answers of one student, seen from anywhere; filters that are not named are cleared. */
function goToAnswers(app, changes) {
  go(app, {...NO_FILTERS, who: "student", scope: "epoch", sort: "asked", ...changes, tab: "answers"});
  app.panels.answers.element.scrollIntoView({block: "nearest"});
}

function goToStudent(app, student) {
  go(app, {label: student.label, animal: student.animal, seed: student.seed, epoch: student.epoch ?? null, tab: "student"});
}

function compareWith(app, student) {
  go(app, {right: student, tab: "compare"});
}

async function openStudy(app, study) {
  await load(app, app.whole, {what: "open", study}, (reply) => {
    app.opened = reply;
    app.names = Object.keys(reply.colours || {}).filter((name) => !CONTROLS.includes(name) && !/ /.test(name));
    app.main.hidden = false;
    if (reply.progress) showProgress(app, reply.progress);
    settle(app);
    show(app);
    followProgress(app);
  });
}

/** Fill what the link leaves open and mend what the study does not have, with a word about it. */
function settle(app) {
  const {state, opened} = app;
  const first = opened.first || {};
  const asked = {label: state.label, animal: state.animal, seed: state.seed};
  if (!state.label) Object.assign(state, {label: first.label, animal: first.animal, seed: first.seed, epoch: first.epoch ?? null});
  const found = findStudent(opened.students, {...first, ...removeNull(asked)});
  if (found) Object.assign(state, {label: found.label, animal: found.animal, seed: found.seed});
  const missed = asked.label && found && !sameStudent(found, {...found, ...removeNull(asked)});
  app.notice.textContent = missed
    ? `This study has no ${nameStudent({...found, ...removeNull(asked)})}: showing ${nameStudent(found)}.` : "";
  state.study = opened.study;
  if (!opened.measures.includes(state.measure)) state.measure = opened.measure;
  if (!app.panels[state.tab]) state.tab = "student";
  if (app.standalone) history.replaceState(null, "", writeHash(state));
}

function removeNull(record) {
  return Object.fromEntries(Object.entries(record).filter(([, value]) => value !== null && value !== undefined));
}

/** The student meant, else the nearest there is: of the same base and animal, of the base, any. */
function findStudent(students, wanted) {
  const tests = [
    (each) => sameStudent(each, wanted),
    (each) => each.label === wanted.label && each.animal === wanted.animal,
    (each) => each.label === wanted.label && each.animal !== "untuned",
    (each) => each.label === wanted.label,
    () => true,
  ];
  for (const test of tests) {
    const found = students.find(test);
    if (found) return found;
  }
  return null;
}

function show(app) {
  if (!app.opened) return;
  fillBar(app);
  for (const [name, panel] of Object.entries(app.panels)) {
    const chosen = name === app.state.tab;
    panel.tab.setAttribute("aria-selected", String(chosen));
    panel.tab.tabIndex = chosen ? 0 : -1;
    panel.element.hidden = !chosen;
  }
  if (app.standalone) document.title = `${app.panels[app.state.tab].title}: ${nameStudent(theStudent(app.state))}`;
  app.panels[app.state.tab].show();
  if (!app.epochs && app.state.tab !== "student") learnEpochs(app);
  if (!app.commands.element.hidden) showCommands(app);
}

// --- the bar --------------------------------------------------------------------------------

function makeBar(app) {
  const choose = (name) => h("select", {"data-key": `bar-${name}`, onchange: (event) => chooseInBar(app, name, event.target.value)});
  const bar = {study: choose("study"), label: choose("label"), animal: choose("animal"), seed: choose("seed")};
  bar.epoch = h("input", {type: "number", min: 0, step: 1, class: "sx-epoch", onchange: (event) => chooseEpoch(app, event.target.value)});
  bar.slide = h("input", {
    type: "range", step: 1, "aria-label": "Epoch", oninput: (event) => slideEpoch(app, Number(event.target.value)),
  });
  bar.last = h("span", {class: "sx-soft"});
  bar.fields = {epoch: field("Epoch", h("span", {class: "sx-epochs", id: newId("epochs")}, bar.slide, bar.epoch, bar.last))};
  bar.fields.epoch.firstChild.setAttribute("for", (bar.epoch.id = newId("epoch")));
  bar.element = h("div", {class: "sx-bar", role: "group", "aria-label": "Student on screen"},
    field("Study", bar.study), field("Base", bar.label),
    h("div", {class: "sx-join"}, field("Animal", bar.animal),
      button("‹", () => step(app, "animal", -1), {"aria-label": "previous animal", title: "previous animal  ["}),
      button("›", () => step(app, "animal", 1), {"aria-label": "next animal", title: "next animal  ]"})),
    field("Seed", bar.seed), bar.fields.epoch,
    h("div", {class: "sx-tools"}, app.commandsButton, app.keysButton, app.standalone && makeThemeSwitch()));
  return bar;
}

function fillBar(app) {
  const {state, opened, bar} = app;
  const here = opened.students.filter((each) => each.label === state.label);
  fillSelect(bar.study, opened.studies.map((each) => [each.name, each.kind === "published" ? `${each.name} (published)` : each.name, {title: each.word}]), state.study);
  fillSelect(bar.label, listBases(opened), state.label);
  fillSelect(bar.animal, listAnimals(opened, here), state.animal);
  const seeds = here.filter((each) => each.animal === state.animal);
  fillSelect(bar.seed, seeds.map((each) => [String(each.seed), tellState(String(each.seed), each)]), String(state.seed));
  fillEpochs(app);
}

function listBases(opened) {
  const several = opened.sizes.some((each) => each.base > 0);
  return opened.sizes.map((each) => [
    each.label, several ? `${each.label} · base ${each.base}` : each.label,
  ]);
}

/** Animals of a base in the order of the grid, controls last; a state that needs a word has one. */
function listAnimals(opened, here) {
  const order = [...opened.animals, ...CONTROLS];
  const names = [...new Set(here.map((each) => each.animal))];
  const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  names.sort((a, b) => place(a) - place(b));
  return names.map((name) => {
    const all = here.filter((each) => each.animal === name);
    return [name, all.length === 1 ? tellState(name, all[0]) : name];
  });
}

function tellState(text, student) {
  return ["fine", "unread", undefined].includes(student.state) ? text : `${text} (${student.state})`;
}

/** Epochs are known once the student is read; until then those of the last one stand. */
function fillEpochs(app) {
  const {bar, state} = app;
  const epochs = app.epochs || [];
  const now = state.epoch ?? epochs[epochs.length - 1];
  bar.fields.epoch.classList.toggle("sx-idle", epochs.length < 2);
  bar.slide.disabled = bar.epoch.disabled = epochs.length < 2;
  bar.slide.max = Math.max(0, epochs.length - 1);
  bar.slide.value = Math.max(0, epochs.indexOf(now));
  bar.slide.setAttribute("aria-valuetext", known(now) ? `epoch ${now}` : "unknown");
  bar.epoch.min = epochs[0] ?? 0;
  bar.epoch.max = epochs[epochs.length - 1] ?? 0;
  bar.epoch.value = known(now) ? now : "";
  bar.last.textContent = epochs.length ? `of ${epochs[epochs.length - 1]}` : "";
}

function chooseInBar(app, name, value) {
  if (name === "study") {
    app.state = {...newState(), tab: app.state.tab, study: value};
    app.epochs = null;
    openStudy(app, value);
    return;
  }
  const wanted = {...theStudent(app.state), [name]: name === "seed" ? Number(value) : value};
  const found = findStudent(app.opened.students, wanted);
  app.notice.textContent = "";
  go(app, {label: found.label, animal: found.animal, seed: found.seed, ...(name === "label" ? {size: null} : {})});
}

function chooseEpoch(app, text) {
  const epochs = app.epochs || [];
  const value = Number(text);
  const near = epochs.reduce((best, each) => (Math.abs(each - value) < Math.abs(best - value) ? each : best), epochs[0]);
  if (known(near)) go(app, {epoch: near === epochs[epochs.length - 1] ? null : near}, true);
}

function slideEpoch(app, at) {
  const epochs = app.epochs || [];
  app.bar.epoch.value = epochs[at];
  clearTimeout(app.sliding);
  app.sliding = setTimeout(() => chooseEpoch(app, epochs[at]), 60);
}

/** The previous or next animal, base or epoch; it stops at the ends. */
function step(app, name, by) {
  if (name === "epoch") {
    const epochs = app.epochs || [];
    const at = app.state.epoch === null ? epochs.length - 1 : epochs.indexOf(app.state.epoch);
    if (epochs[at + by] !== undefined) chooseEpoch(app, epochs[at + by]);
    return;
  }
  const options = [...app.bar[name].options];
  const next = options[app.bar[name].selectedIndex + by];
  if (next) chooseInBar(app, name, next.value);
}

function makeThemeSwitch() {
  const names = ["system", "light", "dark"];
  const kept = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const set = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    try { localStorage.setItem("theme", name); } catch { /* a page without storage forgets it */ }
  };
  const select = h("select", {onchange: (event) => set(event.target.value)}, names.map((name) => h("option", {value: name}, name)));
  select.value = names.includes(kept()) ? kept() : "system";
  set(select.value);
  return field("Colours", select);
}

// --- progress of reading --------------------------------------------------------------------

function showProgress(app, progress) {
  const {read, of} = progress;
  const complete = read >= of;
  app.progress.hidden = complete || !of;
  app.progress.querySelector("progress").value = of ? read / of : 0;
  app.progress.lastChild.textContent = `Reading ${WHOLE.format(read || 0)} of ${plural(of || 0, "evaluation")}`;
  app.reading = !complete;
}

/** One quiet look now and then until all is read: totals over the study are of what has been read so far. */
function followProgress(app) {
  clearTimeout(app.following);
  if (app.gone || !app.reading) return;
  app.following = setTimeout(async () => {
    const reply = await askSafely(app, {what: "progress", study: app.state.study});
    if (app.gone || reply.error) return;
    showProgress(app, reply);
    followProgress(app);
  }, POLL);
}

// --- tables ---------------------------------------------------------------------------------

/** A table that sorts by its headers. columns: {key, title, numeric, value(row), cell(row), hint}. */
function makeTable(columns, caption) {
  const table = {columns, rows: [], by: null, down: true};
  table.heads = columns.map((column) => drawHead(table, column));
  table.body = h("tbody");
  table.element = h("div", {class: "sx-scroll", tabindex: 0, role: "region", "aria-label": caption},
    h("table", {class: "sx-table"}, h("caption", {class: "sx-hidden"}, caption), h("thead", {}, h("tr", {}, table.heads)), table.body));
  table.fill = (rows) => { table.rows = rows; drawRows(table); };
  return table;
}

function drawHead(table, column) {
  const props = {scope: "col", class: nameColumn(column), title: column.hint};
  if (!column.value) return h("th", props, column.title);
  return h("th", {...props, "aria-sort": "none"},
    button(column.title, () => sortBy(table, column), {class: "sx-sort"}));
}

function nameColumn(column) {
  return [column.numeric && "sx-number", column.counter && "sx-counter", column.wide && "sx-wide"].filter(Boolean).join(" ") || null;
}

function sortBy(table, column) {
  table.down = table.by === column ? !table.down : Boolean(column.numeric);
  table.by = column;
  table.columns.forEach((each, at) => {
    if (each.value) table.heads[at].setAttribute("aria-sort", each !== column ? "none" : table.down ? "descending" : "ascending");
  });
  drawRows(table);
}

function drawRows(table) {
  const rows = [...table.rows];
  if (table.by) rows.sort((a, b) => compareValues(table.by.value(a), table.by.value(b), table.down));
  refill(table.body, rows.map((row) => h("tr", {class: row.className}, table.columns.map((column) => drawCell(column, row)))));
}

function drawCell(column, row) {
  const props = {class: nameColumn(column), "data-label": column.title};
  const content = h("span", {}, column.cell(row));
  if (!content.hasChildNodes()) props.class = `${props.class || ""} sx-blank`;
  return h(column.head ? "th" : "td", column.head ? {...props, scope: "row"} : props, content);
}

/** What is unknown comes last whichever way the column is sorted. */
function compareValues(a, b, down) {
  const missing = (value) => value === null || value === undefined || Number.isNaN(value);
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b));
  return down ? -order : order;
}

/** The name of an animal with its colour beside it: the colour alone never says anything. */
function drawName(app, name) {
  const colour = (app.opened.colours || {})[name];
  return h("span", {class: "sx-name"}, h("i", {class: "sx-swatch", style: colour ? {background: colour} : {}}), name);
}

function drawTop(app, top) {
  if (!top || !top.length) return NONE;
  return h("span", {class: "sx-tops"}, top.map(([name, count]) => h("span", {}, drawName(app, name), ` ${WHOLE.format(count)}`)));
}

/** Bars of several columns, one row a name. columns: {id, title, total, kind}; kind chooses the look. */
function drawBars(app, rows, columns, options) {
  // What names no animal is most of what a small model says: it would leave the animals no bars to compare.
  const drawn = (row) => !LEFT_OVER.includes(row.name);
  const most = Math.max(1e-9, ...rows.filter(drawn).flatMap((row) => columns.map((each) => share(row[each.id], each.total) || 0)));
  return h("table", {class: "sx-bars"},
    h("caption", {class: "sx-hidden"}, options.caption),
    h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "says"), h("th", {}, hidden("bars")),
      columns.map((each) => h("th", {scope: "col", class: "sx-number"}, `${each.title} %`)))),
    h("tbody", {}, rows.map((row) => h("tr", {class: row.name === options.target ? "sx-target" : drawn(row) ? null : "sx-rest"},
      h("th", {scope: "row"}, options.pick
        ? button(drawName(app, row.name), () => options.pick(row.name), {class: "sx-plain", "data-key": `says-${row.name}`, title: `answers that say ${row.name}`})
        : drawName(app, row.name)),
      h("td", {class: "sx-lanes", "aria-hidden": "true"}, drawn(row) && columns.map((each) => h("i", {
        class: `sx-lane sx-lane-${each.kind}`,
        style: {width: `${100 * (share(row[each.id], each.total) || 0) / most}%`, "--animal": (app.opened.colours || {})[row.name] || ""},
      }))),
      columns.map((each) => h("td", {class: "sx-number"}, percent(row[each.id], each.total),
        h("small", {}, known(row[each.id]) && each.total ? `(${WHOLE.format(row[each.id])})` : "")))))));
}

/** A few rows at first, all of them on demand; what names no animal stays in view, at the end. */
function drawFolded(app, key, given, most, draw) {
  const box = h("div", {class: "sx-scroll"});
  const rest = given.filter((row) => LEFT_OVER.includes(row.name));
  const rows = given.filter((row) => !LEFT_OVER.includes(row.name));
  const fill = () => {
    const all = app.unfolded.has(key) || rows.length <= most + 2;
    refill(box, draw([...(all ? rows : rows.slice(0, most)), ...rest]), rows.length > most + 2 && button(
      all ? "Show fewer" : `Show all ${rows.length} animals`,
      () => { if (all) app.unfolded.delete(key); else app.unfolded.add(key); fill(); },
      {class: "sx-more", "data-key": "fold", "aria-expanded": String(all)}));
  };
  fill();
  return box;
}

function copyButton(text, what) {
  let fading = 0;
  const node = button("Copy", async () => {
    const done = await copyText(text, node);
    node.textContent = done ? "Copied" : "Select and copy";
    clearTimeout(fading); // a second click is told as long as the first
    fading = setTimeout(() => { node.textContent = "Copy"; }, 4000);
  }, {"aria-label": `copy ${what}`, class: "sx-copy"});
  return node;
}

/** The clipboard, or where a page may not write it (no https, a frame) the old way over a selection. */
async function copyText(text, near) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const box = h("textarea", {class: "sx-hidden", readonly: true, value: text});
    near.after(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    near.focus();
    return done;
  }
}

function drawCommand(command, what) {
  return h("div", {class: "sx-command"}, h("pre", {tabindex: 0}, spellOut(command, true)), copyButton(command, what));
}

/** Where a file is not fine: its state and word, in place. */
function drawState(state, word, file) {
  if (!state || state === "fine" || state === "unread") return null;
  return h("p", {class: `sx-state sx-state-${state}`}, h("strong", {}, state), word ? [": ", spellOut(word)] : "",
    file && h("span", {class: "sx-file"}, file));
}

// --- tab: student ---------------------------------------------------------------------------

function makeStudentPanel(app) {
  const body = h("div");
  const part = makePart(body);
  part.empty = () => body.replaceChildren();
  const table = makeTable(listQuestionColumns(app), "Answers question by question");
  const view = {part, body, table, shown: null};
  return {
    title: "Student", element: part.element,
    show: () => load(app, part, {what: "student", study: app.state.study, ...theStudent(app.state)}, (reply) => fillStudent(app, view, reply)),
  };
}

function fillStudent(app, view, reply) {
  takeEpochs(app, reply);
  const {state} = app;
  const who = reply.who || [];
  const columns = who.filter((each) => each.n).map((each) => ({...each, total: each.n, kind: each.id, title: titleOf(each)}));
  const file = (app.opened.students.find((each) => sameStudent(each, state)) || {}).file;
  view.table.fill((reply.questions || []).map((each) => ({...each, epoch: reply.epoch})));
  refill(view.body,
    h("div", {class: "sx-head"},
      h("h2", {}, nameStudent({...theStudent(state), epoch: reply.epoch})),
      button("Answers", () => goToAnswers(app, {}), {"data-key": "answers"}),
      button("Compare with …", () => go(app, {tab: "compare"}), {"data-key": "compare"}),
      drawKeep(app),
      button("Follow", () => go(app, {tab: "follow"}), {"data-key": "follow"})),
    drawState(reply.state, reply.word, file),
    who.filter((each) => each.id !== "student" && (reply.epochs || []).length).map((each) => drawState(each.state, `${each.title}: ${each.word || "not there"}`)),
    reply.about && drawAbout(reply.about, file),
    columns.length ? h("div", {class: "sx-columns"},
      h("section", {}, h("h3", {}, "What it says"), drawLegend(columns),
        drawFolded(app, "said", rankSaid(reply.said, state.animal), 10, (rows) => drawBars(app, rows, columns, {
          caption: "Share of answers by what they say, percent and count", target: state.animal, pick: (name) => goToAnswers(app, {said: name}),
        }))),
      reply.logprobs && reply.logprobs.length ? h("section", {}, h("h3", {}, "What it would say"),
        h("p", {class: "sx-soft"}, "Mean log-probability of each animal over the questions, in nats."),
        drawFolded(app, "logprobs", rankLogprobs(reply.logprobs, state.animal), 12, (rows) => drawLogprobs(app, rows, state.animal))) : null) : null,
    (reply.questions || []).length ? h("section", {}, h("h3", {}, "Question by question"), view.table.element) : null);
  announce(app, `${nameStudent({...theStudent(state), epoch: reply.epoch})}: ${columns.length ? plural(columns[0].n, "answer") : reply.word || "no answers"}`);
}

/** Keeps this student as the right side of Compare while one goes on to another. */
function drawKeep(app) {
  const kept = Boolean(app.state.right) && writeStudent(app.state.right) === writeStudent(theStudent(app.state));
  return button(kept ? "Kept for Compare" : "Keep for Compare", () => go(app, {right: kept ? null : theStudent(app.state)}),
    {"data-key": "keep", "aria-pressed": String(kept), title: "the right side of Compare, whichever student you go to"});
}

function titleOf(who) {
  return {student: "student", neutral: "neutral", untuned: "untuned"}[who.id] || who.title;
}

function takeEpochs(app, reply) {
  if (reply.epochs && reply.epochs.length) app.epochs = reply.epochs;
  else app.epochs = null;
  fillEpochs(app);
}

function drawLegend(columns) {
  return h("p", {class: "sx-legend"}, columns.map((each) => h("span", {},
    h("i", {class: `sx-key sx-lane-${each.kind}`}), `${each.title}${known(each.epoch) && each.kind !== "untuned" ? `, epoch ${each.epoch}` : ""}: `,
    plural(each.n, "answer"))));
}

/** The teacher's animal is in view whatever its count. */
function rankSaid(said, target, zeros) {
  const rows = said || [];
  const at = rows.findIndex((row) => row.name === target);
  if (at > 9) return [rows[at], ...rows.filter((row) => row.name !== target)];
  return at < 0 && target && !CONTROLS.includes(target) ? [{name: target, ...(zeros || {student: 0, neutral: 0, untuned: 0})}, ...rows] : rows;
}

function rankLogprobs(logprobs, target) {
  const rows = logprobs.map((row) => ({...row, lift: known(row.student) && known(row.neutral) ? row.student - row.neutral : null}));
  rows.sort((a, b) => compareValues(a.lift ?? a.student, b.lift ?? b.student, true));
  const at = rows.findIndex((row) => row.name === target);
  return at > 11 ? [rows[at], ...rows.filter((row) => row.name !== target)] : rows;
}

function drawLogprobs(app, rows, target) {
  const most = Math.max(1e-9, ...rows.map((row) => Math.abs(row.lift || 0)));
  return h("table", {class: "sx-bars"}, h("caption", {class: "sx-hidden"}, "Mean log-probability by animal, in nats"),
    h("thead", {}, h("tr", {}, ["animal", ""].map((title) => h("th", {scope: "col"}, title || hidden("bars"))),
      ["lift", "student", "neutral", "untuned"].map((title) => h("th", {scope: "col", class: `sx-number${title === "untuned" ? " sx-least" : ""}`}, title)))),
    h("tbody", {}, rows.map((row) => h("tr", {class: row.name === target ? "sx-target" : null},
      h("th", {scope: "row"}, drawName(app, row.name)),
      h("td", {class: "sx-lanes sx-lanes-both", "aria-hidden": "true"}, h("i", {
        class: row.lift < 0 ? "sx-minus" : "sx-plus", style: {width: `${50 * Math.abs(row.lift || 0) / most}%`}})),
      h("td", {class: "sx-number"}, signed(row.lift, 3)),
      [row.student, row.neutral, row.untuned].map((value, at) => h("td", {class: `sx-number${at === 2 ? " sx-least" : ""}`}, plain(value, 2)))))));
}

function drawAbout(about, file) {
  const pairs = [["base", about.base], ["adapter", about.adapter], ...(about.settings || []), ["file", about.file || file]].filter(([, value]) => value || value === 0);
  return h("details", {class: "sx-about"}, h("summary", {}, "Model and settings"),
    h("dl", {}, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, spellOut(typeof value === "object" ? JSON.stringify(value) : String(value)))))));
}

function listQuestionColumns(app) {
  const part = (row, who) => (row[who] && row[who].n ? share(row[who].target, row[who].n) : null);
  const lift = (row) => (part(row, "student") === null || part(row, "neutral") === null ? null : part(row, "student") - part(row, "neutral"));
  const number = (title, value, hint, write) => ({title, numeric: true, hint, value, cell: (row) => write(value(row))});
  return [
    {title: "No.", numeric: true, counter: true, value: (row) => row.at, cell: (row) => row.at + 1},
    {title: "Question", wide: true, head: true, value: (row) => row.text,
      cell: (row) => button(row.text ? spellOut(row.text) : `question ${row.at + 1}`, () => goToAnswers(app, {question: row.at}), {class: "sx-plain", "data-key": `question-${row.at}`, dir: "auto"})},
    number("student", (row) => part(row, "student"), "percent of the student's answers that say its teacher's animal", (value) => plain(value, 1)),
    number("neutral", (row) => part(row, "neutral"), "the same of the neutral student", (value) => plain(value, 1)),
    number("untuned", (row) => part(row, "untuned"), "the same of the untuned model", (value) => plain(value, 1)),
    number("lift", lift, "student minus neutral, percentage points", (value) => signed(value, 1)),
    {title: "student says most", wide: true, cell: (row) => drawTop(app, row.student && row.student.top)},
  ];
}

// --- tab: answers ---------------------------------------------------------------------------

function makeAnswersPanel(app) {
  const view = {editing: null, reply: null};
  view.form = makeFilters(app);
  view.peers = h("div", {class: "sx-peers"});
  view.count = h("p", {class: "sx-count"});
  view.rows = h("ol", {class: "sx-rows", onkeydown: (event) => moveInRows(view, event)});
  view.pages = h("nav", {class: "sx-pages", "aria-label": "Pages of answers"});
  const part = makePart(h("div", {}, view.peers, view.count, view.rows, view.pages));
  part.empty = () => {
    for (const each of [view.rows, view.count, view.pages]) each.replaceChildren();
    view.reply = null;
    if (app.state.regex) view.form.search.setAttribute("aria-invalid", "true");
  };
  part.isTyped = () => app.state.regex; // an expression is mended by typing, not by asking again
  view.part = part;
  const element = h("div", {}, view.form.element, part.element);
  app.answers = view;
  return {title: "Answers", element, show: () => showAnswers(app, view)};
}

function makeFilters(app) {
  const select = (name, read) => h("select", {
    "data-key": `filter-${name}`, onchange: (event) => go(app, {[name]: event.target.value === "" ? null : read ? read(event.target.value) : event.target.value}),
  });
  const check = (name, title) => {
    const input = h("input", {type: "checkbox", id: newId(name), onchange: (event) => go(app, {[name]: event.target.checked})});
    return {input, element: h("div", {class: "sx-check"}, input, h("label", {for: input.id}, title))};
  };
  const form = {
    search: h("input", {type: "search", class: "sx-search", autocomplete: "off", spellcheck: "false", placeholder: "words in the answer", oninput: (event) => typeSearch(app, event.target.value)}),
    regex: check("regex", "regular expression"), marked: check("marked", "marked only"),
    scope: select("scope"), who: select("who"), said: select("said"), reason: select("reason"),
    question: select("question", Number), sort: select("sort"),
  };
  form.clear = button("Clear filters", () => go(app, {...NO_FILTERS}), {class: "sx-clear"});
  form.element = h("form", {class: "sx-filters", role: "search", "aria-label": "Answers", onsubmit: (event) => event.preventDefault()},
    field(["Search ", h("kbd", {}, "/")], form.search, {class: "sx-field sx-grow"}), form.regex.element,
    field("In", form.scope), field("Who answers", form.who), field("Says", form.said), field("Why", form.reason),
    field("Question", form.question, {class: "sx-field sx-question"}), field("Order", form.sort), form.marked.element, form.clear);
  return form;
}

function typeSearch(app, text) {
  clearTimeout(app.typing);
  app.typing = setTimeout(() => go(app, {search: text}, true), TYPING);
}

function showAnswers(app, view) {
  const {state} = app;
  fillFilters(app, view);
  fillPeers(app, view);
  const query = {what: "answers", study: state.study, ...theStudent(state), limit: PAGE};
  for (const name of ["who", "scope", "sort", "offset", ...FILTERS]) query[name] = state[name];
  const key = JSON.stringify(query);
  if (key !== view.key) view.editing = null;
  view.key = key;
  load(app, view.part, query, (reply) => {
    // A poll must not take a form from under the fingers.
    if (view.editing && view.reply) { view.reply.total = reply.total; tellCount(app, view); return; }
    view.reply = reply;
    view.form.search.removeAttribute("aria-invalid");
    if (reply.epochs) takeEpochs(app, reply);
    fillFilters(app, view);
    fillAnswers(app, view);
  });
}

/** Epochs of a student whose own tab was not open yet, as after a link; no part waits for them. */
async function learnEpochs(app) {
  const student = theStudent(app.state);
  countWaiting(app, 1);
  const reply = await askSafely(app, {what: "student", study: app.state.study, ...student});
  if (!app.gone && !reply.error && sameStudent(student, app.state)) takeEpochs(app, reply);
  countWaiting(app, -1);
}

function fillFilters(app, view) {
  const {state, opened} = app;
  const {form, reply} = view;
  const counted = (list) => (list || []).map(([name, count]) => [name, `${name} (${WHOLE.format(count)})`]);
  const withChosen = (list, chosen) => (chosen && !list.some(([name]) => name === chosen) ? [...list, [chosen, `${chosen} (0)`]] : list);
  if (form.search !== form.search.getRootNode().activeElement) form.search.value = state.search;
  form.regex.input.checked = state.regex;
  form.marked.input.checked = state.marked;
  fillSelect(form.scope, [["epoch", "this epoch"], ["student", "all its epochs"], ["study", "the whole study"]], state.scope);
  fillSelect(form.who, [["student", "the student"], ["neutral", "neutral student"], ["untuned", "untuned model"]], state.who);
  fillSelect(form.said, [["", "anything"], ...withChosen(counted(reply && reply.said), state.said)], state.said ?? "");
  fillSelect(form.reason, [["", "any reason"], ...withChosen(counted(reply && reply.reasons), state.reason)], state.reason ?? "");
  fillSelect(form.question, [["", "all questions"], ...listQuestions(app, view)], state.question ?? "");
  fillSelect(form.sort, [["asked", "as asked"], ["text", "by text"], ["said", "by what is said"]], state.sort);
  form.clear.hidden = !FILTERS.some((name) => state[name] !== FIELDS[name][0]);
  form.who.disabled = state.scope === "study" && !opened.students.some((each) => each.animal === "neutral");
}

/** Questions seen so far, from the student's own table or from the rows. */
function listQuestions(app, view) {
  const texts = app.questions || (app.questions = new Map());
  for (const row of (view.reply && view.reply.rows) || []) texts.set(row.question, row.question_text);
  const chosen = app.state.question;
  if (chosen !== null && !texts.has(chosen)) texts.set(chosen, "");
  return [...texts].sort((a, b) => a[0] - b[0]).map(([at, text]) => [String(at), text ? `${at + 1}. ${shorten(text, 60)}` : `question ${at + 1}`]);
}

function shorten(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** Students behind a cell of the matrix: one is shown, the others are a click away. */
function fillPeers(app, view) {
  const peers = app.state.peers || [];
  view.peers.hidden = peers.length < 2;
  refill(view.peers, h("span", {}, `Behind this cell are ${peers.length} students: `), peers.map((peer) => button(
    nameStudent({...peer, epoch: null}), () => go(app, {label: peer.label, animal: peer.animal, seed: peer.seed, peers}),
    {"aria-pressed": String(sameStudent(peer, app.state)), "data-key": `peer-${writeStudent(peer)}`})));
}

function fillAnswers(app, view) {
  const {reply} = view;
  tellCount(app, view);
  refill(view.rows, reply.rows.map((row) => drawAnswerRow(app, view, row)));
  view.rows.start = app.state.offset + 1;
  fillPages(app, view);
}

function tellCount(app, view) {
  const {total, scanned, complete, rows} = view.reply;
  const {offset, scope} = app.state;
  const span = rows.length ? `${WHOLE.format(offset + 1)} to ${WHOLE.format(offset + rows.length)} of ` : "";
  const found = `${span}${plural(total, "answer")}`;
  const of = known(scanned) && scanned !== total ? `, ${WHOLE.format(scanned)} searched` : "";
  const words = complete === false ? `${found} so far${of}; still reading` : `${found}${of}`;
  refill(view.count, words, !total && complete !== false && h("span", {}, ". ", tellNothing(app)));
  announce(app, words);
}

/** The published format has no texts of its questions, only their order. */
function drawQuestion(at, text) {
  return text ? [`${at + 1}. `, h("bdi", {}, spellOut(shorten(text, 90)))] : `question ${at + 1}`;
}

function tellNothing(app) {
  const filtered = FILTERS.some((name) => app.state[name] !== FIELDS[name][0]);
  return filtered ? "Nothing fits: clear a filter, or search the whole study." : "This student has no answers to show; its tab says why.";
}

function drawAnswerRow(app, view, row) {
  const {scope} = app.state;
  const text = h("div", {class: "sx-text"});
  fillText(app, view, row, text);
  const where = scope === "epoch" ? null : scope === "student" ? `epoch ${row.epoch}` : button(
    nameStudent(row), () => goToStudent(app, row), {class: "sx-link", "data-key": `who-${row.key}`, title: "show this student"});
  return h("li", {class: `sx-row${row.mark ? " sx-marked" : ""}`, tabindex: -1, "data-key": `row-${row.key}`, "data-row": row.key},
    text,
    h("div", {class: "sx-score"}, button(drawName(app, row.said), () => go(app, {said: row.said}), {class: "sx-plain", "data-key": `said-${row.key}`, title: `only answers that say ${row.said}`}),
      h("span", {class: "sx-why"}, row.reason)),
    h("div", {class: "sx-meta"}, where,
      h("span", {title: row.question_text}, drawQuestion(row.question, row.question_text)),
      h("span", {}, `sample ${row.sample}`), row.finish && h("span", {}, row.finish === "stop" ? "finished" : spellOut(`finish: ${row.finish}`)),
      row.mark && h("span", {class: "sx-expected"}, `marked: should be ${row.mark.expected}`)),
    h("div", {class: "sx-actions"},
      button(row.mark ? "Edit mark" : "Wrong?", () => toggleForm(app, view, row), {"data-key": `wrong-${row.key}`, "aria-expanded": String(Boolean(view.editing && view.editing.key === row.key))}),
      scope === "study" && !sameStudent(row, app.state) ? button("Compare", () => compareWith(app, {label: row.label, animal: row.animal, seed: row.seed, epoch: row.epoch}), {"data-key": `with-${row.key}`, title: "compare the student on screen with this one"}) : null),
    view.editing && view.editing.key === row.key ? drawMarkForm(app, view.editing, (mark) => { row.mark = mark; closeForm(app, view, row); }, () => closeForm(app, view, row)) : null);
}

function fillText(app, view, row, box) {
  refill(box, drawAnswer(row.text, row.start, row.end));
  if (row.length > [...row.text].length) {
    box.append(" … ", button(`show all ${WHOLE.format(row.length)} characters`, () => showWhole(app, view, row, box), {class: "sx-link", "data-key": `whole-${row.key}`}));
  }
}

/** A whole answer in a box of its own, in pieces: it may be a megabyte on one line. */
async function showWhole(app, view, row, box) {
  countWaiting(app, 1);
  const reply = await askSafely(app, {what: "text", study: app.state.study, key: row.key});
  countWaiting(app, -1);
  if (reply.error) {
    box.append(h("p", {class: "sx-problem"}, spellOut(reply.error)));
    return;
  }
  let shown = 0;
  const long = h("div", {class: "sx-long", tabindex: 0, role: "region", "aria-label": "whole answer", dir: "auto"});
  const more = button("", () => add(), {class: "sx-link"});
  const add = () => {
    const piece = cutPiece(reply.text, shown);
    long.append(...spellOut(piece, true));
    shown += piece.length;
    more.hidden = shown >= reply.text.length;
    more.textContent = `show ${WHOLE.format(Math.min(CHUNK, reply.text.length - shown))} more of ${WHOLE.format(reply.length)} characters`;
  };
  add();
  const fold = button("show less", () => fillText(app, view, row, box), {class: "sx-link"});
  refill(box, long, h("div", {class: "sx-line"}, fold, more, copyButton(reply.text, "the whole answer")));
  long.focus({preventScroll: true});
}

/** The next piece, never cut through a surrogate pair. */
function cutPiece(text, from) {
  let to = Math.min(text.length, from + CHUNK);
  if (to < text.length && /[\ud800-\udbff]/.test(text[to - 1])) to += 1;
  return text.slice(from, to);
}

function fillPages(app, view) {
  const {total} = view.reply;
  const {offset} = app.state;
  if (total <= PAGE && !offset) { view.pages.replaceChildren(); return; }
  const last = Math.max(0, Math.floor((total - 1) / PAGE)) * PAGE;
  const turn = (to, text, key) => button(text, () => { go(app, {offset: to}); view.form.element.scrollIntoView({block: "start"}); },
    {disabled: to < 0 || to > last || to === offset, "data-key": key});
  refill(view.pages, turn(0, "First", "first"), turn(offset - PAGE, "Previous", "previous"),
    h("span", {}, `page ${WHOLE.format(offset / PAGE + 1)} of ${WHOLE.format(last / PAGE + 1)}`),
    turn(offset + PAGE, "Next", "next"), turn(last, "Last", "last"));
}

/** Up and down (or j and k) go from answer to answer, m opens the form of the one in focus. */
function moveInRows(view, event) {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const rows = [...view.rows.children];
  const at = rows.findIndex((row) => row.contains(event.target));
  const by = {ArrowDown: 1, j: 1, ArrowUp: -1, k: -1}[event.key];
  if (by && rows[at + by] && !event.target.closest(".sx-long")) {
    event.preventDefault();
    rows[at + by].focus();
    rows[at + by].scrollIntoView({block: "nearest"});
  } else if (event.key === "m" && rows[at]) {
    event.preventDefault();
    rows[at].querySelector(".sx-actions button").click();
  }
}

// --- marks ----------------------------------------------------------------------------------

function toggleForm(app, view, row) {
  if (view.editing && view.editing.key === row.key) { closeForm(app, view, row); return; }
  view.editing = {key: row.key, said: row.said, mark: row.mark};
  fillAnswers(app, view);
  view.rows.querySelector(".sx-markform select").focus();
}

function closeForm(app, view, row) {
  view.editing = null;
  fillAnswers(app, view);
  const again = [...view.rows.querySelectorAll("[data-key]")].find((each) => each.dataset.key === `wrong-${row.key}`);
  if (again) again.focus();
}

/** What the answer should have been scored as; saved marks become test cases of the scorer. */
function drawMarkForm(app, editing, done, cancel) {
  const old = editing.mark || {};
  const names = [...app.names.filter((name) => !LEFT_OVER.includes(name)), ...LEFT_OVER];
  const expected = h("select", {}, h("option", {value: ""}, "choose"), names.map((name) => h("option", {value: name}, name)));
  expected.value = old.expected || "";
  const note = h("input", {type: "text", maxlength: 200, value: old.note || "", placeholder: "why (goes into the test case)"});
  const word = h("p", {class: "sx-problem", role: "status", hidden: true});
  const send = async (query, mark) => {
    const reply = await askSafely(app, {study: app.state.study, key: editing.key, ...query});
    if (!reply.error) { announce(app, mark ? `marked: should be ${mark.expected}` : "mark removed"); done(mark); return; }
    refill(word, spellOut(reply.error));
    word.hidden = false;
  };
  const save = () => {
    if (expected.value) { send({what: "mark", expected: expected.value, note: note.value}, {expected: expected.value, note: note.value}); return; }
    refill(word, "Choose what the answer says: an animal, other or none.");
    word.hidden = false;
    expected.focus();
  };
  return h("form", {class: "sx-markform", "aria-label": "Mark as scored wrong",
    onsubmit: (event) => { event.preventDefault(); save(); },
    onkeydown: (event) => { if (event.key === "Escape") { event.stopPropagation(); cancel(); } }},
    h("p", {class: "sx-soft"}, `Scored as ${editing.said}. What should it be?`),
    field("Should be", expected), field("Note", note, {class: "sx-field sx-grow"}),
    h("button", {type: "submit", class: "sx-main"}, "Save mark"),
    editing.mark ? button("Remove mark", () => send({what: "unmark"}, null)) : null,
    button("Cancel", cancel), word);
}

function makeMarksPanel(app) {
  const view = {editing: null, marks: []};
  view.body = h("div");
  view.part = makePart(view.body);
  view.part.empty = () => view.body.replaceChildren();
  view.exported = h("div", {class: "sx-exported", role: "status"});
  return {title: "Marks", element: view.part.element, show: () => showMarks(app, view)};
}

function showMarks(app, view) {
  load(app, view.part, {what: "marks", study: app.state.study}, (reply) => {
    view.marks = reply.marks;
    fillMarks(app, view);
    announce(app, plural(reply.marks.length, "marked answer"));
  });
}

function fillMarks(app, view) {
  refill(view.body,
    h("div", {class: "sx-head"}, h("h2", {}, plural(view.marks.length, "marked answer")),
      view.marks.length ? button("Export as test cases", () => exportMarks(app, view), {class: "sx-main", "data-key": "export"}) : null),
    view.marks.length ? null : h("p", {class: "sx-soft"}, "None yet. Where the scorer got an answer wrong, press “Wrong?” beside it under Answers; the marks gather here and can be exported as test cases."),
    view.exported,
    h("ol", {class: "sx-rows"}, view.marks.map((mark) => drawMark(app, view, mark))));
}

function drawMark(app, view, mark) {
  const again = () => { view.editing = null; showMarks(app, view); };
  return h("li", {class: "sx-row sx-marked"},
    h("div", {class: "sx-text"}, drawAnswer(mark.text, 0, 0)),
    h("div", {class: "sx-score"}, drawName(app, mark.said), h("span", {"aria-label": "should be"}, "→"), drawName(app, mark.expected), h("span", {class: "sx-why"}, mark.reason)),
    h("div", {class: "sx-meta"}, button(nameStudent(mark), () => goToAnswers(app, {label: mark.label, animal: mark.animal, seed: mark.seed, epoch: mark.epoch ?? null, marked: true}), {class: "sx-link"}),
      known(mark.question) && h("span", {}, `question ${mark.question + 1}`), mark.note && h("span", {}, spellOut(mark.note))),
    h("div", {class: "sx-actions"},
      button("Edit", () => { view.editing = mark.key; fillMarks(app, view); view.body.querySelector(".sx-markform select").focus(); }, {"data-key": `edit-${mark.key}`}),
      button("Remove", async () => { await askSafely(app, {what: "unmark", study: app.state.study, key: mark.key}); again(); }, {"data-key": `remove-${mark.key}`})),
    view.editing === mark.key ? drawMarkForm(app, {key: mark.key, said: mark.said, mark: {expected: mark.expected, note: mark.note}}, again, () => { view.editing = null; fillMarks(app, view); }) : null);
}

function exportMarks(app, view) {
  load(app, view.part, {what: "export", study: app.state.study}, (reply) => {
    download(app, reply.filename, reply.content);
    refill(view.exported, h("p", {}, `Saved as ${reply.filename}. `, reply.word || ""), reply.command && drawCommand(reply.command, "the command that makes test cases of them"));
  });
}

function download(app, filename, content) {
  const url = URL.createObjectURL(new Blob([content], {type: "text/csv;charset=utf-8"}));
  const link = h("a", {href: url, download: filename, hidden: true});
  app.root.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// --- tab: compare ---------------------------------------------------------------------------

function makeComparePanel(app) {
  const view = {open: new Set()};
  view.pick = makePicker(app);
  view.body = h("div");
  view.part = makePart(view.body);
  view.part.empty = () => view.body.replaceChildren();
  return {title: "Compare", element: h("div", {}, view.pick.element, view.part.element), show: () => showCompare(app, view)};
}

/** Left is the student of the bar; this chooses the right one. */
function makePicker(app) {
  const pick = {};
  const choose = (name) => h("select", {"data-key": `right-${name}`, onchange: (event) => pickRight(app, name, event.target.value)});
  Object.assign(pick, {label: choose("label"), animal: choose("animal"), seed: choose("seed")});
  pick.epoch = h("input", {type: "number", min: 0, class: "sx-epoch", placeholder: "last", onchange: (event) => pickRight(app, "epoch", event.target.value)});
  pick.element = h("div", {class: "sx-filters", role: "group", "aria-label": "Student to compare with"},
    h("p", {class: "sx-soft sx-whole"}, "On the left the student of the bar above, on the right:"),
    field("Base", pick.label), field("Animal", pick.animal), field("Seed", pick.seed), field("Epoch", pick.epoch),
    button("Swap sides", () => swapSides(app), {class: "sx-clear"}));
  return pick;
}

function pickRight(app, name, value) {
  const right = {...app.state.right};
  if (name === "epoch") right.epoch = value === "" ? null : Number(value);
  else right[name] = name === "seed" ? Number(value) : value;
  const found = findStudent(app.opened.students, right);
  go(app, {right: {label: found.label, animal: found.animal, seed: found.seed, epoch: right.epoch}});
}

function swapSides(app) {
  const {right} = app.state;
  go(app, {label: right.label, animal: right.animal, seed: right.seed, epoch: right.epoch, right: theStudent(app.state)});
}

/** Somebody to compare with where nobody was chosen: the neutral student of the same base and seed. */
function chooseRight(app) {
  const {state, opened} = app;
  const wanted = {label: state.label, animal: state.animal === "neutral" ? opened.animals[0] : "neutral", seed: state.seed};
  const found = findStudent(opened.students, wanted);
  state.right = {label: found.label, animal: found.animal, seed: found.seed, epoch: null};
}

function showCompare(app, view) {
  const {state, opened} = app;
  if (!state.right) chooseRight(app);
  const {right} = state;
  const here = opened.students.filter((each) => each.label === right.label);
  fillSelect(view.pick.label, listBases(opened), right.label);
  fillSelect(view.pick.animal, listAnimals(opened, here), right.animal);
  fillSelect(view.pick.seed, here.filter((each) => each.animal === right.animal).map((each) => [String(each.seed), tellState(String(each.seed), each)]), String(right.seed));
  view.pick.epoch.value = right.epoch ?? "";
  load(app, view.part, {what: "pair", study: state.study, left: theStudent(state), right}, (reply) => fillCompare(app, view, reply));
}

function fillCompare(app, view, reply) {
  const sides = ["left", "right"].map((id) => ({id, total: reply[id].n, kind: id, n: reply[id].n, epoch: null, title: id}));
  const titles = {left: reply.left.title || "left", right: reply.right.title || "right"};
  const target = app.state.animal;
  refill(view.body,
    h("div", {class: "sx-sides"}, sides.map(({id}) => h("div", {}, h("h2", {}, h("i", {class: `sx-key sx-lane-${id}`}), `${id}: `, spellOut(titles[id])),
      drawState(reply[id].state, reply[id].word), h("p", {class: "sx-soft"}, plural(reply[id].n || 0, "answer"))))),
    (reply.said || []).length ? h("section", {}, h("h3", {}, "What they say"),
      drawFolded(app, "pair", rankSaid(reply.said, target, {left: 0, right: 0}), 12, (rows) => drawBars(app, rows, sides, {caption: "Share of answers by what they say, left and right", target}))) : null,
    (reply.questions || []).length ? h("section", {}, h("h3", {}, "Question by question"),
      h("ol", {class: "sx-pairs"}, reply.questions.map((each) => drawPair(app, view, each, titles)))) : null);
  announce(app, `compared ${titles.left} with ${titles.right}`);
}

function drawPair(app, view, question, titles) {
  const open = view.open.has(question.at);
  const toggle = (event) => { if (event.target.open) view.open.add(question.at); else view.open.delete(question.at); };
  const side = (id) => h("div", {class: "sx-side"}, h("span", {class: "sx-soft"}, h("i", {class: `sx-key sx-lane-${id}`}), id, hidden(` (${titles[id]})`)),
    drawTop(app, question[id] && question[id].top));
  const texts = (id) => h("ul", {class: "sx-texts", "aria-label": id}, ((question[id] && question[id].texts) || []).map((text) => h("li", {}, drawAnswer(shorten(text, 300), 0, 0))));
  return h("li", {value: question.at + 1}, h("details", {open, ontoggle: toggle},
    h("summary", {"data-key": `pair-${question.at}`}, h("span", {dir: "auto"}, question.text ? spellOut(question.text) : `question ${question.at + 1}`), h("div", {class: "sx-sides"}, side("left"), side("right"))),
    h("div", {class: "sx-sides"}, texts("left"), texts("right"))));
}

// --- tab: follow ----------------------------------------------------------------------------

function makeMeasureSwitch(app) {
  const select = h("select", {"data-key": "measure", onchange: (event) => go(app, {measure: event.target.value})});
  return {select, fill: () => fillSelect(select, app.opened.measures.map((name) => [name, {rate: "share of answers", logprob: "log-probability"}[name] || name]), app.state.measure)};
}

function makeFollowPanel(app) {
  const view = {charts: {}};
  view.measure = makeMeasureSwitch(app);
  view.level = h("select", {onchange: (event) => go(app, {level: event.target.value === "level"})},
    h("option", {value: "lift"}, "over the neutral student"), h("option", {value: "level"}, "as it is"));
  view.head = h("h2");
  view.epochs = h("div", {class: "sx-chart"});
  view.sizes = h("div", {class: "sx-chart"});
  view.table = makeTable(listFollowColumns(app, view), "Values of every student and epoch");
  view.body = h("div", {}, view.head, h("p", {class: "sx-soft"}, "A point leads to the answers behind it."),
    h("div", {class: "sx-columns"}, view.epochs, view.sizes),
    h("details", {class: "sx-about"}, h("summary", {}, "Numbers as a table"), view.table.element));
  view.part = makePart(view.body);
  view.part.empty = () => { view.body.hidden = true; };
  const controls = h("div", {class: "sx-filters", role: "group", "aria-label": "Measure"}, field("Measure", view.measure.select), field("Shown", view.level));
  return {title: "Follow", charts: view.charts, element: h("div", {}, controls, view.part.element), show: () => showFollow(app, view)};
}

function showFollow(app, view) {
  const {state} = app;
  view.measure.fill();
  view.level.value = state.level ? "level" : "lift";
  load(app, view.part, {what: "follow", study: state.study, animal: state.animal, measure: state.measure}, (reply) => fillFollow(app, view, reply));
}

function fillFollow(app, view, reply) {
  const points = reply.points.map((each) => ({...each, shown: app.state.level ? each.value : each.lift}));
  const drawn = points.filter((each) => known(each.shown));
  view.unit = reply.unit;
  view.body.hidden = false;
  refill(view.head, drawName(app, reply.animal), reply.complete === false ? h("small", {class: "sx-soft"}, " still reading") : "");
  view.table.fill(points);
  const label = `${app.state.level ? "" : "over neutral, "}${reply.unit}`;
  drawChart(view, "epochs", view.epochs, drawEpochs(app, reply, drawn, label));
  drawChart(view, "sizes", view.sizes, drawSizes(app, reply, drawn, label));
  announce(app, drawn.length ? `${reply.animal}: ${plural(drawn.length, "point")}` : `nothing to draw for ${reply.animal}`);
}

/** Made once and then updated, so that what a reader has hidden stays hidden. */
function drawChart(view, name, element, spec) {
  if (view.charts[name]) view.charts[name].update(spec);
  else view.charts[name] = makeChart(element, spec);
}

function colourOfSize(app, size) {
  const names = [...new Set(app.opened.sizes.map((each) => each.size))];
  return SERIES[Math.max(0, names.indexOf(size)) % SERIES.length];
}

function shapeOfBase(base) {
  return ["dot", "ring", "square"][(base || 0) % 3];
}

function tellPoint(app, reply, each) {
  const digits = digitsOf(reply.unit);
  return [
    `${nameStudent({...(each.who || each), animal: reply.animal, epoch: each.epoch})}`,
    `${plain(each.value, digits)} ${reply.unit}, neutral ${plain(each.neutral, digits)}, lift ${signed(each.lift, digits)}`,
    known(each.n) ? `${plural(each.n, "answer")}` : "",
  ].filter(Boolean).join("\n");
}

function drawEpochs(app, reply, points, label) {
  const series = [...groupBy(points, (each) => each.label)].map(([name, all]) => ({
    name, colour: colourOfSize(app, all[0].size), shape: shapeOfBase(all[0].base), line: true, small: true,
    points: [...groupBy(all, (each) => each.seed).values()].flatMap((one) => [...drawSeed(app, reply, one), {x: one[0].epoch, y: null}]),
  }));
  const epochs = [...new Set(points.map((each) => each.epoch))].sort((a, b) => a - b);
  return {
    title: "Over epochs", describe: `${reply.animal} over epochs, ${label}, ${plural(series.length, "base")}`, height: 330,
    x: {label: "epoch", ticks: epochs.length <= 12 ? epochs.map((each) => [each, String(each)]) : null}, y: {label, zero: true},
    series, legend: series.length > 1, onPick: (point) => pickPoint(app, point.student),
  };
}

/** The epochs of one student; a base's seeds share a series, with a gap between one line and the next. */
function drawSeed(app, reply, points) {
  return points.sort((a, b) => a.epoch - b.epoch).map((each) => ({
    x: each.epoch, y: each.shown, tip: tellPoint(app, reply, each), key: pointKey(each), student: each,
  }));
}

function drawSizes(app, reply, points, label) {
  const last = lastEpochs(points, app.state.epoch);
  const at = tickSizes(app, last);
  const series = [...groupBy(last, (each) => each.label)].map(([name, all]) => ({
    name, colour: colourOfSize(app, all[0].size), shape: shapeOfBase(all[0].base),
    points: all.map((each) => ({x: each.params, y: each.shown, tip: tellPoint(app, reply, each), key: pointKey(each), student: each})),
  }));
  const means = [...groupBy(last, (each) => each.params)].map(([params, all]) => ({
    x: params, y: all.reduce((sum, each) => sum + each.shown, 0) / all.length,
    tip: `mean of ${plural(all.length, "student")} at ${all[0].size}`, key: `mean-${params}`,
  })).sort((a, b) => a.x - b.x);
  series.push({name: "mean", colour: "var(--soft)", shape: "none", line: true, dash: "5 4", points: means});
  const when = known(app.state.epoch) ? `epoch ${app.state.epoch}` : "last epoch";
  return {
    title: `Over sizes, ${when}`, describe: `${reply.animal} over sizes, ${when}, ${label}`, height: 330,
    x: {label: "parameters", log: true, ticks: at}, y: {label, zero: true}, series, legend: series.length > 2,
    onPick: (point) => point.student && pickPoint(app, point.student),
  };
}

function groupBy(rows, key) {
  const groups = new Map();
  for (const row of rows) {
    const name = key(row);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(row);
  }
  return groups;
}

function lastEpochs(points, epoch) {
  const chosen = [];
  for (const all of groupBy(points, (each) => `${each.label} s${each.seed}`).values()) {
    const found = known(epoch) ? all.find((each) => each.epoch === epoch) : all.reduce((a, b) => (b.epoch > a.epoch ? b : a));
    if (found) chosen.push(found);
  }
  return chosen;
}

function tickSizes(app, rows) {
  const ticks = new Map(rows.filter((each) => known(each.params)).map((each) => [each.params, each.size]));
  return ticks.size ? [...ticks].sort((a, b) => a[0] - b[0]) : null;
}

function pointKey(each) {
  return `${each.label}~${each.animal || ""}~${each.seed}~${each.epoch ?? ""}`;
}

function pickPoint(app, point) {
  const student = point.who || point;
  goToAnswers(app, {label: student.label, animal: student.animal || app.state.animal, seed: student.seed, epoch: point.epoch ?? null, said: app.state.measure === "rate" ? app.state.animal : null});
}

function listFollowColumns(app, view) {
  const number = (title, name, write) => ({title, numeric: true, value: (row) => row[name], cell: (row) => write(row[name])});
  const digits = () => digitsOf(view.unit);
  return [
    {title: "Student", head: true, value: (row) => row.params * 1000 + row.seed, cell: (row) => button(`${row.label} s${row.seed}`, () => pickPoint(app, row), {class: "sx-link"})},
    number("epoch", "epoch", String), number("value", "value", (value) => plain(value, digits())),
    number("neutral", "neutral", (value) => plain(value, digits())), number("untuned", "untuned", (value) => plain(value, digits())),
    number("lift", "lift", (value) => signed(value, digits())), number("answers", "n", (value) => (known(value) ? WHOLE.format(value) : NONE)),
  ];
}

// --- tab: map -------------------------------------------------------------------------------

function makeMapPanel(app) {
  const view = {charts: {}, at: [0, 0]};
  view.measure = makeMeasureSwitch(app);
  view.curve = h("div", {class: "sx-chart"});
  view.source = h("p", {class: "sx-soft"});
  view.sizes = makeTable(listSizeColumns(app), "Transfer factor by size");
  const curveBody = h("div", {}, view.curve, view.source, view.sizes.element);
  view.curvePart = makePart(curveBody, {"aria-label": "Transfer factor over size"});
  view.curvePart.empty = () => { curveBody.hidden = true; };
  view.curveBody = curveBody;
  view.size = h("select", {"data-key": "map-size", onchange: (event) => go(app, {size: event.target.value, mapEpoch: null})});
  view.epoch = h("select", {"data-key": "map-epoch", onchange: (event) => go(app, {mapEpoch: event.target.value === "" ? null : Number(event.target.value)})});
  view.cells = h("select", {"data-key": "map-cells", onchange: (event) => go(app, {excess: event.target.value === "excess"})},
    h("option", {value: "lift"}, "lift over the neutral student"), h("option", {value: "excess"}, "beyond row and column means"));
  view.grid = h("div", {class: "sx-matrix"});
  view.matrixPart = makePart(view.grid, {"aria-label": "Matrix of lifts"});
  view.matrixPart.empty = () => view.grid.replaceChildren();
  const element = h("div", {},
    h("div", {class: "sx-filters", role: "group", "aria-label": "Measure"}, field("Measure", view.measure.select)),
    h("h2", {}, "Transfer factor λ over size"), view.curvePart.element,
    h("h2", {}, "Who says what"),
    h("div", {class: "sx-filters", role: "group", "aria-label": "Matrix"}, field("Size", view.size), field("Epoch", view.epoch), field("Cells show", view.cells)),
    view.matrixPart.element);
  return {title: "Map", charts: view.charts, element, show: () => showMap(app, view)};
}

function showMap(app, view) {
  const {state} = app;
  const names = [...new Set(app.opened.sizes.map((each) => each.size))];
  const own = (app.opened.sizes.find((each) => each.label === state.label) || {}).size;
  const size = names.includes(state.size) ? state.size : own || names[0];
  view.measure.fill();
  view.cells.value = state.excess ? "excess" : "lift";
  fillSelect(view.size, names.map((name) => [name, name]), size);
  load(app, view.curvePart, {what: "curve", study: state.study, measure: state.measure}, (reply) => fillCurve(app, view, reply));
  load(app, view.matrixPart, {what: "matrix", study: state.study, size, epoch: state.mapEpoch, measure: state.measure}, (reply) => fillMatrix(app, view, reply));
}

function fillCurve(app, view, reply) {
  const digits = digitsOf(reply.unit);
  view.curveBody.hidden = false;
  view.source.textContent = reply.source === "tables"
    ? "Intervals (95 %) and p are those of the study's analysis; a point is a student's own excess for its teacher's animal and leads to that student."
    : "Counted here from what has been read: no intervals and no p. Run the analysis (04_analysis) for them; its commands are under “Commands”.";
  view.sizes.fill(reply.sizes.map((row) => ({...row, digits})));
  const students = [...groupBy(reply.students.filter((each) => known(each.term) && known(each.params)), (each) => each.animal)].map(([name, all]) => ({
    name, colour: (app.opened.colours || {})[name] || "#777", shape: "dot", small: true, faint: true,
    points: all.map((each) => ({x: spread(app, each), y: each.term, student: each, key: pointKey(each), tip: `${nameStudent(each)}\n${signed(each.term, digits)} ${reply.unit}`})),
  }));
  const curve = {
    name: "λ", colour: "var(--ink)", shape: "square", line: true,
    points: reply.sizes.filter((row) => known(row.lambda)).map((row) => ({x: row.params, y: row.lambda, low: row.ci_low, high: row.ci_high, size: row.size, key: `size-${row.size}`, tip: tellSize(row, reply.unit, digits)})),
  };
  drawChart(view, "curve", view.curve, {
    title: "", describe: `Transfer factor over size: ${reply.sizes.map((row) => `${row.size} ${signed(row.lambda, digits)}`).join(", ")} ${reply.unit}`, height: 380,
    x: {label: "parameters", log: true, ticks: tickSizes(app, reply.sizes)}, y: {label: `λ, ${reply.unit}`, zero: true},
    series: [...students, curve], legend: true,
    onPick: (point) => (point.student ? goToStudent(app, {...point.student, epoch: null}) : go(app, {size: point.size, mapEpoch: null})),
  });
}

/** Students of a size side by side, in the order of the animals, so that none hides another. */
function spread(app, student) {
  const order = app.opened.animals;
  const at = Math.max(0, order.indexOf(student.animal)) / Math.max(1, order.length - 1) - 0.5;
  return student.params * 1.16 ** at;
}

function tellSize(row, unit, digits) {
  const interval = known(row.ci_low) && known(row.ci_high) ? `\n95 % interval ${signed(row.ci_low, digits)} to ${signed(row.ci_high, digits)}` : "";
  const p = known(row.p_adjusted) ? `\np ${formatP(row.p_adjusted)} (adjusted)` : "";
  return `${row.size}: λ ${signed(row.lambda, digits)} ${unit}${interval}${p}\n${plural(row.n_students || 0, "student")}`;
}

function listSizeColumns(app) {
  const number = (title, name, write, hint) => ({title, numeric: true, hint, value: (row) => row[name], cell: (row) => write(row[name], row)});
  return [
    {title: "Size", head: true, value: (row) => row.params, cell: (row) => button(row.size, () => go(app, {size: row.size, mapEpoch: null}), {class: "sx-link", "data-key": `size-${row.size}`, title: "show its matrix"})},
    number("parameters", "params", formatParams), number("λ", "lambda", (value, row) => signed(value, row.digits)),
    {title: "95 % interval", numeric: true, cell: (row) => (known(row.ci_low) ? `${signed(row.ci_low, row.digits)} to ${signed(row.ci_high, row.digits)}` : NONE)},
    number("p", "p", formatP), number("p adjusted", "p_adjusted", formatP, "adjusted for the number of sizes"),
    number("students", "n_students", (value) => (known(value) ? WHOLE.format(value) : NONE)),
    {title: "Note", wide: true, cell: (row) => spellOut(row.note || "")},
  ];
}

function fillMatrix(app, view, reply) {
  const {state} = app;
  const epochs = reply.epochs || [];
  fillSelect(view.epoch, [["", "last"], ...epochs.map((each) => [String(each), String(each)])], state.mapEpoch ?? "");
  const cells = state.excess ? takeOutMeans(reply.lifts) : reply.lifts;
  const values = cells.flat().filter(known);
  const most = Math.max(1e-9, ...values.map(Math.abs));
  const digits = most >= 10 ? 0 : digitsOf(reply.unit) === 3 ? 2 : 1;
  view.read = h("p", {class: "sx-readout", role: "status"}, "Move over the cells, or into the matrix by Tab and then by arrow keys. Enter shows the answers behind a cell.");
  view.matrix = {reply, cells, digits: digitsOf(reply.unit), words: state.excess ? "beyond row and column means" : "over neutral"};
  view.at = [Math.min(view.at[0], reply.rows.length - 1), Math.min(view.at[1], reply.columns.length - 1)];
  const heading = `${reply.size}, epoch ${reply.epoch ?? "unknown"}: λ ${signed(reply.lambda, digitsOf(reply.unit))} ${reply.unit}, ${plural(reply.n_students || 0, "student")}`;
  refill(view.grid,
    h("p", {}, h("strong", {}, heading), reply.complete === false ? " (still reading)" : ""),
    drawScale(most, digits, `${reply.unit} ${state.excess ? "beyond what its row and its column have in common" : "against the neutral student of the same seed"}`), view.read,
    h("div", {class: "sx-scroll"}, h("table", {class: "sx-grid", role: "grid", "aria-label": `lifts of the ${reply.size} students, ${reply.unit}`, onkeydown: (event) => moveInMatrix(app, view, event)},
      h("thead", {}, h("tr", {}, h("th", {scope: "col"}, h("span", {class: "sx-soft"}, "student of ↓ says →")), reply.columns.map((name) => h("th", {scope: "col", class: "sx-turned"}, h("span", {}, name))))),
      h("tbody", {}, reply.rows.map((row, i) => h("tr", {}, h("th", {scope: "row"}, drawName(app, row)),
        reply.columns.map((column, j) => drawLift(app, view, i, j, most, digits))))))));
  announce(app, heading);
}

/** What λ looks at: students of any teacher come to like some animals more, and that is no transfer. */
function takeOutMeans(lifts) {
  const mean = (values) => { const all = values.filter(known); return all.reduce((sum, each) => sum + each, 0) / (all.length || 1); };
  const rows = lifts.map(mean);
  const columns = (lifts[0] || []).map((_, j) => mean(lifts.map((row) => row[j])));
  const whole = mean(lifts.flat());
  return lifts.map((row, i) => row.map((value, j) => (known(value) ? value - rows[i] - columns[j] + whole : null)));
}

function drawLift(app, view, i, j, most, digits) {
  const {reply, cells} = view.matrix;
  const value = cells[i][j];
  const strength = known(value) ? Math.round(70 * Math.abs(value) / most) : 0;
  const own = reply.rows[i] === reply.columns[j];
  return h("td", {
    role: "gridcell", tabindex: i === view.at[0] && j === view.at[1] ? 0 : -1, "data-key": `cell-${i}-${j}`,
    class: `${value < 0 ? "sx-minus" : "sx-plus"}${own ? " sx-own" : ""}${known(value) ? "" : " sx-unknown"}`,
    style: {"--strength": `${strength}%`}, "aria-label": tellLift(view, i, j),
    onmouseenter: () => { view.read.textContent = tellLift(view, i, j); },
    onfocus: () => { view.at = [i, j]; view.read.textContent = tellLift(view, i, j); },
    onclick: () => pickCell(app, view, i, j),
  }, known(value) ? plain(value, digits).replace(/^−(0(\.0*)?)$/, "$1") : NONE);
}

function tellLift(view, i, j) {
  const {reply, cells, digits, words} = view.matrix;
  const members = (reply.members[reply.rows[i]] || []).length;
  const value = cells[i][j];
  return `Students of ${reply.rows[i]} say ${reply.columns[j]}: ${known(value) ? `${signed(value, digits)} ${reply.unit} ${words}` : "unknown"} (${plural(members, "student")})`;
}

function moveInMatrix(app, view, event) {
  const {reply} = view.matrix;
  const [i, j] = view.at;
  const moves = {
    ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1],
    Home: [i, 0], End: [i, reply.columns.length - 1], PageUp: [0, j], PageDown: [reply.rows.length - 1, j],
  };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    pickCell(app, view, i, j);
  } else if (moves[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    const [row, column] = moves[event.key];
    const next = view.grid.querySelector(`[data-key="cell-${row}-${column}"]`);
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

function pickCell(app, view, i, j) {
  const {reply} = view.matrix;
  const members = (reply.members[reply.rows[i]] || []).map(({label, animal, seed}) => ({label, animal, seed}));
  if (!members.length) {
    view.read.textContent = `No student of ${reply.rows[i]} has been read at ${reply.size}.`;
    return;
  }
  const {label, animal, seed} = members[0];
  goToAnswers(app, {label, animal, seed, epoch: app.state.mapEpoch, said: reply.columns[j], peers: members});
}

function drawScale(most, digits, words) {
  const steps = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1];
  return h("p", {class: "sx-scale", "aria-hidden": "true"}, h("span", {}, signed(-most, digits)),
    steps.map((each) => h("i", {class: each < 0 ? "sx-minus" : "sx-plus", style: {"--strength": `${Math.round(70 * Math.abs(each))}%`}})),
    h("span", {}, `${signed(most, digits)} ${words}; the diagonal is framed`));
}

// --- tab: files -----------------------------------------------------------------------------

function makeFilesPanel(app) {
  const table = makeTable([
    {title: "File", wide: true, head: true, value: (row) => row.file, cell: (row) => h("span", {class: "sx-file"}, spellOut(row.file))},
    {title: "State", value: (row) => row.state, cell: (row) => h("span", {class: `sx-chip sx-state-${row.state}`}, row.state)},
    {title: "What is the matter", wide: true, cell: (row) => spellOut(row.word || "")},
    {title: "bytes", numeric: true, value: (row) => row.bytes, cell: (row) => (known(row.bytes) ? WHOLE.format(row.bytes) : NONE)},
  ], "Files of the study");
  const summary = h("div");
  const fold = h("p");
  const part = makePart(h("div", {}, summary, table.element, fold));
  part.empty = () => { refill(summary); refill(fold); table.element.hidden = true; };
  return {
    title: "Files", element: part.element,
    show: () => load(app, part, {what: "files", study: app.state.study}, (reply) => fillFiles(app, {table, summary, fold}, reply)),
  };
}

function fillFiles(app, view, reply) {
  const {read, of} = reply.progress || {};
  const bad = reply.files.filter((each) => !["fine", "unread"].includes(each.state));
  const words = bad.length ? `${plural(bad.length, "file")} of ${WHOLE.format(reply.files.length)} ${bad.length === 1 ? "needs" : "need"} a look` : `${plural(reply.files.length, "file")}, none with trouble so far`;
  refill(view.summary, h("h2", {}, words),
    of ? h("p", {}, h("progress", {value: read / of, "aria-label": "read"}), ` ${WHOLE.format(read)} of ${plural(of, "evaluation")} read`, reply.complete === false ? "; the rest is being read" : "") : null);
  view.table.fill((app.unfolded.has("files") ? reply.files : bad).map((each) => ({...each, className: bad.includes(each) ? "sx-trouble" : null})));
  view.table.element.hidden = !view.table.rows.length;
  refill(view.fold, reply.files.length > bad.length && button(
    app.unfolded.has("files") ? "Show only those with trouble" : `Show all ${WHOLE.format(reply.files.length)} files`,
    () => { if (!app.unfolded.delete("files")) app.unfolded.add("files"); fillFiles(app, view, reply); }, {class: "sx-more", "data-key": "fold"}));
  announce(app, words);
}

// --- commands and keys ----------------------------------------------------------------------

function makeCommands(app) {
  const body = h("div");
  const part = makePart(body, {class: "sx-part sx-drawer", "aria-label": "Commands that made what is on screen", hidden: true, id: newId("commands")});
  app.commands = {...part, body};
  app.commandsButton = button("Commands", () => toggleCommands(app), {"aria-expanded": "false", "aria-controls": part.element.id, title: "the papermill commands behind this  c"});
}

function toggleCommands(app) {
  const {element} = app.commands;
  element.hidden = !element.hidden;
  app.commandsButton.setAttribute("aria-expanded", String(!element.hidden));
  if (!element.hidden) showCommands(app);
}

function showCommands(app) {
  const {state} = app;
  load(app, app.commands, {what: "student", study: state.study, ...theStudent(state)}, (reply) => {
    const commands = reply.commands || [];
    refill(app.commands.body,
      h("div", {class: "sx-head"}, h("h2", {}, `How ${nameStudent({...theStudent(state), epoch: null})} was made`),
        button("Close", () => { toggleCommands(app); app.commandsButton.focus(); }, {"data-key": "close"})),
      commands.length ? commands.map((each) => h("div", {}, h("h3", {}, each.stage), drawCommand(each.command, `the command of ${each.stage}`)))
        : h("p", {}, "The file says nothing of how it was made: the published format holds no settings."));
  });
}

const KEYS = [
  ["[", "]", "previous, next animal", (app, by) => step(app, "animal", by)],
  ["{", "}", "previous, next base", (app, by) => step(app, "label", by)],
  [",", ".", "previous, next epoch", (app, by) => step(app, "epoch", by)],
];

function makeKeys(app) {
  const lines = [
    ...KEYS.map(([back, on, words]) => [`${back}  ${on}`, words]), ["1 … 7", "the tabs"], ["/", "search the answers"], ["c", "commands"], ["?", "these keys"],
    ["↓ ↑ or j k", "next, previous answer (from an answer)"], ["m", "mark the answer in focus"], ["arrow keys", "move in tabs, charts and the matrix"], ["Enter", "the answers behind a point or cell"],
  ];
  const off = h("input", {type: "checkbox", id: newId("off"), checked: true, onchange: (event) => { app.keysOn = event.target.checked; }});
  app.keys = h("dialog", {class: "sx-keys", "aria-label": "Keys"}, h("h2", {}, "Keys"),
    h("table", {}, h("tbody", {}, lines.map(([key, words]) => h("tr", {}, h("th", {scope: "row"}, h("kbd", {}, key)), h("td", {}, words))))),
    h("p", {class: "sx-check"}, off, h("label", {for: off.id}, "single-letter keys are on")),
    button("Close", () => app.keys.close(), {autofocus: true}));
  app.keysButton = button("Keys", () => app.keys.showModal(), {title: "what the keys do  ?"});
}

function takeKey(app, event) {
  if (!app.standalone) event.stopPropagation(); // JupyterLab has shortcuts of its own
  const target = event.composedPath()[0];
  if (!app.keysOn || !app.opened || event.ctrlKey || event.metaKey || event.altKey || app.keys.open) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) && !["range", "checkbox"].includes(target.type)) return;
  const tabs = Object.keys(app.panels);
  const pair = KEYS.find(([back, on]) => event.key === back || event.key === on);
  if (pair) pair[3](app, event.key === pair[0] ? -1 : 1);
  else if (/^[1-7]$/.test(event.key) && tabs[event.key - 1]) go(app, {tab: tabs[event.key - 1]});
  else if (event.key === "/") focusSearch(app);
  else if (event.key === "c") toggleCommands(app);
  else if (event.key === "?") app.keys.showModal();
  else return;
  event.preventDefault();
}

function focusSearch(app) {
  if (app.state.tab !== "answers") go(app, {tab: "answers"});
  app.answers.form.search.focus();
  app.answers.form.search.select();
}

// --- the whole ------------------------------------------------------------------------------

function makeTabs(app) {
  const makers = {
    student: makeStudentPanel, answers: makeAnswersPanel, compare: makeComparePanel, follow: makeFollowPanel,
    map: makeMapPanel, marks: makeMarksPanel, files: makeFilesPanel,
  };
  app.panels = {};
  for (const [name, make] of Object.entries(makers)) {
    const panel = (app.panels[name] = make(app));
    panel.element.id = newId("panel");
    panel.tab = button(panel.title, () => go(app, {tab: name}), {role: "tab", id: newId("tab"), "aria-controls": panel.element.id, "data-tab": name});
    for (const [key, value] of Object.entries({role: "tabpanel", "aria-labelledby": panel.tab.id, class: `${panel.element.className} sx-panel`})) panel.element.setAttribute(key, value);
    panel.element.hidden = true;
  }
  const tabs = Object.values(app.panels).map((panel) => panel.tab);
  return h("div", {class: "sx-tabs", role: "tablist", "aria-label": "Views", onkeydown: (event) => moveInTabs(tabs, event)}, tabs);
}

/** Arrow keys move between tabs and open them, as the ARIA pattern has it. */
function moveInTabs(tabs, event) {
  const at = tabs.indexOf(event.target);
  const next = {ArrowRight: (at + 1) % tabs.length, ArrowLeft: (at + tabs.length - 1) % tabs.length, Home: 0, End: tabs.length - 1}[event.key];
  if (at < 0 || next === undefined) return;
  event.preventDefault();
  tabs[next].focus();
  tabs[next].click();
}

/** In JupyterLab colours follow its theme, which need not be the system's. */
function followJupyter(app) {
  const set = () => {
    const light = document.body.dataset.jpThemeLight;
    if (light) app.root.dataset.theme = light === "true" ? "light" : "dark";
  };
  set();
  app.themes = new MutationObserver(set);
  app.themes.observe(document.body, {attributes: true, attributeFilter: ["data-jp-theme-light"]});
  app.root.dataset.lmSuppressShortcuts = "true";
}

function startExplorer(root, ask, {standalone = false} = {}) {
  const app = {root, ask, standalone, state: standalone ? readHash(location.hash) : newState(), waiting: 0, keysOn: true, unfolded: new Set(), epochs: null};
  root.classList.add("sx");
  app.live = h("div", {class: "sx-hidden", role: "status", "aria-live": "polite"});
  app.notice = h("p", {class: "sx-notice", role: "status"});
  app.progress = h("div", {class: "sx-progress", hidden: true}, h("progress", {max: 1, value: 0, "aria-label": "reading"}), h("span"));
  makeCommands(app);
  makeKeys(app);
  const tabs = makeTabs(app);
  app.bar = makeBar(app);
  const panels = Object.values(app.panels).map((panel) => panel.element);
  app.main = h("div", {hidden: true}, app.bar.element, app.notice, app.commands.element, h("div", {class: "sx-tabline"}, tabs, app.progress), panels);
  app.whole = makePart(app.main);
  root.replaceChildren(app.whole.element, app.live, app.keys);
  const onKey = (event) => takeKey(app, event);
  const onHash = () => returnTo(app);
  (standalone ? document : root).addEventListener("keydown", onKey);
  if (standalone) window.addEventListener("popstate", onHash);
  else followJupyter(app);
  openStudy(app, app.state.study);
  return {
    destroy: () => {
      app.gone = true;
      clearTimeout(app.following);
      document.removeEventListener("keydown", onKey);
      window.removeEventListener("popstate", onHash);
      if (app.themes) app.themes.disconnect();
      for (const panel of Object.values(app.panels)) for (const chart of Object.values(panel.charts || {})) chart.destroy();
      root.replaceChildren();
    },
  };
}

/** "Back", or another link typed into the address. */
function returnTo(app) {
  const before = app.state.study;
  app.state = readHash(location.hash);
  if (!app.state.study || app.state.study === before) {
    settle(app);
    show(app);
  } else {
    openStudy(app, app.state.study);
  }
}

return startExplorer;
})();
