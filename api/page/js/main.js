// The page: which view the address names, and what stands above all of them.

import { call } from "./api.js";
import { el, fill } from "./dom.js";
import { startKey } from "./key.js";
import { poll } from "./poll.js";
import { startTheme } from "./theme.js";
import { explorer } from "./explorer.js";
import { run } from "./run.js";
import { runs } from "./runs.js";

const ENGINE_SECONDS = 5;
const main = document.getElementById("main");
let shown = new AbortController();

/** The view and its parameters: `#/`, `#/runs/NAME`, `#/explore?run=NAME`. */
function address() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [first, ...rest] = path.split("/");
  const given = new URLSearchParams(query);
  if (first === "explore") return { name: "explore", view: explorer, title: "Explorer", given };
  if (first === "runs" && rest[0]) {
    given.set("run", decodeURIComponent(rest[0]));
    return { name: "runs", view: run, title: given.get("run"), given };
  }
  return { name: "runs", view: runs, title: "Runs", given };
}

function show() {
  shown.abort();
  shown = new AbortController();
  const { name, view, title, given } = address();
  document.title = `${title} · posteriori`;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view(fill(main), given, shown.signal);
}

function navigate() {
  show();
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

async function engine() {
  const place = document.getElementById("engine");
  try {
    const { ready, reasons, model, engine } = await call("ready").catch(notReady);
    const tone = ready ? "good" : "busy";
    const text = ready ? `${model} · ${engine}` : `${model}: ${reasons[0]}`;
    if (place.textContent !== text)
      fill(place, el("span", { class: "badge", "data-tone": tone, title: reasons[0] ?? "The engine answers." }, text));
  } catch (cause) {
    fill(place, el("span", { class: "badge", "data-tone": "bad", title: cause.fix }, cause.problem));
  }
}

/** 503 of `/ready` has reasons, and not the shape of a refusal. */
async function notReady(refusal) {
  if (refusal.status !== 503) throw refusal;
  return fetch("ready").then((response) => response.json());
}

startTheme(document.getElementById("theme-button"));
startKey(show);
window.addEventListener("hashchange", navigate);
show();
poll(() => ENGINE_SECONDS, new AbortController().signal, engine);
