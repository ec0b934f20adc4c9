// What a report does beside being read: sort and filter tables, hover curves, fold code, change its colours.
// The page is whole without it, so every control is made here; text enters by textContent only.

(() => {
"use strict";
const FOLD = 15, FILTER = 8; // rows of a table: above, the rest is folded, or a filter is offered

function make(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function makeButton(className, text, act) {
  const button = make("button", className, text);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

function all(selector, root = document) {
  return [...root.querySelectorAll(selector)];
}

// --- the bar: colours and code ------------------------------------------------------------------

function remember(name, value) { // a file may have no storage: then the choice lasts as long as the page
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch { /* no storage */ }
  return null;
}

function useTheme(theme, buttons) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.choice === theme));
}

function makeThemes() {
  const group = make("div", "choices"), known = ["system", "light", "dark"];
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "colours");
  const buttons = known.map((theme) => {
    const button = makeButton("", theme, () => { useTheme(theme, buttons); remember("theme", theme); });
    button.dataset.choice = theme;
    return button;
  });
  group.append(...buttons);
  const last = remember("theme");
  useTheme(known.includes(last) ? last : "system", buttons);
  return group;
}

function makeCodeButton() {
  const codes = all("details.code");
  const button = makeButton("", "show all code", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    for (const code of codes) code.open = open;
    button.setAttribute("aria-pressed", String(open));
    button.textContent = open ? "hide all code" : "show all code";
  });
  button.setAttribute("aria-pressed", "false");
  return codes.length ? [button] : [];
}

function makeBar() {
  const bar = make("div", "bar");
  bar.append(makeThemes(), ...makeCodeButton(), makeButton("", "print", () => window.print()));
  document.querySelector("main").prepend(bar);
}

// --- contents -----------------------------------------------------------------------------------

function followContents() {
  const box = document.querySelector(".contents details");
  if (!box) return;
  const wide = matchMedia("(min-width: 72rem)"), fit = () => { box.open = wide.matches; };
  wide.addEventListener("change", fit);
  fit();
  const links = new Map(all(".contents a").map((link) => [decodeURIComponent(link.hash.slice(1)), link]));
  const heads = all("main h2[id], main h3[id]");
  for (const link of links.values()) link.addEventListener("click", () => { if (!wide.matches) box.open = false; });
  const mark = () => {
    const past = heads.filter((head) => head.getBoundingClientRect().top < innerHeight * 0.3);
    const here = past.length ? past[past.length - 1].id : "";
    for (const [name, link] of links) {
      if (name === here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  let waits = false;
  addEventListener("scroll", () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => { waits = false; mark(); });
  }, {passive: true});
  mark();
}

// --- tables -------------------------------------------------------------------------------------

function readNumber(text) { // "1,234", "-0.5", "1e-05", "< .0001", "12 %"; anything else is no number
  const plain = text.trim().replace(/−/g, "-").replace(/,(?=\d{3})/g, "").replace(/^[<>≤≥]\s*/, "").replace(/\s*%$/, "");
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain) ? parseFloat(plain) : NaN;
}

const UNKNOWN = new Set(["", "nan", "none", "unknown", "<na>"]);

function compareCells(a, b) {
  if (a.unknown || b.unknown) return 0; // the caller puts those last
  if (!Number.isNaN(a.number) && !Number.isNaN(b.number)) return a.number - b.number;
  return a.text.localeCompare(b.text, "en", {numeric: true});
}

function readCell(row, at) {
  const text = row.cells[at] ? row.cells[at].textContent.trim() : "";
  return {row, text, number: readNumber(text), unknown: UNKNOWN.has(text.toLowerCase())};
}

function sortTable(table, head, at) {
  const falling = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const cells = all("tr", table.tBodies[0]).map((row) => readCell(row, at));
  cells.sort((a, b) => a.unknown - b.unknown || (falling ? compareCells(b, a) : compareCells(a, b)));
  table.tBodies[0].append(...cells.map((cell) => cell.row));
}

function makeSortable(table, refold) {
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const button = makeButton("sort", head.textContent, () => { sortTable(table, head, at); refold(); });
    head.scope = "col";
    head.replaceChildren(button);
  });
}

function makeFold(table, tools) {
  const rows = () => all("tbody tr", table), state = {open: rows().length <= FOLD + 2};
  const button = makeButton("more", "", () => { state.open = !state.open; refold(); });
  const refold = () => {
    const found = rows().filter((row) => !row.classList.contains("filtered"));
    for (const row of rows()) row.classList.remove("folded");
    if (!state.open) for (const row of found.slice(FOLD)) row.classList.add("folded");
    button.textContent = state.open ? `show ${FOLD} rows` : `show all ${found.length} rows`;
    button.hidden = found.length <= FOLD + 2;
    button.setAttribute("aria-expanded", String(state.open));
  };
  if (rows().length > FOLD + 2) tools.after.append(button);
  refold();
  return refold;
}

function makeFilter(table, tools, refold) {
  const rows = all("tbody tr", table);
  if (rows.length <= FILTER) return;
  const label = make("label", "filter", "filter rows "), field = make("input"), count = make("span", "count");
  field.type = "search";
  count.setAttribute("role", "status");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase(), hit = words.every((word) => text.includes(word));
      row.classList.toggle("filtered", !hit);
      left += hit;
    }
    count.textContent = words.length ? `${left} of ${rows.length} rows` : "";
    refold();
  });
  label.append(field);
  tools.before.append(label, count);
}

function dressTable(table) {
  const head = table.tHead && table.tHead.rows[0];
  const box = make("div", "scroll"), tools = {before: make("div", "tools"), after: make("div", "tools")};
  const whole = make("div", "table");
  table.replaceWith(whole);
  box.append(table);
  whole.append(tools.before, box, tools.after);
  const preview = all("tbody tr", table).some((row) => row.cells.length && [...row.cells].every((cell) => cell.textContent === "..."));
  if (!preview && !table.classList.contains("facts") && head && table.tHead.rows.length === 1 && table.tBodies.length === 1) {
    const refold = makeFold(table, tools);
    makeFilter(table, tools, refold);
    makeSortable(table, refold);
  }
  const reach = () => { // a box that scrolls has to be reached by keyboard too
    if (box.scrollWidth > box.clientWidth + 1) { box.tabIndex = 0; box.setAttribute("role", "region"); box.setAttribute("aria-label", "table, scrolls sideways"); }
    else { box.removeAttribute("tabindex"); box.removeAttribute("role"); box.removeAttribute("aria-label"); }
  };
  new ResizeObserver(reach).observe(box);
}

// --- figures ------------------------------------------------------------------------------------

function makeDialog() {
  const dialog = make("dialog", "whole"), close = makeButton("close", "close", () => dialog.close()), image = make("img");
  dialog.setAttribute("aria-label", "figure at full size");
  const box = make("div", "picture");
  box.tabIndex = 0;
  box.append(image);
  dialog.append(close, box);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  return {dialog, image};
}

function dressFigure(figure, whole) {
  const image = figure.querySelector("img");
  if (!image) return;
  const button = makeButton("enlarge", "", () => {
    whole.image.src = image.src;
    whole.image.alt = image.alt;
    whole.dialog.showModal();
  });
  button.setAttribute("aria-label", `open at full size: ${image.alt}`);
  button.title = "open at full size";
  image.replaceWith(button);
  button.append(image);
  const data = figure.querySelector("script.data");
  if (data) dressChart(figure, button, JSON.parse(data.textContent));
}

function dressChart(figure, picture, spec) {
  const box = make("div", "alive"), choice = makeButton("swap", "", () => show(figure.classList.contains("charted")));
  const show = (still) => {
    figure.classList.toggle("charted", !still);
    choice.textContent = still ? "as an interactive chart" : "as the figure for slides";
  };
  figure.prepend(box);
  makeChart(box, spec);
  figure.append(choice);
  show(false);
}

// --- copying ------------------------------------------------------------------------------------

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // without a secure context there is the old way
    const field = make("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

function dressCommand(pre) {
  const box = make("div", "copied"), said = make("span", "count");
  said.setAttribute("role", "status");
  let fading = 0;
  const button = makeButton("", "copy", async () => {
    said.textContent = (await copyText(pre.textContent)) ? "copied" : "select it and copy by hand";
    clearTimeout(fading); // a second click is told as long as the first
    fading = setTimeout(() => { said.textContent = ""; }, 4000);
  });
  pre.tabIndex = 0;
  pre.replaceWith(box);
  box.append(pre, button, said);
}

// --- print --------------------------------------------------------------------------------------

function openForPrint() {
  const opened = [];
  addEventListener("beforeprint", () => {
    for (const box of all("main details:not(.code):not([open])")) { box.open = true; opened.push(box); }
  });
  addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });
}

makeBar();
followContents();
const whole = makeDialog();
for (const figure of all("main figure")) dressFigure(figure, whole);
for (const table of all("main .output_html table")) dressTable(table);
for (const pre of all("main pre.copy")) dressCommand(pre);
openForPrint();
})();
