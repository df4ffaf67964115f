// Distinct Z's in order, with what the policy, the base LM and the weights make of each.

import { copyButton } from "./snippet.js";
import { el, fill, panel } from "./dom.js";
import { decimal, percent, UNKNOWN } from "./format.js";

const FIRST = 30;

/** A panel of distinct Z's; `groups` are those of `distinct`, `compared` says whether the base LM drew too. */
export function ranking(groups, { compared, weighted, particles, known }) {
  const columns = [
    { name: "Z" },
    weighted && { name: "Weight", key: (g) => g.weight, tone: "posterior", title: "Normalised weight: the estimate of the posterior" },
    { name: "Policy", key: (g) => g.policy, tone: "policy", title: "Share of the policy's draws" },
    compared && { name: "Base LM", key: (g) => g.base, tone: "base", title: "Share of the base LM's draws" },
    { name: "log q", key: (g) => (g.drawn ? g.sample.log_q : null) },
    { name: "log R", known, key: (g) => g.sample.log_reward },
    !particles && { name: "log w", known, key: (g) => (g.drawn ? g.sample.log_weight : null), title: "log R − log q" },
  ].filter(Boolean);
  let sorted = columns[1];
  let down = true;
  let most = FIRST;
  // One scale for all bars: they are there to be compared.
  const mostShare = Math.max(...columns.filter((c) => c.tone).flatMap((c) => groups.map(c.key)));
  const head = el("tr");
  const body = el("tbody");
  const more = el("button", { type: "button", onclick: () => ((most = Infinity), show()) });
  const tsv = () => [columns.map((c) => c.name).join("\t"), ...ordered().map((g) => columns.map((c) => (c.key ? c.key(g) : JSON.stringify(g.sample.text))).join("\t"))].join("\n");

  const order = (column) => {
    down = sorted === column ? !down : true;
    sorted = column;
    show();
    head.querySelector("[aria-sort] button").focus();
  };
  const ordered = () => {
    const value = (group) => sorted.key(group) ?? -Infinity;
    const found = [...groups].sort((a, b) => value(b) - value(a) || b.base - a.base || b.policy - a.policy);
    return down ? found : found.reverse();
  };

  function show() {
    fill(
      head,
      el("th", { scope: "col", class: "number" }, "#"),
      columns.map((column) =>
        el(
          "th",
          { scope: "col", title: column.title, class: column.key && !column.tone && "number", "aria-sort": sorted === column && (down ? "descending" : "ascending") },
          column.key ? el("button", { type: "button", onclick: () => order(column) }, column.name) : column.name,
        ),
      ),
    );
    const rows = ordered().slice(0, most);
    fill(body, rows.map((group, i) => el("tr", {}, el("td", { class: "number muted" }, String(i + 1)), columns.map((c) => cell(c, group, mostShare)))));
    more.hidden = groups.length <= most;
    more.textContent = `Show all ${groups.length.toLocaleString("en")}`;
  }

  show();
  return panel(
    `${groups.length.toLocaleString("en")} distinct Z`,
    copyButton("Copy as TSV", tsv),
    el("div", { class: "scroll" }, el("table", { class: "ranking" }, el("thead", {}, head), body)),
    el("div", { class: "body", hidden: groups.length <= FIRST }, more),
  );
}

function cell(column, group, mostShare) {
  if (!column.key) return el("td", { class: "text" }, written(group.sample));
  const value = column.key(group);
  if (!column.tone) {
    // What JSON has no number for is log 0.
    const none = column.known && group.sample.log_reward === null && column.name !== "log q" ? "−∞" : UNKNOWN;
    return el("td", { class: "number" }, value === null ? none : decimal(value, 2));
  }
  const bar = el("span", { class: "bar", vars: { "--share": value / mostShare } }, value > 0 && el("i"));
  return el("td", { class: "share" }, el("div", { class: `share-bar tone-${column.tone}` }, bar, el("span", { class: "number" }, value > 0 ? percent(value, value < 0.0995 ? 2 : 1) : UNKNOWN)));
}

/** Z as text: a leading space is shown, and what a tool wrote is marked. */
export function written({ text, spans }) {
  if (text === "") return el("span", { class: "muted" }, "(empty)");
  const characters = Array.from(text);
  const parts = [];
  let place = 0;
  if (characters[0] === " ") {
    parts.push(el("span", { class: "space", "aria-hidden": "true" }, "·"));
    place = 1;
  }
  for (const span of spans) {
    parts.push(characters.slice(place, span.text_start).join(""));
    const title = span.failed ? "the tool failed" : "written by the tool";
    parts.push(el("mark", { class: span.failed ? "tool failed" : "tool", title }, characters.slice(span.text_start, span.text_stop).join("")));
    place = span.text_stop;
  }
  return [...parts, characters.slice(place).join("")];
}
