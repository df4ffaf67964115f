// The posterior predictive of listed answers: bars with their errors, and the entropy in its two parts.

import { el, fill, panel } from "./dom.js";
import { count, decimal, percent } from "./format.js";
import { warned } from "./notice.js";
import { written } from "./ranking.js";

/** Show answers of `/predictive`, of the policy and, beside it, of the base LM (or null). */
export function showPredictive(place, policy, base) {
  const both = [
    [policy.version ? `Policy, version ${policy.version}` : "Base LM", policy.version ? "policy" : "base", policy],
    base && ["Base LM", "base", base],
  ].filter(Boolean);
  fill(
    place,
    both.flatMap(([name, , { warnings }]) => warnings.map(({ code, message }) => warned({ code, message: `${name}: ${message}` }))),
    panel(
      "p̂(y | x)",
      el("span", { class: "muted" }, `${policy.run} / ${policy.problem} · rule ${policy.rule} · ${count(policy.chains)} chains · seed ${policy.seed}`),
      el(
        "div",
        { class: "body stack" },
        el("div", { class: "actions" }, both.map(([name, tone]) => el("span", { class: `tone-${tone}` }, el("span", { class: "swatch" }), name)), el("span", { class: "hint" }, "± one standard error; whiskers: two")),
        el("dl", { class: "answers" }, policy.answers.map((answer, i) => bars(answer, i, both, policy.best))),
      ),
    ),
    panel("Predictive entropy, nats", parts(), el("div", { class: "body" }, el("dl", { class: "answers" }, both.map(entropy)))),
  );
}

function parts() {
  const kinds = [["within", "within chains"], ["between", "between chains (mutual information)"]];
  return kinds.map(([kind, label]) => el("span", { class: `muted tone-${kind}` }, el("span", { class: "swatch" }), label));
}

function bars({ answer }, place, both, best) {
  const thin = both.length > 1 ? " thin" : "";
  const found = both.map(([, tone, { answers }]) => [tone, answers[place]]);
  return [
    el("dt", {}, el("span", { class: "mono" }, written({ text: answer, spans: [] })), answer === best && el("span", { class: "muted" }, " best")),
    el("dd", { class: "pair" }, found.map(([tone, a]) => bar(tone, a, thin))),
    el("dd", { class: "number" }, found.map(([, a]) => el("div", {}, `${percent(a.probability)} ± ${percent(a.standard_error)}`))),
  ];
}

function bar(tone, { probability, standard_error }, thin) {
  const inside = (share) => Math.min(1, Math.max(0, share));
  const vars = {
    "--share": probability,
    "--low": inside(probability - 2 * standard_error),
    "--high": inside(probability + 2 * standard_error),
  };
  return el("div", { class: `track${thin} tone-${tone}`, vars }, el("i"), standard_error > 0 && el("b"));
}

function entropy([name, tone, { entropy, within_entropy, mutual_information, answers }]) {
  const most = Math.log(answers.length);
  const part = (value, kind, title) => el("i", { class: `tone-${kind}`, title, vars: { "--share": Math.max(0, value ?? 0) / most } });
  return [
    el("dt", { class: `tone-${tone}` }, el("span", { class: "swatch" }), name),
    el(
      "dd",
      {},
      el(
        "div",
        { class: "entropy", role: "img", "aria-label": `${decimal(entropy)} of at most ${decimal(most)} nats` },
        part(within_entropy, "within", "within chains"),
        part(mutual_information, "between", "between chains: mutual information"),
      ),
    ),
    el("dd", { class: "number" }, `${decimal(entropy)} = ${decimal(within_entropy)} within + ${decimal(mutual_information)} between`),
  ];
}
