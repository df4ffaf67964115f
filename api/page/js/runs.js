// All runs in the folder that is served.

import { call } from "./api.js";
import { el, fill } from "./dom.js";
import { count, decimal, percent } from "./format.js";
import { empty, refused } from "./notice.js";
import { poll } from "./poll.js";
import { badge, LIVE, logZError, progress, worst } from "./state.js";

const SECONDS = 2;
const COLUMNS = [
  ["Run"],
  ["State"],
  ["Progress"],
  ["Problems"],
  ["Version", true],
  ["Actors", true],
  ["Loss", true],
  ["TV", true, "Total variation to the exact posterior, of the worst X"],
  ["|log Ẑ − log Z|", true, "Of the worst X, nats"],
  ["ESS", true, "Effective share of the learner's on-policy draws"],
];

export function runs(main, _, signal) {
  const trouble = el("div");
  const body = el("tbody");
  const head = COLUMNS.map(([name, number, title]) => el("th", { scope: "col", class: number && "number", title }, name));
  const table = el(
    "div",
    { class: "panel scroll" },
    el("table", { "aria-label": "Runs" }, el("thead", {}, el("tr", {}, head)), body),
  );
  const none = el("div", { class: "panel" }, empty("There are no runs in this folder yet. Train one:", "posteriori train RUN.yaml"));
  const place = el("div");
  fill(main, el("div", { class: "head" }, el("h1", {}, "Runs")), el("div", { class: "stack" }, trouble, place));
  let before = "";

  poll(() => SECONDS, signal, async () => {
    try {
      const found = await call("v1/runs", { signal });
      fill(trouble);
      const now = JSON.stringify(found);
      if (now === before) return;  // what has the focus keeps it
      before = now;
      const focused = document.activeElement?.getAttribute("href");
      fill(body, ordered(found.runs).map(row));
      fill(place, found.runs.length ? table : none);
      if (focused) body.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    } catch (refusal) {
      if (!signal.aborted) fill(trouble, refused(refusal));
    }
  });
}

function ordered(found) {
  return [...found].sort((a, b) => LIVE.has(b.state) - LIVE.has(a.state) || a.run.localeCompare(b.run));
}

function row(run) {
  const { metrics } = run;
  return el(
    "tr",
    {},
    el("td", {}, el("a", { class: "name", href: `#/runs/${encodeURIComponent(run.run)}` }, run.run)),
    el("td", {}, badge(run.state)),
    el("td", {}, progress(run)),
    el("td", { class: "muted" }, run.problems.slice(0, 4).join(", "), run.problems.length > 4 && " …"),
    el("td", { class: "number" }, count(run.version)),
    el("td", { class: "number" }, count(run.desired_actors)),
    el("td", { class: "number" }, decimal(metrics.loss)),
    el("td", { class: "number" }, decimal(worst(metrics, "tv"))),
    el("td", { class: "number" }, decimal(logZError(metrics))),
    el("td", { class: "number" }, percent(metrics.ess)),
  );
}
