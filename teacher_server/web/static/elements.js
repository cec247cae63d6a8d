// Elements made of text and classes. Whatever comes from the server becomes text, never markup.

/** An element: `make("p", { class: "muted" }, "text", child)`. */
export function make(name, attributes = {}, ...children) {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  found.append(...children);
  return found;
}

/** Sets an element's text, if it is another one. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const SVG = "http://www.w3.org/2000/svg";

/** A curve over time, newest at the right edge; it says nothing to a screen reader, whose user has the figure beside it. */
export class Sparkline {
  constructor(height) {
    this.height = height;
    this.element = document.createElementNS(SVG, "svg");
    this.element.setAttribute("class", "spark");
    this.element.setAttribute("viewBox", `0 0 100 ${height}`);
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("aria-hidden", "true");
    this.area = this.element.appendChild(document.createElementNS(SVG, "path"));
    this.area.setAttribute("class", "area");
    this.line = this.element.appendChild(document.createElementNS(SVG, "path"));
    this.line.setAttribute("class", "line");
  }

  /** Draws values (null where there was none) of which `kept` fill the width; `top` is the least that the height stands for. */
  draw(values, kept, top = 0) {
    const most = Math.max(top, ...values.filter((each) => each !== null)) || 1;
    const x = (index) => (((kept - values.length + index) / (kept - 1)) * 100).toFixed(2);
    const y = (value) => (this.height - 1 - (value / most) * (this.height - 3)).toFixed(2);
    let line = "", area = "";
    for (const [first, last] of runs(values)) {
      const points = [];
      for (let index = first; index <= last; index++) points.push(`${x(index)} ${y(values[index])}`);
      if (first === last) points.push(points[0]);
      line += `M${points.join("L")}`;
      area += `M${x(first)} ${this.height}L${points.join("L")}L${x(last)} ${this.height}Z`;
    }
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }
}

/** First and last index of each stretch without a gap. */
function runs(values) {
  const found = [];
  values.forEach((value, index) => {
    if (value === null) return;
    const last = found.at(-1);
    if (last && last[1] === index - 1) last[1] = index;
    else found.push([index, index]);
  });
  return found;
}
