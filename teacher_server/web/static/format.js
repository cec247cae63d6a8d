// Numbers as people read them. Pure functions from numbers to text.

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 0, 0.004, 0.42, 3.4, 128, 5,200, 52 k, 1.3 M */
export function rate(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, sign] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (value >= size) return `${digits(value / (sign === "k" ? 1e3 : size))} ${sign}`;
  }
  return value >= 1000 ? plain.format(value) : digits(value);
}

export function count(value) {
  return plain.format(value);
}

/** 0 %, < 1 %, 42 %, 130 % */
export function percent(share) {
  if (share === null || share === undefined) return "–";
  if (share > 0 && share < 0.005) return "< 1 %";
  return `${plain.format(share * 100)} %`;
}

/** 340 MiB, 2.0 GiB */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let size = value;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (size < 1000) return `${unit === "B" ? plain.format(size) : digits(size)} ${unit}`;
    size /= 1024;
  }
  return `${digits(size)} TiB`;
}

/** 0.42 ms, 35 ms, 1.2 s, 48 s, 5 min, 3 h 10 min, 2 d 4 h */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${digits(value * 1000)} ms`;
  return value < 10 ? `${value.toFixed(1)} s` : span(value);
}

/** The same for what is no measurement: 0 s, 48 s, 5 min, 3 h 10 min, 2 d 4 h */
export function span(value) {
  if (value < 60) return `${Math.floor(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  if (value < 86400) return pair(value, 3600, "h", 60, "min");
  return pair(value, 86400, "d", 3600, "h");
}

function pair(value, large, name, small, other) {
  const rest = Math.floor((value % large) / small);
  return `${Math.floor(value / large)} ${name}${rest ? ` ${rest} ${other}` : ""}`;
}

function digits(value) {
  if (value === 0) return "0";
  if (value < 0.005) return value.toPrecision(1);
  if (value < 1) return value.toFixed(2);
  return value < 10 ? value.toFixed(1) : plain.format(value);
}
