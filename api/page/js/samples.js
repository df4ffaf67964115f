// Samples of a posterior: what they say of themselves, their distributions, and each Z.

import { chart, steps } from "./chart.js";
import { distinct, histogram } from "./drawing.js";
import { el, fill, panel } from "./dom.js";
import { brief, count, decimal, percent } from "./format.js";
import { warned } from "./notice.js";
import { ranking } from "./ranking.js";

/** A range with room around what lies at its ends. */
const roomy = (u, low, high) => [low - 0.04 * (high - low || 1), high + 0.04 * (high - low || 1)];

/**
 * Show finished draws.
 * @param {{samples, end}} policy
 * @param {{samples, end} | null} base draws of the base LM, for the same request
 * @param {number | null} exact log Z of this X where an oracle knows it
 */
export function showSamples(place, policy, base, exact, signal) {
  const { end } = policy;
  const known = !end.warnings.some(({ code }) => code === "reward_unknown");
  const groups = distinct(policy.samples, base?.samples);
  const particles = end.correction === "smc";
  const drawn = [];
  if (known) {
    drawn.push(rewards(policy, base, end, signal), flows(groups, base, exact ?? end.summary.log_z, exact !== null, signal));
  }
  fill(
    place,
    warnings(end, "Policy"),
    base && warnings(base.end, "Base LM"),
    head(policy, base, exact),
    el("div", { class: "grid pair" }, drawn.map(({ node }) => node)),
    ranking(groups, { compared: base !== null, weighted: end.weights !== null, particles, known }),
  );
  for (const { draw } of drawn) draw();
}

function warnings(end, whose) {
  return end.warnings.map(({ code, message }) => warned({ code, message: `${whose}: ${message}` }));
}

/** X and version, and a row of diagnostics for each sampler. */
function head({ end }, base, exact) {
  const rows = [[end.version ? `Policy, version ${end.version}` : "Base LM", end.version ? "policy" : "base", end]];
  if (base) rows.push(["Base LM", "base", base.end]);
  const columns = ["Sampler", "log Ẑ", "± se", "ESS", "ESS / n", "Pareto k", "Distinct / n"];
  const asked = Object.entries(end.fields).map(([name, text]) => el("div", {}, el("span", { class: "muted" }, `${name} `), el("span", { class: "mono" }, text)));
  return panel(
    `${end.run} / ${end.problem}`,
    el("span", { class: "muted" }, `n ${count(end.summary.n)} · seed ${end.seed} · ${end.correction}`),
    el("div", { class: "body" }, asked),
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        { class: "diagnostics" },
        el("thead", {}, el("tr", {}, columns.map((c, i) => el("th", { scope: "col", class: i && "number" }, c)))),
        el(
          "tbody",
          {},
          rows.map(([name, tone, { summary, warnings }]) =>
            el(
              "tr",
              {},
              el("td", { class: `tone-${tone}` }, el("span", { class: "swatch" }), name),
              el("td", { class: "number" }, warnings.some(({ code }) => code === "zero_reward") ? "−∞" : decimal(summary.log_z)),
              el("td", { class: "number" }, decimal(summary.log_z_se)),
              el("td", { class: "number" }, decimal(summary.ess, 1)),
              el("td", { class: "number" }, percent(summary.ess_fraction)),
              el("td", { class: "number" }, decimal(summary.pareto_k, 2)),
              el("td", { class: "number" }, percent(summary.unique_fraction)),
            ),
          ),
          known("Learned log Z", end.summary.log_z_learned, columns.length),
          known("Exact log Z", exact, columns.length),
        ),
      ),
    ),
  );
}

function known(name, value, columns) {
  if (value === null) return null;
  const rest = Array.from({ length: columns - 2 }, () => el("td"));
  return el("tr", {}, el("td", { class: "muted" }, name), el("td", { class: "number" }, decimal(value)), rest);
}

/** Histogram of log R. */
function rewards(policy, base, end, signal) {
  const values = ({ samples }) => samples.map((s) => s.log_reward ?? -Infinity);
  const equal = ({ samples }) => samples.map(() => 1 / samples.length);
  const lists = [{ values: values(policy), weights: equal(policy) }];
  const series = [{ label: "policy", tone: "policy", fill: true, paths: steps, silent: true }];
  if (end.correction !== "none" && end.weights) {
    lists.push({ values: values(policy), weights: end.weights });
    series.push({ label: "weighted", tone: "posterior", dash: true, paths: steps, silent: true });
  }
  if (base) {
    lists.push({ values: values(base), weights: equal(base) });
    series.push({ label: "base LM", tone: "base", fill: true, paths: steps, silent: true });
  }
  const made = chart("log R of the samples, nats", {
    series,
    signal,
    tall: true,
    x: { label: "log R", range: roomy },
    y: { format: (v) => percent(v, 0), range: (u, low, high) => [0, high * 1.08 || 1] },
    empty: "R = 0 for every sample",
    describe: () => "Share of the samples in each bin of log R.",
  });
  const columns = histogram(lists);
  return { node: made.node, draw: () => columns && made.set(columns) };
}

/** log q against log R of every distinct Z: on the line log q = log R − log Z, q is the posterior. */
function flows(groups, base, logZ, isExact, signal) {
  const points = groups.filter((g) => g.drawn && g.sample.log_reward !== null).map((g) => ({ ...g.sample, whose: "policy" }));
  const seen = new Set();
  for (const sample of base?.samples ?? []) {
    const key = sample.tokens.join();
    if (!seen.has(key) && sample.log_reward !== null) points.push({ ...sample, whose: "base LM" });
    seen.add(key);
  }
  points.sort((a, b) => a.log_reward - b.log_reward);
  const column = (whose) => points.map((p) => (p.whose === whose ? p.log_q : null));
  const data = [points.map((p) => p.log_reward), column("policy"), base ? column("base LM") : null, logZ === null ? null : points.map((p) => p.log_reward - logZ)];
  const line = isExact ? "log R − log Z, exact" : "log R − log Ẑ";
  const series = [
    { label: "policy", tone: "policy", dots: 6, silent: true },
    base && { label: "base LM", tone: "base", dots: 6, silent: true },
    logZ !== null && { label: line, tone: "posterior", dash: true, silent: true, width: 1.2 },
  ].filter(Boolean);
  const made = chart("log q against log R, nats", {
    series,
    signal,
    tall: true,
    x: { label: "log R", range: roomy },
    y: { range: roomy },
    empty: "R = 0 for every sample",
    note: (idx) => `${points[idx].whose}  “${points[idx].text}”  log R ${brief(points[idx].log_reward)}  log q ${brief(points[idx].log_q)}`,
    describe: () => `${points.length} distinct Z; where q is the posterior they lie on one line.`,
  });
  return { node: made.node, draw: () => made.set(data.filter((c) => c !== null)) };
}
