// Elements, built without markup in strings: what the service says is text and never HTML.

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "selected"]);
const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `on…` are listeners, `vars` custom properties, null and false leave out what they stand for.
 * @returns {HTMLElement}
 */
export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else if (PROPERTIES.has(name)) node[name] = value;
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...content(children));
  return node;
}

/** Replace what a node holds. */
export function fill(node, ...children) {
  node.replaceChildren(...content(children));
  return node;
}

/** An icon of one path on a 24 × 24 grid. */
export function glyph(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "glyph");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const drawn = document.createElementNS(SVG, "path");
  drawn.setAttribute("d", path);
  svg.append(drawn);
  return svg;
}

/** A panel with a heading, optional controls beside it, and a body. */
export function panel(title, controls, ...body) {
  const id = `panel-${++panels}`;
  return el(
    "section",
    { class: "panel", "aria-labelledby": id },
    el("header", {}, el("h2", { id }, title), controls && el("div", { class: "actions" }, controls)),
    ...body,
  );
}

/** Radio buttons that look like one control. `options` are [value, label]. */
export function choice(legend, name, options, chosen, onchange) {
  return el(
    "fieldset",
    { class: "choice" },
    el("legend", { class: "unseen" }, legend),
    options.map(([value, label]) =>
      el(
        "label",
        {},
        el("input", {
          type: "radio",
          name,
          value,
          checked: value === chosen,
          onchange: () => onchange(value),
        }),
        label,
      ),
    ),
  );
}

/** Say something to screen readers. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

let panels = 0;

function content(children) {
  return children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false);
}
