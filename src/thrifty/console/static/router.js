// Addresses behind the `#`: `#/requests/ID?error=any` is the page `requests`, its rest and query.
import { computed, signal } from "./vendor.js";

const hash = signal(location.hash);
addEventListener("hashchange", () => { hash.value = location.hash; });

export const route = computed(() => {
  const [path, search = ""] = hash.value.replace(/^#\/?/, "").split("?");
  const [page, ...rest] = path.split("/").map(decode);
  return { page: page || "overview", rest, query: Object.fromEntries(new URLSearchParams(search)) };
});

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** The address of a page. */
export function link(page, rest = [], query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  const search = kept.length ? `?${new URLSearchParams(kept)}` : "";
  return `#/${[page, ...rest].map(encodeURIComponent).join("/")}${search}`;
}

export function go(page, rest, query) {
  location.hash = link(page, rest, query);
}
