// Texts side by side whose words, sentences or lines are coloured by a figure each. Every text is set by textContent, so nothing
// in it becomes an element; colours and sizes are numbers that Python made.
const COLOUR = { up: "59, 125, 237", down: "221, 107, 16" };
const UNDERLINED = 0.3; // of the deepest shade: from there on a unit is underlined too, so that colour is not needed
const scrolled = new Map(); // how far each pane was scrolled: it stays there when the units or their figures change

const made = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};
const shown = (value, data, more = 0) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(data.digits + more);

function paint(span, value, scale) {
  if (!value || !scale) return;
  const strength = Math.min(1, Math.abs(value) / scale), colour = COLOUR[value > 0 ? "up" : "down"];
  span.style.backgroundColor = `rgba(${colour}, ${(0.06 + 0.54 * strength).toFixed(3)})`;
  if (strength >= UNDERLINED) span.classList.add(value > 0 ? "adds" : "takes");
}

function legend(data) {
  const bar = made("div", "legend");
  if (data.legend.low) bar.append(made("span", "takes word", data.legend.low), made("span", "number", shown(-data.scale, data)));
  bar.append(made("span", data.legend.low ? "ramp" : "ramp half"));
  bar.append(made("span", "number", shown(data.scale, data)), made("span", "adds word", data.legend.high));
  return bar;
}

function block(pane, number, data) {
  const holder = made("section", "pane");
  const caption = made("div", "caption");
  caption.append(made("span", `side ${pane.side}`, pane.title), made("span", "", pane.caption));
  const text = made("div", "text");
  text.tabIndex = 0;
  text.dataset.pane = number;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", `${pane.title}. Arrow keys move over the ${data.unit}s, Enter chooses one, Escape leaves it.`);
  if (data.height) text.style.maxHeight = `${Number(data.height)}px`;
  pane.lines.forEach((line) => {
    const row = made("div", line.mono ? "line mono" : "line");
    row.dir = "auto";
    line.parts.forEach(([unit, part]) => {
      if (unit < 0) return row.append(document.createTextNode(part));
      const span = made("span", "unit", part);
      span.dataset.unit = unit;
      paint(span, pane.values[unit], data.scale);
      row.append(span);
    });
    if (!line.parts.length) row.append(document.createElement("br"));
    text.append(row);
  });
  holder.append(caption, text);
  return holder;
}

// What a word adds, and which latents read it: beside the pointer, and for readers of the screen.
function describe(box, data, number, unit) {
  const pane = data.panes[number], value = pane.values[unit], readers = pane.readers[unit] || [];
  box.replaceChildren();
  const head = made("div", "head");
  head.append(made("span", "quote", pane.quotes[unit]), made("b", "", value === null ? "not measured" : shown(value, data)));
  box.append(head);
  readers.forEach(([latent, part]) => {
    const row = made("div", "reader");
    row.append(made("span", "", data.names[latent] ?? `Latent ${latent}`), made("span", part < 0 ? "minus" : "plus", shown(part, data, 1)));
    box.append(row);
  });
  return `${pane.quotes[unit]} ${value === null ? "not measured" : shown(value, data)}`;
}

function beside(box, span) {
  const at = span.getBoundingClientRect(), width = Math.min(340, window.innerWidth - 24);
  box.style.width = `${width}px`;
  box.hidden = false;
  const above = at.bottom + box.offsetHeight + 12 > window.innerHeight && at.top > box.offsetHeight + 12;
  box.style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - width - 12))}px`;
  box.style.top = `${above ? at.top - box.offsetHeight - 6 : at.bottom + 6}px`;
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = made("div", "marked"), panes = made("div", "panes"), box = made("div", "box"), status = made("div", "unseen");
  status.setAttribute("role", "status");
  box.hidden = true;
  if (data.scale) root.append(legend(data));
  data.panes.forEach((pane, number) => panes.append(block(pane, number, data)));
  root.append(panes, box, status);
  const focused = parentElement.activeElement?.dataset?.pane;
  parentElement.querySelectorAll(".marked").forEach((old) => old.remove());
  parentElement.append(root);

  const texts = [...root.querySelectorAll(".text")];
  const spansOf = (number, unit) => [...texts[number].querySelectorAll(`[data-unit="${unit}"]`)];
  const mark = (name, number, unit) => {
    root.querySelectorAll(`.${name}`).forEach((span) => span.classList.remove(name));
    if (number >= 0) spansOf(number, unit).forEach((span) => span.classList.add(name));
  };
  const point = (number, unit, span) => {
    mark("pointed", number, unit);
    const words = describe(box, data, number, unit);
    beside(box, span);
    return words;
  };
  const leave = () => { box.hidden = true; mark("pointed", -1, -1); };
  let chosen = data.chosen;
  const choose = (number, unit) => {
    chosen = number < 0 ? null : { pane: number, unit };
    mark("picked", number, unit);
    setTriggerValue("pointed", { pane: number < 0 ? "" : data.panes[number].name, at: number < 0 ? -1 : data.panes[number].starts[unit] });
  };
  if (chosen) mark("picked", chosen.pane, chosen.unit);

  texts.forEach((text, number) => {
    const key = `${data.place} ${data.panes[number].name}`;
    if (scrolled.has(key)) text.scrollTop = scrolled.get(key);
    else if (chosen && chosen.pane === number) text.scrollTop = Math.max(0, (spansOf(number, chosen.unit)[0]?.offsetTop ?? 0) - 80);
    text.onscroll = () => { scrolled.set(key, text.scrollTop); leave(); };
  });
  if (focused !== undefined) texts[Number(focused)]?.focus({ preventScroll: true });

  const unitOf = (node) => node?.closest?.(".unit");
  panes.onmouseover = (event) => {
    const span = unitOf(event.target);
    if (span) point(Number(span.closest(".text").dataset.pane), Number(span.dataset.unit), span);
    else leave();
  };
  panes.onmouseleave = leave;
  panes.onclick = (event) => {
    const span = unitOf(event.target), held = parentElement.getSelection ? parentElement.getSelection() : window.getSelection();
    if (!span || (held && !held.isCollapsed)) return;
    choose(Number(span.closest(".text").dataset.pane), Number(span.dataset.unit));
  };
  panes.onkeydown = (event) => {
    const text = event.target.closest?.(".text");
    if (!text) return;
    const number = Number(text.dataset.pane), last = data.panes[number].values.length - 1;
    const at = text.dataset.cursor !== undefined ? Number(text.dataset.cursor) : chosen && chosen.pane === number ? chosen.unit : -1;
    const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: below(text, at, 1), ArrowUp: below(text, at, -1) };
    if (event.key in steps && last >= 0) {
      event.preventDefault();
      const to = Math.max(0, Math.min(last, steps[event.key])), span = spansOf(number, to)[0];
      text.dataset.cursor = to;
      span?.scrollIntoView({ block: "nearest" });
      if (span) requestAnimationFrame(() => { status.textContent = point(number, to, span); });
    } else if (event.key === "Enter" && at >= 0) { event.preventDefault(); choose(number, at); }
    else if (event.key === "Escape") { leave(); if (chosen) choose(-1, -1); }
  };
  root.addEventListener("focusout", leave);
  return () => { box.hidden = true; };
}

// The unit that the line below (or above) begins with.
function below(text, at, step) {
  const here = text.querySelector(`[data-unit="${at}"]`)?.parentElement ?? null;
  for (let line = here ? (step > 0 ? here.nextElementSibling : here.previousElementSibling) : text.firstElementChild; line;
    line = step > 0 ? line.nextElementSibling : line.previousElementSibling) {
    const unit = line.querySelector(".unit");
    if (unit && Number(unit.dataset.unit) !== at) return Number(unit.dataset.unit);
  }
  return at + step;
}
