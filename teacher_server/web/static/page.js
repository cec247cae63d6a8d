// Asks for the status every few seconds, keeps the curves, and hands them to the parts of the page.

import { make, say } from "./elements.js";
import { bytes, count, span } from "./format.js";
import { Sessions } from "./sessions.js";
import { Tiles } from "./tiles.js";

const STATES = { starting: "Starting", serving: "Serving", draining: "Draining" };
const DRAINING = "This server drains: it begins nothing new, and its students take their state elsewhere.";
const ANSWER_MS = 10_000;
const [FIRST_WAIT_MS, LAST_WAIT_MS] = [2_000, 15_000];

const $ = (id) => document.getElementById(id);
const tiles = new Tiles($("tiles"));
const sessions = new Sessions({ head: $("head"), rows: $("rows"), filter: $("filter"), sort: $("sort"), count: $("count"), table: $("sessions"), nobody: $("nobody") });

let curves = {}; // of the server, by name
let curvesOf = new Map(); // of each session, by number
let newest = { started: 0, sample: 0, now: 0 };
let timer = 0;
let wait_ms = FIRST_WAIT_MS;

/** Asks for what is new, shows it, and asks again later; not while nobody looks. */
async function ask() {
  clearTimeout(timer);
  if (document.hidden) return;
  let next_ms;
  try {
    const status = await fetchStatus(newest.sample);
    keep(status);
    show(status);
    wait_ms = FIRST_WAIT_MS;
    next_ms = status.interval_s * 1000;
  } catch (error) {
    lost(error);
    next_ms = wait_ms;
    wait_ms = Math.min(LAST_WAIT_MS, wait_ms * 1.5);
  }
  clearTimeout(timer);
  timer = setTimeout(ask, next_ms);
}

async function fetchStatus(after) {
  const reply = await fetch(`status.json?after=${after}`, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
  if (!reply.ok) throw new Error(await reply.text());
  const status = await reply.json();
  const isAnother = newest.started !== 0 && status.started !== newest.started;
  return isAnother && after ? fetchStatus(0) : status;
}

/** Adds what is new to the curves, or takes them whole. */
function keep(status) {
  const joined = (before, more) => (status.after ? [...(before ?? []), ...more] : more).slice(-status.kept);
  curves = Object.fromEntries(Object.entries(status.history).map(([name, more]) => [name, joined(curves[name], more)]));
  curvesOf = new Map(status.sessions.map((each) => [each.number, joined(curvesOf.get(each.number), each.history)]));
  newest = status;
}

function show(status) {
  tell(STATES[status.state], status.state, status.state === "draining" ? DRAINING : "");
  $("main").classList.remove("stale");
  say($("model"), status.teacher.model_name);
  say($("kind"), `${status.teacher.family}, ${status.teacher.layers} layers, ${status.teacher.dtype} on ${status.teacher.device}`);
  say($("uptime"), `up ${span(status.now - status.started)}`);
  document.title = `${count(status.load.sessions)} · ${status.teacher.model_name}`;
  tiles.update(status, curves);
  sessions.update(status.sessions.map((each) => ({ ...each, history: curvesOf.get(each.number) })), status.kept);
  showRefusals(status);
  showCard(status.teacher);
  say($("spans"), `Rates are taken over ${span(status.window_s)}, curves show ${span(status.interval_s * status.kept)}.`);
}

function lost(error) {
  const known = newest.now ? ` The figures are those of ${new Date(newest.now * 1000).toLocaleTimeString()}.` : "";
  const cause = error instanceof TypeError || error.name === "TimeoutError" ? "The server does not answer." : error.message;
  tell("Not reached", "lost", `${cause}${known} Asking again.`);
  $("main").classList.add("stale");
}

function tell(label, name, notice) {
  say($("state"), label);
  $("state").dataset.state = name;
  say($("notice"), notice);
  $("notice").hidden = !notice;
}

function showRefusals(status) {
  const rows = status.refusals.map((each) => make("tr", {}, make("th", { scope: "row" }, each.reason), make("td", { class: "figure" }, count(each.recent)), make("td", { class: "figure" }, count(each.total))));
  say($("recent-title"), `Last ${span(status.interval_s * status.kept)}`);
  $("reasons").replaceChildren(...rows);
  $("refused").hidden = !rows.length;
  $("none-refused").hidden = rows.length > 0;
}

function showCard(card) {
  if ($("card").dataset.hash === card.model_hash) return;
  $("card").dataset.hash = card.model_hash;
  const pairs = {
    Model: card.model_name,
    Weights: card.model_hash,
    Device: `${card.device}, ${card.dtype}${card.deterministic ? ", deterministic" : ""}`,
    Layers: `${card.layers}, of width ${card.width}`,
    "Default span": `enter at ${card.entry}, answer at ${card.exit}`,
    Vocabulary: card.vocabulary_size ? count(card.vocabulary_size) : "–",
    Heads: card.heads.length ? `${card.heads.join(", ")}${card.labels ? `, ${count(card.labels)} labels` : ""}` : "–",
    "A call": `up to ${count(card.max_rows)} rows of ${count(card.max_tokens)} tokens, ${bytes(card.message_bytes)}`,
    Lease: span(card.lease_s),
    Compression: card.compressions.join(", "),
    Inputs: card.input_ports.join(", "),
    Outputs: card.output_ports.join(", "),
    Release: card.release,
  };
  $("card").replaceChildren(...Object.entries(pairs).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

document.addEventListener("visibilitychange", ask);
ask();
