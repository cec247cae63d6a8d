// The tiles of the server's load: a figure, what it is out of, and its curve.

import { make, say, Sparkline } from "./elements.js";
import { bytes, count, percent, rate, seconds, span } from "./format.js";

// key: the curve's name. top: what the curve's height stands for at least. full: how much of what there may be is taken.
const TILES = [
  { key: "engine_share", label: "Engine", format: percent, top: () => 1, value: (s) => percent(s.load.engine_share), detail: (s) => `busy · ${rate(s.load.calls_per_s)} calls/s` },
  { key: "steps_per_s", label: "Steps", format: perSecond, value: (s) => perSecond(s.load.steps_per_s), detail: (s) => `in ${bytes(s.load.received_bytes_per_s)}/s · out ${bytes(s.load.sent_bytes_per_s)}/s` },
  { key: "tokens_per_s", label: "Tokens", format: perSecond, value: (s) => perSecond(s.load.tokens_per_s), detail: () => "forward and backward" },
  { key: "queue_s", label: "Queue", format: seconds, value: (s) => seconds(s.load.queue_s), detail: (s) => `a call · ${s.load.in_flight} of ${count(s.load.permits)} permits`, full: (s) => s.load.in_flight / s.load.permits },
  { key: "sessions", label: "Sessions", format: count, value: (s) => count(s.load.sessions), detail: (s) => `of ${count(s.load.max_sessions)} that may live`, full: (s) => s.load.sessions / s.load.max_sessions },
  { key: "batch_rows", label: "Batch", format: (value) => `${rate(value)} rows`, value: (s) => (s.batches.rows === null ? "–" : `${rate(s.batches.rows)} rows`), detail: (s) => `${rate(s.batches.students)} students · ${rate(s.batches.tokens)} of ${rate(s.batches.max_tokens)} tokens`, full: (s) => (s.batches.tokens ?? 0) / s.batches.max_tokens },
  { key: "graph_bytes", label: "Kept graphs", format: bytes, value: (s) => bytes(s.graphs.bytes), detail: (s) => cached(s.graphs), full: (s) => s.graphs.bytes / s.graphs.limit_bytes },
  { key: "knowledge_bytes", label: "Knowledge cache", format: bytes, value: (s) => bytes(s.knowledge.bytes), detail: (s) => cached(s.knowledge), full: (s) => s.knowledge.bytes / s.knowledge.limit_bytes },
  { key: "memory_bytes", label: "Memory", format: bytes, value: (s) => bytes(s.memory.bytes), detail: (s) => `${s.memory.kind}${s.memory.limit_bytes ? `, of ${bytes(s.memory.limit_bytes)}` : ""} · codecs ${bytes(s.memory.state_bytes)}`, full: (s) => (s.memory.limit_bytes ? s.memory.bytes / s.memory.limit_bytes : 0) },
  { key: "refused_per_s", label: "Refused", format: perSecond, value: (s) => count(recent(s)), detail: (s) => `or failed in ${span(s.interval_s * s.kept)} · ${count(s.refusals.reduce((sum, each) => sum + each.total, 0))} since start`, warn: (s) => recent(s) > 0 },
];

const NEARLY_FULL = 0.9;

export class Tiles {
  constructor(place) {
    this.tiles = TILES.map((tile) => {
      const label = make("h3", {}, tile.label);
      const peak = make("span", { class: "peak" });
      const value = make("p", { class: "value" });
      const detail = make("p", { class: "detail" });
      const gauge = make("div", { class: "gauge" }, make("div"));
      gauge.hidden = !tile.full;
      const spark = new Sparkline(40);
      const element = make("article", { class: "tile", "data-tile": tile.key }, make("div", { class: "label" }, label, peak), value, detail, gauge, spark.element);
      place.append(element);
      return { ...tile, element, peak, shown: value, said: detail, gauge, spark };
    });
  }

  update(status, curves) {
    for (const tile of this.tiles) {
      const curve = curves[tile.key] ?? [];
      const known = curve.filter((each) => each !== null);
      say(tile.shown, tile.value(status));
      say(tile.said, tile.detail(status));
      say(tile.peak, known.length ? `peak ${tile.format(Math.max(...known))}` : "");
      const full = tile.full?.(status) ?? 0;
      tile.gauge.firstChild.style.inlineSize = `${Math.min(100, full * 100)}%`;
      tile.element.classList.toggle("warn", full >= NEARLY_FULL || Boolean(tile.warn?.(status)));
      tile.spark.draw(curve, status.kept, tile.top?.(status));
    }
  }
}

function perSecond(value) {
  return value === null ? "–" : `${rate(value)}/s`;
}

function cached(cache) {
  const hits = cache.hit_share === null ? "not asked" : `${percent(cache.hit_share)} hits`;
  return `of ${bytes(cache.limit_bytes)} · ${hits}`;
}

function recent(status) {
  return status.refusals.reduce((sum, each) => sum + each.recent, 0);
}
