// What happens in a run, as it happens; of an ended one what its driver printed.

import { events, text } from "./api.js";
import { el, fill, panel } from "./dom.js";
import { clock } from "./format.js";
import { pause } from "./poll.js";

const MOST = 300;
const AGAIN_SECONDS = 3;

/**
 * The panel.
 * @returns {{node, follow, printed}} `follow` listens until the signal, `printed` shows the driver's output.
 */
export function log(name, signal) {
  const path = `v1/runs/${encodeURIComponent(name)}`;
  const list = el("ol");
  const shown = el("div", { class: "events", role: "log", "aria-label": "Events", "aria-live": "off", tabindex: 0 }, list);
  const body = el("div", {}, shown);
  const node = panel("Events", null, body);
  let last = "0-0";
  let following = false;

  function add(event) {
    last = event.id;
    list.prepend(
      el(
        "li",
        {},
        el("time", { datetime: new Date(event.unix_seconds * 1000).toISOString() }, clock(event.unix_seconds)),
        el("span", { class: "kind", title: event.kind }, event.kind),
        el("span", {}, event.message),
      ),
    );
    while (list.childElementCount > MOST) list.lastChild.remove();
  }

  async function follow() {
    if (following) return;
    following = true;
    fill(body, shown);
    while (following && !signal.aborted) {
      try {
        for await (const { event, data } of events(`${path}/events?after=${last}`, { signal })) {
          if (event === "end") following = false;
          else add(JSON.parse(data));
        }
      } catch (cause) {
        if (cause.status > 0) following = false;  // refused; what is merely unreachable comes back
      }
      await pause(AGAIN_SECONDS, signal);
    }
  }

  async function printed() {
    if (list.childElementCount) return;
    const lines = await text(`${path}/log?lines=60`, { signal }).catch(() => "");
    if (lines.trim()) fill(body, el("pre", { tabindex: 0, "aria-label": "The driver's log" }, lines));
    else fill(body, el("p", { class: "empty" }, "Events are kept while a run is live."));
  }

  return { node, follow, printed };
}
