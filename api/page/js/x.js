// X: one of the problem's own, or typed anew.

import { el, fill } from "./dom.js";

const NEW = "\u0000new";

/**
 * Inputs for the X of a problem, filled with its first one. To change a field is to ask for a new X.
 * @returns {{node, value}} `value()` is {prompt} or {fields}.
 */
export function xFields(problem, changed) {
  const names = [...new Set([...problem.policy_fields, ...problem.reward_fields])].sort();
  const inputs = names.map((name) =>
    el("textarea", { id: `ask-x-${name}`, rows: name === "x" ? 3 : 2, spellcheck: "false", oninput: () => ((prompt.value = NEW), changed()) }),
  );
  const prompt = el("select", { id: "ask-prompt", onchange: () => (load(), changed()) });
  const more = problem.prompts + problem.test_prompts - problem.prompt_ids.length;
  fill(
    prompt,
    problem.prompt_ids.map((id) => el("option", { value: id }, `prompt ${id}`)),
    el("option", { value: NEW }, "a new X"),
  );

  function load() {
    const known = problem.prompt_fields[problem.prompt_ids.indexOf(prompt.value)];
    if (known) names.forEach((name, i) => (inputs[i].value = known[name] ?? ""));
    else inputs[0]?.focus();
  }

  load();
  const node = el(
    "div",
    { class: "stack" },
    el("div", { class: "field" }, el("label", { for: prompt.id }, "X"), prompt, more > 0 && el("p", { class: "hint" }, `and ${more} more, not listed`)),
    names.map((name, i) =>
      el("div", { class: "field" }, el("label", { for: inputs[i].id }, `{${name}}`, role(problem, name)), inputs[i]),
    ),
  );
  const value = () =>
    prompt.value === NEW
      ? { fields: Object.fromEntries(names.map((name, i) => [name, inputs[i].value])) }
      : { prompt: prompt.value };
  return { node, value };
}

/** The part of a request that names X: `x` and `y` are short for the fields of these names; an empty Y is unknown. */
export function fieldsOf({ prompt, fields }, problem) {
  if (prompt !== undefined) return { prompt };
  const body = {};
  for (const [name, text] of Object.entries(fields)) {
    if (text === "" && !problem.policy_fields.includes(name)) continue;
    if (name === "x" || name === "y") body[name] = text;
    else body.fields = { ...body.fields, [name]: text };
  }
  return body;
}

function role({ policy_fields }, name) {
  return policy_fields.includes(name) ? "" : " · read by log R alone; may stay empty";
}
