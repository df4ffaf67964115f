// Rollout actors of a run, and how many of them there shall be.

import { call } from "./api.js";
import { el, fill, panel, say } from "./dom.js";
import { count, percent, rate, seconds, UNKNOWN } from "./format.js";
import { refused } from "./notice.js";

const SILENT_SECONDS = 10;
const MOST = 1024;
const COLUMNS = ["Actor", "State", "Version", "Samples/s", "Tokens/s", "Samples", "Idle", "Waits for", "Last beat"];

/**
 * The panel.
 * @returns {{node, set, ended}} `set(actors, version)` shows an answer of `/actors` beside the newest version.
 */
export function actors(name, signal) {
  const body = el("tbody");
  const trouble = el("div");
  const summary = el("span", { class: "muted", role: "status" });
  const input = el("input", { type: "number", min: 0, max: MOST, value: 1, id: "desired", "aria-label": "Rollout actors wanted" });
  const step = (by, label, sign) =>
    el(
      "button",
      {
        type: "button",
        class: "icon",
        "aria-label": label,
        onclick: () => {
          input.value = String(Math.min(MOST, Math.max(0, Number(input.value) + by)));
          input.dataset.touched = "";
        },
      },
      sign,
    );
  const form = el(
    "form",
    { class: "actions", onsubmit: scale },
    summary,
    el("span", { class: "stepper" }, step(-1, "One actor fewer", "−"), input, step(1, "One actor more", "+")),
    el("button", { class: "primary" }, "Scale"),
  );
  input.addEventListener("input", () => (input.dataset.touched = ""));
  const table = el(
    "div",
    { class: "scroll" },
    el("table", {}, el("thead", {}, el("tr", {}, COLUMNS.map((c, i) => el("th", { scope: "col", class: i > 1 && i < 7 ? "number" : null }, c)))), body),
  );
  const node = panel("Rollout actors", form, trouble, table);

  async function scale(event) {
    event.preventDefault();
    fill(trouble);
    try {
      const path = `v1/runs/${encodeURIComponent(name)}/actors`;
      const found = await call(path, { method: "PUT", body: { desired: Number(input.value) }, signal });
      delete input.dataset.touched;
      set(found);
      say(`${found.desired} rollout actors wanted.`);
    } catch (refusal) {
      fill(trouble, el("div", { class: "body" }, refused(refusal)));
    }
  }

  function set({ desired, actors }, version = null) {
    const sampling = actors.filter((actor) => state(actor) === "sampling").length;
    const text = `${sampling} sampling, ${desired ?? UNKNOWN} wanted`;
    if (summary.textContent !== text) summary.textContent = text;  // else it would be read aloud again
    if (!("touched" in input.dataset) && desired !== null && document.activeElement !== input)
      input.value = String(desired);
    fill(body, actors.length ? actors.map((actor) => row(actor, version)) : nobody("No rollout actor has reported yet."));
  }

  function ended() {
    summary.textContent = "";
    for (const control of form.elements) control.disabled = true;
    fill(body, nobody("The run is not live: it has no actors."));
  }

  function live() {
    for (const control of form.elements) control.disabled = false;
  }

  return { node, set, ended, live };
}

function state(actor) {
  return actor.age_seconds > SILENT_SECONDS ? "silent" : (actor.fields.state ?? UNKNOWN);
}

function row(actor, newest) {
  const { fields } = actor;
  const is = state(actor);
  const tone = { sampling: "good", starting: "busy", silent: "bad" }[is];
  const behind = newest !== null && fields.version !== undefined ? newest - fields.version : 0;
  return el(
    "tr",
    {},
    el("td", { class: "mono" }, actor.name),
    el("td", {}, el("span", { class: "badge", "data-tone": tone }, is)),
    el("td", { class: "number" }, fields.version ?? UNKNOWN, behind > 0 && el("span", { class: "muted" }, ` (−${behind})`)),
    el("td", { class: "number" }, rate(fields.samples_per_second)),
    el("td", { class: "number" }, rate(fields.tokens_per_second)),
    el("td", { class: "number" }, count(fields.samples)),
    el("td", { class: "number" }, percent(fields.idle_ratio)),
    el("td", { class: "muted" }, fields.waiting_for || UNKNOWN),
    el("td", { class: "muted" }, `${seconds(actor.age_seconds)} ago`),
  );
}

function nobody(text) {
  return el("tr", {}, el("td", { colspan: COLUMNS.length, class: "muted" }, text));
}
