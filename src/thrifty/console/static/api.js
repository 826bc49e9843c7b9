// Calls the service, and follows its events. Paths are relative, so that a proxy may add a prefix.
import { signal } from "./vendor.js";

const BASE = new URL(".", document.baseURI);

/** Who is signed in: {keys_exist, name, role, tenant, provider, may, version}; null until it is
 * known. `provider` is the identity provider's name, if people may sign in there. */
export const session = signal(null);
/** The body of GET /api/v1/status, kept up to date; null until it is known. */
export const status = signal(null);
/** The figures of the last second; null until there are any. */
export const figures = signal(null);
/** The figures of the last two minutes, oldest first. */
export const recent = signal([]);
/** "connecting", "live", "away" (the database), "lost" (the service). */
export const connection = signal("connecting");

const KEPT_FIGURES = 120;

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function url(path) {
  return new URL(path, BASE);
}

/** Whether the person may do what the role allows. */
export function may(role) {
  return session.value?.may.includes(role) ?? false;
}

/** One request; resolves to the JSON of its answer, rejects with ApiError. */
export async function call(method, path, body, { signal: abort } = {}) {
  const options = { method, headers: { accept: "application/json" }, signal: abort };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await request(path, options);
  return answer.json();
}

export const get = (path, options) => call("GET", path, undefined, options);

/** The query of a path, without what is empty. */
export function query(values) {
  const kept = Object.entries(values).filter(([, value]) => value !== "" && value != null
    && value !== false);
  return kept.length ? `?${new URLSearchParams(kept)}` : "";
}

/** A request whose answer is OK; rejects with ApiError. */
export async function request(path, options) {
  let answer;
  try {
    answer = await fetch(url(path), { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The service cannot be reached. It may be restarting.");
  }
  if (answer.ok) return answer;
  const found = (await answer.json().catch(() => null))?.error ?? {};
  if (answer.status === 401) await readSession().catch(() => {});
  throw new ApiError(answer.status, found.code, found.message ?? `HTTP ${answer.status}`);
}

export async function readSession() {
  const answer = await fetch(url("api/v1/session"), { credentials: "same-origin" });
  if (!answer.ok) throw new ApiError(answer.status, "", `HTTP ${answer.status}`);
  session.value = await answer.json();
  return session.value;
}

export async function signIn(key) {
  session.value = await call("POST", "api/v1/session", { key });
}

export async function signOut() {
  await call("DELETE", "api/v1/session");
  stopEvents();
  status.value = null;
  await readSession();
}

let source = null;
let retry = 0;

/** Follow the events from now on. Browsers connect again by themselves, but not after an error of
 * HTTP, such as a 503 while the service restarts. */
export function followEvents() {
  if (source || !may("viewer")) return;
  source = new EventSource(url("api/v1/events"));
  source.addEventListener("status", (event) => {
    status.value = JSON.parse(event.data);
  });
  source.addEventListener("figures", (event) => {
    connection.value = "live";
    figures.value = JSON.parse(event.data);
    recent.value = [...recent.value, figures.value].slice(-KEPT_FIGURES);
  });
  source.addEventListener("away", () => { connection.value = "away"; });
  source.addEventListener("error", () => {
    connection.value = "lost";
    if (source?.readyState !== EventSource.CLOSED) return;
    stopEvents();
    retry = setTimeout(async () => {
      await readSession().catch(() => {});
      followEvents();
    }, 2000);
  });
}

export function stopEvents() {
  clearTimeout(retry);
  source?.close();
  source = null;
}
