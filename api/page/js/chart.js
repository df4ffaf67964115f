// Line charts and the like: uPlot in a figure with a legend that reads out what is under the cursor.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { el, fill } from "./dom.js";
import { brief } from "./format.js";
import { colour, onTheme } from "./theme.js";

const FONT = "11px Inter, system-ui, sans-serif";

/**
 * A chart.
 * @param {string} title
 * @param {object} options
 *   series: [{label, tone, dash, width, faint, fill, paths, dots, hidden}] — `hidden` ones are not in the legend.
 *   x: {label, time, read}, y: {format, range, log: whether a logarithmic axis is offered, and taken at first}
 *   sync: charts of one name share their cursor. controls: beside the title. tall. signal: of the view.
 *   note(idx): replaces the legend while the cursor is at a point; null leaves it.
 * @returns {{node, set}} `set(data)` takes uPlot's columns.
 */
export function chart(title, options) {
  const { series, x = {}, y = {}, sync, tall, note, signal } = options;
  const figure = el("figure", { class: "panel chart" });
  const legend = el("ul", { class: "legend" });
  const host = el("div", { class: tall ? "plot tall" : "plot", role: "img", "aria-label": title });
  const nothing = el("div", { class: "nothing" }, options.empty ?? "Nothing recorded yet");
  let log = y.log === true;
  let data = null;
  let plot = null;
  let zoomed = false;
  // A chart that is out of sight is drawn when it comes into it.
  let seen = false;

  const logButton =
    y.log !== undefined &&
    el(
      "button",
      {
        class: "quiet small",
        type: "button",
        "aria-pressed": String(log),
        "aria-label": `Logarithmic axis of ${title}`,
        onclick: () => {
          log = !log;
          logButton.setAttribute("aria-pressed", String(log));
          build();
        },
      },
      "log",
    );
  figure.append(
    el(
      "figcaption",
      {},
      el("h3", {}, title),
      el("div", { class: "actions" }, options.controls, logButton),
    ),
    legend,
    fill(host, nothing),
  );

  const shownData = () => (log ? [data[0], ...data.slice(1).map(positive)] : data);

  function build() {
    plot?.destroy();
    plot = null;
    if (!data || !shownData().slice(1).some((column) => column.some((v) => v !== null))) {
      fill(host, nothing);
      readOut(null);
      return;
    }
    fill(host);
    plot = new uPlot(settings(), shownData(), host);
    plot.over.addEventListener("dblclick", () => (zoomed = false));
    readOut(null);
  }

  function settings() {
    return {
      width: host.clientWidth,
      height: host.clientHeight,
      legend: { show: false },
      cursor: {
        sync: sync ? { key: sync } : undefined,
        y: false,
        points: { size: 7, fill: (u, i) => stroke(series[i - 1]), width: 0 },
      },
      padding: [8, 10, 0, 0],
      scales: {
        x: { time: false, range: x.range },
        y: { distr: log ? 3 : 1, range: log ? undefined : y.range },
      },
      axes: [axis({ values: (u, ticks) => ticks.map(x.format ?? brief), space: 60, size: 26 }), axis(yAxis(y, log))],
      series: [{}, ...series.map(line)],
      hooks: {
        setCursor: [(u) => readOut(u.cursor.idx)],
        setSelect: [(u) => (zoomed = u.select.width > 0 || zoomed)],
        draw: options.draw ? [options.draw] : [],
      },
    };
  }

  function readOut(idx) {
    const special = idx === null || idx === undefined ? null : note?.(idx);
    if (special) {
      fill(legend, el("li", {}, special));
      return;
    }
    const at = data && idx !== null && idx !== undefined ? idx : null;
    const items = series.map((s, i) => {
      if (s.hidden) return null;
      const column = data?.[i + 1];
      const value = column && (at === null ? last(column) : near(column, at));
      if (series.length > 4 && value === null) return null;
      const swatch = el("i", {
        class: s.dots ? "dot" : s.dash ? "dashed" : null,
        vars: { "--swatch": `var(--${s.tone})` },
      });
      return el("li", {}, swatch, s.label, s.silent ? null : el("b", {}, (y.format ?? brief)(value)));
    });
    const where = at === null ? null : el("li", {}, `${x.label ?? "x"} `, el("b", {}, (x.format ?? brief)(data[0][at])));
    fill(legend, items, where);
    if (at === null) host.setAttribute("aria-label", `${title}. ${legend.textContent ? summary() : "No data."}`);
  }

  /** For those who do not see the curve: where each began and where it is. */
  function summary() {
    if (options.describe) return options.describe();
    const said = series.map((s, i) => {
      const column = (data?.[i + 1] ?? []).filter((v) => v !== null && v !== undefined);
      if (s.hidden || !column.length) return null;
      return `${s.label}: from ${brief(column[0])} to ${brief(column.at(-1))}`;
    });
    return said.filter(Boolean).join("; ");
  }

  const sizes = new ResizeObserver(() => {
    if (plot) plot.setSize({ width: host.clientWidth, height: host.clientHeight });
  });
  sizes.observe(host);
  const sight = new IntersectionObserver(([entry]) => {
    seen = entry.isIntersecting;
    if (seen && data) set(data);
  });
  sight.observe(host);
  onTheme(signal, () => plot?.redraw());
  signal.addEventListener("abort", () => {
    sizes.disconnect();
    sight.disconnect();
    plot?.destroy();
  });

  function set(columns) {
    data = columns;
    if (!seen) return;
    if (!plot || !columns[0].length) build();
    else {
      plot.setData(shownData(), !zoomed);
      if (zoomed) plot.redraw();
      if (plot.cursor.idx === null || plot.cursor.idx === undefined) readOut(null);
    }
  }
  return { node: figure, set };
}

/** Overlaid histograms: steps with a light fill. */
export const steps = uPlot.paths.stepped({ align: 1 });

function line(s) {
  return {
    stroke: () => stroke(s),
    width: s.dots ? 0 : (s.width ?? 1.6),
    dash: s.dash ? [5, 4] : undefined,
    fill: s.fill ? () => `color-mix(in srgb, ${colour(s.tone)} 14%, transparent)` : undefined,
    paths: s.dots ? () => null : s.paths,
    spanGaps: !s.gaps,
    points: s.dots
      ? { show: true, size: s.dots, width: 0, fill: () => mix(s.tone, 65) }
      : { show: s.marks ?? false, size: 5, width: 0, fill: () => stroke(s) },
  };
}

function axis(more) {
  return {
    font: FONT,
    stroke: () => colour("muted"),
    grid: { stroke: () => colour("grid"), width: 1 },
    ticks: { show: false },
    gap: 4,
    ...more,
  };
}

function yAxis(y, log) {
  const format = y.format ?? brief;
  return {
    size: 50,
    space: 26,
    splits: log ? (u, i, low, high) => decades(low, high) : undefined,
    values: (u, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))),
  };
}

/** Powers of ten, or of a thousand and more where they would crowd; with 2 and 5 between a few. */
function decades(low, high) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(1, Math.ceil((last - first) / 6));
  const between = last - first <= 2 ? [1, 2, 5] : [1];
  const found = [];
  for (let power = first; power <= last; power += every) for (const m of between) found.push(m * 10 ** power);
  return found.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

function stroke(s) {
  return s.faint ? mix(s.tone, 28) : colour(s.tone);
}

function mix(tone, percent) {
  return `color-mix(in srgb, ${colour(tone)} ${percent}%, transparent)`;
}

function positive(column) {
  return column.map((v) => (v > 0 ? v : null));
}

function last(column) {
  return near(column, column.length - 1);
}

/** The value at a point, or the last one before it. */
function near(column, idx) {
  for (let i = idx; i >= 0; i--) if (column[i] !== null && column[i] !== undefined) return column[i];
  return null;
}
