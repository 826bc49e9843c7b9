// The theme in force: the person's choice, or else the system's.
import { signal } from "./vendor.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const read = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");

/** "light" or "dark". */
export const theme = signal(read());
dark.addEventListener("change", () => { theme.value = read(); });

export function switchTheme() {
  const next = theme.value === "dark" ? "light" : "dark";
  root.dataset.theme = next;
  theme.value = next;
  try {
    localStorage.setItem("thrifty-theme", next);
  } catch {
    // Kept for this page only.
  }
}
