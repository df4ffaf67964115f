// The posterior explorer: ask for samples or predictions of any run, and look at them.

import { call } from "./api.js";
import { draw } from "./drawing.js";
import { el, fill, panel, say } from "./dom.js";
import { count } from "./format.js";
import { empty, refused } from "./notice.js";
import { showPredictive } from "./predictive.js";
import { question } from "./question.js";
import { showSamples } from "./samples.js";
import { copyButton, curl, python } from "./snippet.js";

export async function explorer(main, given, signal) {
  const title = el("div", { class: "head" }, el("h1", {}, "Posterior explorer"));
  fill(main, title);
  let problems;
  try {
    ({ problems } = await call("v1/problems", { signal }));
  } catch (refusal) {
    if (!signal.aborted) fill(main, title, refused(refusal));
    return;
  }
  if (signal.aborted) return;
  if (!problems.length) {
    const none = "No run of this base LM has a problem to sample yet. Train one:";
    fill(main, title, el("div", { class: "panel" }, empty(none, "posteriori train RUN.yaml")));
    return;
  }
  const go = el("button", { class: "primary" }, "Draw");
  const cancel = el("button", { type: "button", hidden: true, onclick: () => running?.abort() }, "Cancel");
  const status = el("span", { class: "hint", role: "status" });
  const trouble = el("div");
  const results = el("div", { class: "stack", id: "results" });
  const code = el("pre", { tabindex: 0, "aria-label": "The request as a program" });
  let running = null;
  // The view's charts go with the answers that they show.
  let shown = new AbortController();
  let form = null;
  form = question(problems, given, signal, {
    ask,
    changed: () => form && (code.textContent = python(form.request())),  // null while it is made
    actions: el("div", { class: "actions" }, go, cancel, status),
  });
  const copies = [
    copyButton("Copy curl", () => curl(form.request())),
    copyButton("Copy Python", () => python(form.request())),
  ];
  code.textContent = python(form.request());
  fill(results, el("div", { class: "panel" }, empty("Draw samples to see how they weigh against the posterior.")));
  fill(
    main,
    title,
    el("div", { class: "explorer" }, form.node, el("div", { class: "stack" }, trouble, results, panel("The same request", copies, code))),
  );

  async function ask() {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    const stop = AbortSignal.any([signal, mine.signal]);
    const asked = form.request();
    fill(trouble);
    form.mark(null);
    go.disabled = true;
    cancel.hidden = false;
    status.textContent = "Drawing …";
    try {
      const present = await answer(asked, stop);
      shown.abort();
      shown = new AbortController();
      present(AbortSignal.any([signal, shown.signal]));
      status.textContent = "";
      say("The answer is there.");
    } catch (cause) {
      status.textContent = stop.aborted ? "Cancelled" : "";
      if (!stop.aborted) {
        fill(trouble, refused(cause));
        form.mark(cause);
      }
    } finally {
      // The other of two requests has nobody left to answer to.
      mine.abort();
      go.disabled = false;
      cancel.hidden = true;
    }
  }

  /** Ask policy and base LM at the same time; what shows their answers. */
  async function answer({ path, body, compare }, stop) {
    const base = { ...body, version: 0 };
    if (path.endsWith("predictive")) {
      const ask = (what) => call(path, { method: "POST", body: what, signal: stop });
      const [found, beside] = await Promise.all([ask(body), compare ? ask(base) : null]);
      return () => showPredictive(results, found, beside);
    }
    const drawn = {};
    const ask = (what, whose) =>
      draw(path, what, stop, (samples) => {
        drawn[whose] = samples.length;
        const all = Object.values(drawn).reduce((sum, n) => sum + n, 0);
        status.textContent = `${count(all)} of ${count(body.n * (compare ? 2 : 1))}`;
      });
    const [found, beside] = await Promise.all([ask(body, "policy"), compare ? ask(base, "base") : null]);
    const exact = await exactLogZ(found.end, stop);
    return (seen) => showSamples(results, found, beside, exact, seen);
  }
}

/** log Z of an X as the run's oracle has it; null where there is none, or the X is new. */
async function exactLogZ({ run, problem, prompt }, signal) {
  const { metrics } = await call(`v1/runs/${encodeURIComponent(run)}`, { signal });
  const names = prompt === "new" ? [] : [`log_z_exact/${problem}/${prompt}`, `log_z_exact/${problem}`];
  return names.map((name) => metrics[name]).find(Number.isFinite) ?? null;
}
