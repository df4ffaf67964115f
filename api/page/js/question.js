// The explorer's form: which posterior, which X, how many draws. It knows the request that it stands for.

import { call } from "./api.js";
import { choice, el, fill } from "./dom.js";
import { fieldsOf, xFields } from "./x.js";

const MOST = 4096;
const CORRECTIONS = [["none", "None"], ["snis", "SNIS"], ["smc", "SMC"]];
const RULES = [["mean", "Mean"], ["bayes", "Bayes"], ["vote", "Vote"]];
const HINTS = {
  none: "All samples weigh alike.",
  snis: "Self-normalised importance weights R/q.",
  smc: "A particle filter with the policy's flows as twists.",
  mean: "Mean of p(y | x, z) over chains.",
  bayes: "Chains weighted by p(z | x) / q(z | x).",
  vote: "One vote a chain.",
};

/**
 * The form.
 * @param {object[]} problems of `/v1/problems`
 * @param {URLSearchParams} given run and problem to begin with
 * @param {{ask, changed}} on called when it is submitted, and when anything changes
 * @returns {{node, request, mark}} `request()` is {path, body, compare}; `mark(refusal)` shows the field.
 */
export function question(problems, given, signal, on) {
  const asked = { mode: "samples", correction: "snis", rule: "mean" };
  const select = (id, onchange) => el("select", { id, onchange });
  const run = select("ask-run", () => choose(run.value));
  const problem = select("ask-problem", () => choose(run.value, problem.value));
  const version = select("ask-version", on.changed);
  const x = el("div", { class: "stack" });
  const n = el("input", { id: "ask-n", type: "number", min: 1, max: MOST, value: 256, required: true, oninput: on.changed });
  const seed = el("input", { id: "ask-seed", type: "number", min: 0, placeholder: "drawn", oninput: on.changed });
  const answers = el("textarea", { id: "ask-answers", rows: 4, spellcheck: "false", placeholder: "one a line, leading space included", oninput: on.changed });
  const hint = el("p", { class: "hint" });
  const how = el("div", { class: "stack" });
  const names = [...new Set(problems.map((p) => p.run))];
  let chosen = null;
  let fields = null;
  let besides = true;

  fill(run, names.map((name) => el("option", { value: name }, name)));
  const node = el(
    "form",
    { class: "panel", "aria-label": "What to ask", onsubmit: (event) => (event.preventDefault(), on.ask()) },
    el(
      "div",
      { class: "body stack" },
      choice("Ask for", "mode", [["samples", "Samples"], ["predictive", "Predictive"]], asked.mode, (value) => {
        asked.mode = value;
        mode();
      }),
      field(run.id, "Run", run),
      el("div", { class: "row" }, field(problem.id, "Problem", problem), field(version.id, "Adapter version", version)),
      x,
      how,
      el("div", { class: "row" }, field(n.id, "n", n), field(seed.id, "Seed", seed)),
      choice("Base LM beside the policy", "compare", [["yes", "Beside base LM"], ["no", "Policy alone"]], "yes", (value) => (besides = value === "yes")),
      on.actions,
    ),
  );

  function mode() {
    const predictive = asked.mode === "predictive";
    const key = predictive ? "rule" : "correction";
    const legend = predictive ? "Rule" : "Correction";
    const pick = choice(legend, key, predictive ? RULES : CORRECTIONS, asked[key], (value) => {
      asked[key] = value;
      hint.textContent = HINTS[value];
      on.changed();
    });
    hint.textContent = HINTS[asked[key]];
    const titled = el("div", { class: "field", id: `ask-${key}` }, el("span", { class: "hint", "aria-hidden": "true" }, legend), pick, hint);
    fill(how, predictive && field(answers.id, "Answers Y", answers), titled);
    on.changed();
  }

  function choose(name, wanted) {
    run.value = name;
    const own = problems.filter((p) => p.run === name);
    chosen = own.find((p) => p.problem === wanted) ?? own[0];
    fill(problem, own.map((p) => el("option", { value: p.problem, selected: p === chosen }, p.problem)));
    answers.value = chosen.labels.join("\n");
    fields = xFields(chosen, on.changed);
    fill(x, fields.node);
    versions(name);
    history.replaceState(null, "", `#/explore?${new URLSearchParams({ run: name, problem: chosen.problem })}`);
    mode();
  }

  async function versions(name) {
    const before = version.dataset.run === name ? version.value : (given.get("version") ?? "latest");
    version.dataset.run = name;
    const option = (value, label) => el("option", { value, selected: value === before }, label);
    fill(version, option("latest", "latest"), option("0", "0 · base LM"));
    const found = await call(`v1/runs/${encodeURIComponent(name)}/adapters`, { signal }).catch(() => ({ adapters: [] }));
    if (version.dataset.run !== name) return;
    const listed = found.adapters.map(({ version, source }) => option(String(version), `${version} · ${source}`));
    fill(version, option("latest", "latest"), listed.reverse(), option("0", "0 · base LM"));
  }

  function request() {
    const body = { run: run.value, problem: chosen.problem, ...fieldsOf(fields.value(), chosen) };
    if (version.value !== "latest") body.version = Number(version.value);
    body.n = Number(n.value);
    if (seed.value !== "") body.seed = Number(seed.value);
    if (asked.mode === "samples") body.correction = asked.correction;
    else {
      body.answers = answers.value.split("\n").filter((line) => line !== "");
      body.rule = asked.rule;
    }
    return { path: `v1/posterior/${asked.mode}`, body, compare: besides && body.version !== 0 };
  }

  /** Show which field a refusal is about; without one, that none is wrong. */
  function mark(refusal) {
    for (const wrong of node.querySelectorAll("[aria-invalid]")) wrong.removeAttribute("aria-invalid");
    const name = refusal?.field?.replace("fields.", "x-");
    const control = name && (node.querySelector(`#ask-${CSS.escape(name)}`) ?? node.querySelector(`#ask-x-${CSS.escape(name)}`));
    control?.setAttribute("aria-invalid", "true");
  }

  choose(names.includes(given.get("run")) ? given.get("run") : names[0], given.get("problem"));
  return { node, request, mark };
}

/** A labelled control. */
export function field(id, label, control) {
  return el("div", { class: "field" }, el("label", { for: id }, label), control);
}
