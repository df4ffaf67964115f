// Asking again and again, while somebody looks.

/** Call `ask` now and `seconds()` after each answer, until the signal; not while the tab is hidden. */
export async function poll(seconds, signal, ask) {
  while (!signal.aborted) {
    if (!document.hidden) await ask();
    await pause(seconds(), signal);
  }
}

/** Wait, at most until the signal. */
export function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
