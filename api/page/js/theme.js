// Light or dark: the system's wish, or the one that was chosen here.

import { fill, glyph } from "./dom.js";

const CHOSEN = "posteriori-theme";
const SUN = "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M4.9 4.9l1.5 1.5M17.6 17.6l1.5 1.5M2 12h2M20 12h2M4.9 19.1l1.5-1.5M17.6 6.4l1.5-1.5";
const MOON = "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5";
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Set the theme, and let the button change it. */
export function startTheme(button) {
  apply(button);
  dark.addEventListener("change", () => apply(button));
  button.addEventListener("click", () => {
    const other = current() === "dark" ? "light" : "dark";
    localStorage.setItem(CHOSEN, other);
    apply(button);
  });
}

/** A colour of the theme by its name, such as `policy`. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Call when colours have changed, until the signal. */
export function onTheme(signal, redraw) {
  window.addEventListener("theme", redraw, { signal });
}

function current() {
  return localStorage.getItem(CHOSEN) ?? (dark.matches ? "dark" : "light");
}

function apply(button) {
  const theme = current();
  document.documentElement.dataset.theme = theme;
  const other = theme === "dark" ? "light" : "dark";
  button.setAttribute("aria-label", `Use the ${other} theme`);
  button.title = `Use the ${other} theme`;
  fill(button, glyph(theme === "dark" ? SUN : MOON));
  window.dispatchEvent(new Event("theme"));
}
