// Token highlighting. Every text is set by textContent, so nothing in it becomes an element; colours and sizes are numbers that Python made.
const COLOUR = { up: "59, 125, 237", down: "221, 107, 16" };

function shown(value) {
  return value === null || value === undefined ? "" : Number(value).toPrecision(3);
}

function paint(span, value, scale) {
  if (!value || !scale) return;
  const strength = Math.min(1, Math.abs(value) / scale);
  span.style.backgroundColor = `rgba(${value > 0 ? COLOUR.up : COLOUR.down}, ${(0.1 + 0.6 * strength).toFixed(3)})`;
}

function token(row, i, state) {
  const span = document.createElement("span");
  const text = row.texts[i];
  span.className = "token" + (row.muted.includes(i) ? " muted" : "") + (row.mark === i ? " peak" : "");
  span.textContent = text.trim() === "" && text.includes("\n") ? "↵" + text : text;
  span.dataset.place = i;
  paint(span, row.values[i], state.scale);
  return span;
}

function block(row, number, state) {
  const holder = document.createElement("div");
  holder.className = "row";
  if (row.caption) {
    const caption = document.createElement("div");
    caption.className = "caption";
    caption.textContent = row.caption;
    holder.append(caption);
  }
  const text = document.createElement("div");
  text.className = "text";
  text.dir = "auto";
  text.dataset.row = number;
  row.texts.forEach((_, i) => text.append(token(row, i, state)));
  if (state.selectable) text.tabIndex = 0;
  holder.append(text);
  return holder;
}

function placeOf(node) {
  const span = (node && node.nodeType === 3 ? node.parentElement : node)?.closest?.(".token");
  return span ? { row: Number(span.parentElement.dataset.row), at: Number(span.dataset.place), span } : null;
}

function showPick(root, pick) {
  root.querySelectorAll(".picked").forEach((span) => span.classList.remove("picked"));
  if (!pick) return;
  const text = root.querySelector(`.text[data-row="${pick.row}"]`);
  for (let i = pick.first; text && i <= pick.last; i++) text.children[i]?.classList.add("picked");
}

export default function (component) {
  const { data, parentElement, setStateValue } = component;
  const state = { scale: data.scale, selectable: data.selectable };
  const root = document.createElement("div");
  root.className = "tokens";
  if (data.height) root.style.maxHeight = `${Number(data.height)}px`;
  const says = document.createElement("div");
  says.className = "says";
  says.setAttribute("role", "status");
  const idle = data.rows.length ? data.hint : "";
  says.textContent = idle;
  data.rows.forEach((row, number) => root.append(block(row, number, state)));
  parentElement.querySelectorAll(".tokens, .says").forEach((old) => old.remove());
  parentElement.append(says, root);

  const tell = (place) => {
    const row = data.rows[place.row], value = row.values[place.at], note = row.notes[place.at];
    const text = JSON.stringify(row.texts[place.at]).slice(0, 80);
    says.textContent = `${text}  ${value === null ? "not measured here" : data.unit + " " + shown(value)}${note ? "  " + note : ""}`;
  };
  root.onmouseover = (event) => { const place = placeOf(event.target); if (place) tell(place); };
  root.onmouseleave = () => { says.textContent = idle; };

  if (!data.selectable) return;
  let pick = data.pick, cursor = pick ? pick.last : -1, anchor = pick ? pick.first : 0;
  showPick(root, pick);
  const choose = (row, a, b) => {
    pick = { row, first: Math.min(a, b), last: Math.max(a, b) };
    showPick(root, pick);
    setStateValue("pick", pick);
  };
  root.onmouseup = (event) => {
    const held = (parentElement.getSelection ? parentElement.getSelection() : null) || window.getSelection();
    const from = placeOf(held?.anchorNode), to = placeOf(held?.focusNode), here = placeOf(event.target);
    if (held && !held.isCollapsed && from && to && from.row === to.row) { choose(from.row, from.at, to.at); held.removeAllRanges(); }
    else if (here && event.shiftKey && pick && pick.row === here.row) choose(here.row, pick.first, here.at);
    else if (here) choose(here.row, here.at, here.at);
  };
  root.onkeydown = (event) => {
    const text = event.target.closest?.(".text");
    if (!text) return;
    const row = Number(text.dataset.row), last = data.rows[row].texts.length - 1;
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      event.preventDefault();
      cursor = Math.max(0, Math.min(last, cursor + (event.key === "ArrowRight" ? 1 : -1)));
      if (!event.shiftKey) anchor = cursor;
      pick = { row, first: Math.min(anchor, cursor), last: Math.max(anchor, cursor) };
      showPick(root, pick);
      tell({ row, at: cursor });
    } else if (event.key === "Enter" && pick) { event.preventDefault(); setStateValue("pick", pick); }
    else if (event.key === "Escape") { pick = null; showPick(root, null); setStateValue("pick", null); }
  };
}
