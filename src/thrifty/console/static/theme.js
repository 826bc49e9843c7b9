// Sets the chosen theme before the first paint. Without a choice the system's theme applies.
try {
  const chosen = localStorage.getItem("thrifty-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be forbidden; the system's theme applies.
}
