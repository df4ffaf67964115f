// The curves of a run: what is drawn from which metrics.

import { chart } from "./chart.js";
import { choice, el, fill } from "./dom.js";
import { brief, decimal, percent } from "./format.js";
import { smooth } from "./history.js";

const MOST_CASES = 6;
const SHARE = { format: (v) => percent(v, 0), range: (u, low, high) => [0, Math.max(0.05, Math.min(1, high * 1.08))] };
const FROM_ZERO = { range: (u, low, high) => [0, high > 0 ? high * 1.1 : 1] };

/**
 * All curves.
 * @returns {{nodes, set}} `nodes` are those of first interest, `main`, and `more`; `set(history)` draws anew.
 */
export function curves(signal) {
  let history = null;
  let kind = "step";
  let names = "";
  let chosen = null;
  let drawn = [];
  let charts = new AbortController();
  const main = el("div", { class: "grid" });
  const more = el("div", { class: "grid" });
  const axis = choice("Horizontal axis", "axis", [["step", "Step"], ["time", "Minutes"]], kind, (value) => {
    kind = value;
    build();
  });
  const section = (title, ...content) => el("section", { class: "stack", "aria-label": title }, content);
  const hint = el("span", { class: "hint" }, "drag to zoom, double-click to reset");
  const nodes = {
    main: section("Curves", el("div", { class: "section" }, el("h2", {}, "Curves"), axis, hint), main),
    more: section("Diagnostics", el("div", { class: "section" }, el("h2", {}, "Diagnostics")), more),
  };

  const x = () => (kind === "step" ? { label: "step", format: brief } : { label: "min", format: (v) => decimal(v, v < 10 ? 1 : 0) });
  const make = (title, options, columns) => {
    const made = chart(title, { x: x(), sync: "run", signal: AbortSignal.any([signal, charts.signal]), ...options });
    drawn.push(() => made.set([history.x(kind), ...columns(history)]));
    return made.node;
  };

  /** A noisy metric: each step faintly, and its moving average. */
  const noisy = (title, metric, options = {}) =>
    make(
      title,
      { ...options, series: [{ label: "each step", tone: "c1", faint: true, width: 1, hidden: true }, { label: options.label ?? "mean of 12", tone: "c1" }] },
      (h) => [h.column(metric), smooth(h.column(metric))],
    );

  /** One line for each X. */
  const cases = (title, prefix, known, options = {}) =>
    make(
      title,
      { ...options, empty: "No X is small enough for an exact oracle", series: known.map((name, i) => ({ label: name, tone: `c${i + 1}`, marks: true })) },
      (h) => known.map((name) => h.column(`${prefix}/${name}`)),
    );

  function build() {
    drawn = [];
    charts.abort();
    charts = new AbortController();
    const exact = history.names("log_z_exact");
    const known = exact.slice(0, MOST_CASES);
    const estimated = [...new Set([...exact, ...history.names("log_z")])];
    if (!estimated.includes(chosen)) chosen = estimated[0] ?? null;
    fill(
      main,
      noisy("Loss", "loss", { y: { log: true } }),
      logZ(estimated),
      cases("Total variation TV(σ, q)", "tv", known, { y: { ...FROM_ZERO, log: false } }),
      cases("KL(σ‖q), nats", "kl", known, { y: { ...FROM_ZERO, log: true } }),
      noisy("ESS of the draws, trend", "ess", { y: SHARE }),
      make(
        "Trajectories per second",
        { y: FROM_ZERO, series: [{ label: "sampled", tone: "c1" }, { label: "learned", tone: "c2" }] },
        (h) => [h.column("samples_per_second"), smooth(h.learned())],
      ),
      make(
        "Idle share of time",
        { y: SHARE, series: [{ label: "learner", tone: "c1" }, { label: "actors", tone: "c2" }] },
        (h) => [h.column("idle_ratio"), h.column("actor_idle_ratio")],
      ),
      noisy("Staleness, versions", "staleness", { y: FROM_ZERO }),
    );
    fill(
      more,
      cases("ESS of q, exact", "ess", known, { y: SHARE }),
      make(
        "Rollout actors sampling",
        { y: { range: (u, low, high) => [0, Math.max(2, high + 1)] }, series: [{ label: "actors", tone: "c1", width: 2 }] },
        (h) => [h.column("actors")],
      ),
      noisy("Mean log R, nats", "log_reward"),
      noisy("Gradient norm", "gradient_norm", { y: { log: true } }),
      noisy("Length of Z, tokens", "length_tokens"),
      noisy("Flow spread, nats", "flow_spread", { y: FROM_ZERO }),
      make("Learning rate", { y: FROM_ZERO, series: [{ label: "rate", tone: "c1" }] }, (h) => [h.column("learning_rate")]),
      make(
        "|log q of engine − learner|, nats",
        { y: { log: true }, series: [{ label: "mean", tone: "c1" }, { label: "largest", tone: "c2" }] },
        (h) => [h.column("log_q_mismatch_mean"), h.column("log_q_mismatch_max")],
      ),
    );
    for (const draw of drawn) draw();
  }

  function logZ(all) {
    const pick = el(
      "select",
      { "aria-label": "X of log Z", onchange: () => ((chosen = pick.value), build()) },
      all.map((name) => el("option", { value: name, selected: name === chosen }, name)),
    );
    return make(
      "log Z",
      {
        y: {},
        controls: all.length > 1 && pick,
        series: [
          { label: "each step", tone: "c1", faint: true, width: 1, hidden: true },
          { label: "estimate, mean of 12", tone: "c1" },
          { label: "exact", tone: "c3", dash: true },
        ],
      },
      (h) => {
        const steps = h.column(`log_z/${chosen}`);
        return [steps, smooth(steps), steady(h.column(`log_z_exact/${chosen}`))];
      },
    );
  }

  return {
    nodes,
    set(given) {
      history = given;
      const found = `${history.names("log_z_exact")} ${history.names("log_z")}`;
      if (found !== names) {
        names = found;
        build();
      } else for (const draw of drawn) draw();
    },
  };
}

/** The exact value holds until another one is measured: after an M step the posterior is a new one. */
function steady(column) {
  let value = null;
  return column.map((v) => (value = v ?? value));
}
