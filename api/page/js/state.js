// States of a run, and what its metrics say at a glance.

import { el } from "./dom.js";

const TONES = { running: "good", starting: "busy", stopping: "busy", failed: "bad", finished: "done", stopped: "done" };

export const LIVE = new Set(["starting", "running", "stopping"]);

export function badge(state) {
  return el("span", { class: "badge", "data-tone": TONES[state] }, state);
}

/** How far a run is. */
export function progress({ step, steps }) {
  const share = Math.min(1, (step ?? 0) / steps);
  return el(
    "span",
    { class: "progress" },
    el("span", { class: "bar", vars: { "--share": share } }, el("i")),
    el("span", { class: "number" }, `${(step ?? 0).toLocaleString("en")} / ${steps.toLocaleString("en")}`),
  );
}

/** The largest of the metrics whose names begin with `prefix/`; null: there is none. */
export function worst(metrics, prefix) {
  const values = Object.entries(metrics)
    .filter(([name, value]) => name.startsWith(`${prefix}/`) && value !== null)
    .map(([, value]) => value);
  return values.length ? Math.max(...values) : null;
}

/** The largest |log Ẑ − log Z| over X's with an oracle, nats; null: there is none. */
export function logZError(metrics) {
  const gaps = Object.entries(metrics)
    .filter(([name]) => name.startsWith("log_z_exact/"))
    .map(([name, exact]) => [metrics[name.replace("log_z_exact/", "log_z/")], exact])
    .filter(([estimate, exact]) => Number.isFinite(estimate) && Number.isFinite(exact))
    .map(([estimate, exact]) => Math.abs(estimate - exact));
  return gaps.length ? Math.max(...gaps) : null;
}
