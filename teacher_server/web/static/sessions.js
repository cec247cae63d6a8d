// The table of sessions: one row each, changed in place, sorted and filtered here.

import { make, say, Sparkline } from "./elements.js";
import { count, percent, rate, span } from "./format.js";

const NOW_S = 3;

// key: the field it sorts by. first: the direction of the first click.
const COLUMNS = [
  { key: "student", label: "Student", first: 1, cell: nameCell },
  { key: "task", label: "Task", first: 1, cell: textCell((s) => s.task || "–") },
  { key: "epoch", label: "Session epoch", first: -1, figure: true, title: "How often this session was opened or taken over; not a pass over the training data", cell: textCell((s) => count(s.epoch)) },
  { key: "step", label: "Step", first: -1, figure: true, cell: textCell((s) => count(s.step)) },
  { key: "steps_per_s", label: "Steps/s", first: -1, figure: true, cell: curveCell },
  { key: "device_share", label: "Device", first: -1, figure: true, title: "Share of the time in which the engine worked for it", cell: shareCell },
  { key: "wait_share", label: "Wait", first: -1, figure: true, title: "Share of the time its calls stood in the queue; over 100 % where several did", cell: textCell((s) => percent(s.wait_share)) },
  { key: "age_s", label: "Age", first: -1, figure: true, cell: textCell((s) => span(s.age_s)) },
  { key: "idle_s", label: "Last call", first: 1, figure: true, cell: textCell((s) => (s.under_way || s.idle_s < NOW_S ? "now" : `${span(s.idle_s)} ago`)) },
  { key: "error_age_s", label: "Last error", first: 1, cell: errorCell },
];

export class Sessions {
  constructor(page) {
    this.page = page;
    this.rows = new Map();
    this.known = [];
    this.key = "student";
    this.direction = 1;
    this.buildHead();
    page.filter.addEventListener("input", () => this.show());
    page.sort.addEventListener("change", () => this.sortBy(page.sort.value));
  }

  /** Takes the sessions of a status, each with its whole curve. */
  update(sessions, kept) {
    this.known = sessions.map((each) => ({ ...each, error_age_s: each.last_error?.age_s ?? Infinity }));
    const live = new Set(sessions.map((each) => each.number));
    for (const [number, row] of this.rows) {
      if (live.has(number)) continue;
      row.element.remove();
      this.rows.delete(number);
    }
    for (const each of this.known) {
      if (!this.rows.has(each.number)) this.rows.set(each.number, buildRow());
      this.rows.get(each.number).fill(each, kept);
    }
    this.show();
  }

  buildHead() {
    this.heads = COLUMNS.map(({ key, label, figure, title }) => {
      const button = make("button", { type: "button", ...(title ? { title } : {}) }, label);
      button.addEventListener("click", () => this.sortBy(key));
      const head = make("th", { scope: "col", role: "columnheader", ...(figure ? { class: "figure" } : {}) }, button);
      this.page.head.append(head);
      this.page.sort.append(make("option", { value: key }, label));
      return head;
    });
  }

  sortBy(key) {
    const column = COLUMNS.find((each) => each.key === key);
    this.direction = key === this.key ? -this.direction : column.first;
    this.key = key;
    this.show();
  }

  /** Puts the rows that pass the filter into order, and moves none that stands right. */
  show() {
    const words = this.page.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const passed = this.known.filter((each) => passes(each, words)).sort((a, b) => this.compare(a, b));
    const elements = passed.map((each) => this.rows.get(each.number).element);
    const shown = new Set(elements);
    for (const row of [...this.page.rows.children]) if (!shown.has(row)) row.remove();
    elements.forEach((element, index) => {
      const there = this.page.rows.children[index];
      if (there !== element) this.page.rows.insertBefore(element, there ?? null);
    });
    this.heads.forEach((head, index) => {
      const direction = this.direction > 0 ? "ascending" : "descending";
      head.setAttribute("aria-sort", COLUMNS[index].key === this.key ? direction : "none");
    });
    this.page.sort.value = this.key;
    this.tellCount(passed.length);
  }

  tellCount(shown) {
    const all = this.known.length;
    say(this.page.count, shown === all ? `${count(all)} live` : `${count(shown)} of ${count(all)}`);
    this.page.nobody.hidden = shown > 0;
    this.page.table.hidden = shown === 0;
    say(this.page.nobody, all ? "No student passes this filter." : "No student is connected.");
  }

  compare(a, b) {
    const [x, y] = [a[this.key], b[this.key]];
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x < y ? -1 : x > y ? 1 : 0;
    return this.direction * order || a.number - b.number;
  }
}

function passes(session, words) {
  const text = [session.student, session.identity, session.task, session.last_error?.kind ?? ""].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

function buildRow() {
  const element = make("tr", { role: "row" });
  const fills = COLUMNS.map((column, index) => {
    const kind = index ? make("td", { role: "cell" }) : make("th", { scope: "row", role: "rowheader" });
    kind.className = `c-${column.key}${column.figure ? " figure" : ""}`;
    kind.dataset.label = column.label;
    element.append(kind);
    return column.cell(kind);
  });
  return { element, fill: (session, kept) => fills.forEach((fill) => fill(session, kept)) };
}

// Each of these builds what is inside a cell and gives the function that fills it.

function textCell(text) {
  return (cell) => (session) => say(cell, text(session));
}

function nameCell(cell) {
  const name = make("bdi", { class: "name" });
  const identity = make("bdi", { class: "identity" });
  cell.append(name, identity);
  return (session) => {
    say(name, session.student);
    name.title = session.student;
    say(identity, session.identity);
  };
}

function curveCell(cell) {
  const spark = new Sparkline(20);
  const value = make("span");
  cell.append(make("div", { class: "beside" }, spark.element, value));
  return (session, kept) => {
    spark.draw(session.history, kept);
    say(value, rate(session.steps_per_s));
  };
}

function shareCell(cell) {
  const gauge = make("div", { class: "gauge" }, make("div"));
  const value = make("span");
  cell.append(make("div", { class: "beside" }, gauge, value));
  return (session) => {
    gauge.firstChild.style.inlineSize = `${Math.min(100, session.device_share * 100)}%`;
    say(value, percent(session.device_share));
  };
}

function errorCell(cell) {
  const kind = make("span");
  const age = make("span", { class: "muted" });
  const sentence = make("p");
  const details = make("details", {}, make("summary", {}, kind, " ", age), sentence);
  const none = make("span", { class: "muted" }, "–");
  cell.append(none, details);
  return ({ last_error: error }) => {
    details.hidden = !error;
    none.hidden = Boolean(error);
    cell.classList.toggle("empty", !error);
    if (!error) return;
    say(kind, error.kind);
    say(age, `${span(error.age_s)} ago`);
    say(sentence, error.sentence);
  };
}
