// Parts that several pages are made of: loading, tables, badges, dialogs, messages.
import { html, signal, useCallback, useEffect, useRef, useState } from "./vendor.js";
import { ApiError, get } from "./api.js";
import { formatAgo, formatTime } from "./format.js";

/** What screen readers are told: one sentence at a time. */
export const announcement = signal("");
export const announce = (text) => { announcement.value = text; };

/** Load the JSON of a path, again every `every` seconds; {data, error, loading, reload}. Data stays
 * while it is loaded anew. Without a path nothing is loaded. */
export function useLoad(path, { every = 0 } = {}) {
  const [state, setState] = useState({ data: null, error: null, loading: true });
  const [turn, setTurn] = useState(0);
  const reload = useCallback(() => setTurn((number) => number + 1), []);
  const shown = useRef(null);
  useEffect(() => {
    if (path === null) return undefined;
    const abort = new AbortController();
    // What belongs to another path must not stand under this one's name.
    const keep = shown.current === path;
    setState((old) => ({ data: keep ? old.data : null, error: null, loading: true }));
    get(path, { signal: abort.signal }).then(
      (data) => {
        shown.current = path;
        setState({ data, error: null, loading: false });
      },
      (error) => {
        if (error.name !== "AbortError") {
          setState((old) => ({ data: keep ? old.data : null, error, loading: false }));
        }
      },
    );
    return () => abort.abort();
  }, [path, turn]);
  useEffect(() => {
    if (!every) return undefined;
    const timer = setInterval(() => { if (!document.hidden) reload(); }, every * 1000);
    return () => clearInterval(timer);
  }, [every, reload]);
  return { ...state, reload };
}

/** What was loaded, or what stands in its place until then. */
export function Loaded({ load, children, rows = 3 }) {
  if (load.data !== null) {
    return html`${load.error && html`<${Failure} error=${load.error} again=${load.reload} />`}
      ${children(load.data)}`;
  }
  if (load.error) return html`<${Failure} error=${load.error} again=${load.reload} />`;
  return html`<div class="skeleton" role="status" aria-label="Loading">
    ${Array.from({ length: rows }, (_, i) => html`<span key=${i}></span>`)}</div>`;
}

export function Failure({ error, again }) {
  const forbidden = error instanceof ApiError && error.status === 403;
  return html`<div class=${forbidden ? "notice" : "notice bad"} role="alert">
    <p><strong>${forbidden ? "Not for this key" : "This did not work"}</strong><br />
      ${error.message}</p>
    ${again && !forbidden
      && html`<button class="secondary small" onClick=${again}>Try again</button>`}
  </div>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><p><strong>${title}</strong></p><p>${children}</p></div>`;
}

const TONES = {
  ready: "good", ok: "good", healthy: "good", good: "good", whole: "good", rolling: "busy",
  starting: "busy", waiting: "busy", draining: "busy", parked: "idle", stopped: "idle",
  unhealthy: "bad", failed: "bad", crash_loop: "bad", gone: "bad", backoff: "bad",
  firing: "bad", pending: "busy",
};

export function Badge({ tone, children }) {
  const found = tone ?? TONES[String(children).toLowerCase()] ?? "idle";
  return html`<span class="badge ${found}">${String(children).replace(/_/g, " ")}</span>`;
}

/** A card with a heading; `actions` stand beside it. */
export function Card({ title, actions, children, level = 2, id, extra = "" }) {
  const Heading = `h${level}`;
  return html`<section class="card ${extra}" aria-labelledby=${id ?? slug(title)}>
    <header><${Heading} id=${id ?? slug(title)}>${title}</${Heading}>
      ${actions && html`<div class="actions">${actions}</div>`}</header>
    ${children}
  </section>`;
}

export const slug = (text) => `h-${String(text).toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;

/** A table. `columns`: {name, cell(row), number?, wide?}; `caption` is read, not seen. */
export function Table({ caption, columns, rows, rowKey, empty = "Nothing here." }) {
  if (!rows.length) return html`<p class="quiet">${empty}</p>`;
  return html`<div class="scroll" role="region" aria-label=${caption} tabindex="0">
    <table><caption class="hidden">${caption}</caption>
    <thead><tr>${columns.map((column) => html`<th key=${column.name} scope="col"
      class=${column.number ? "number" : ""}>${column.name}</th>`)}</tr></thead>
    <tbody>${rows.map((row, index) => html`<tr key=${rowKey ? rowKey(row) : index}>
      ${columns.map((column, place) => {
        const Cell = place === 0 ? "th" : "td";
        return html`<${Cell} key=${column.name} scope=${place === 0 ? "row" : undefined}
          class=${column.number ? "number" : ""}>${column.cell(row)}</${Cell}>`;
      })}</tr>`)}</tbody></table></div>`;
}

export function When({ at }) {
  return html`<time datetime=${new Date(at * 1000).toISOString()} title=${formatTime(at)}>
    ${formatAgo(at)}</time>`;
}

/** A bar that shows shares; `parts`: {label, share, tone}. */
export function ShareBar({ parts, label }) {
  return html`<div class="sharebar" role="img" aria-label=${label}>
    ${parts.map((part, i) => html`<span key=${part.label} class="s${i % 6}"
      style=${{ width: `${part.share * 100}%` }} title=${part.label}></span>`)}</div>`;
}

/** A small line without axes; figures stand beside it. */
export function Sparkline({ values }) {
  const numbers = values.map((value) => value ?? 0);
  const top = Math.max(...numbers, 1e-9);
  const step = 100 / Math.max(1, numbers.length - 1);
  const points = numbers.map((value, i) => `${(i * step).toFixed(1)},${
    (27 - (value / top) * 24).toFixed(1)}`);
  return html`<svg class="spark" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">
    <polygon points=${`0,30 ${points.join(" ")} 100,30`} /><polyline points=${points.join(" ")} />
  </svg>`;
}

/** A dialog that is open as long as it is shown. `onSubmit` resolves when it is done; an error
 * stays in it. */
export function Dialog({ title, submit, danger, onClose, onSubmit, children }) {
  const box = useRef(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    const before = document.activeElement;
    box.current.showModal();
    return () => before?.focus?.();
  }, []);
  const send = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await onSubmit(new FormData(event.target));
      onClose();
    } catch (fault) {
      setError(fault);
      setBusy(false);
    }
  };
  return html`<dialog ref=${box} aria-labelledby="dialog-title" onClose=${onClose}>
    <article><form onSubmit=${send}>
      <h2 id="dialog-title">${title}</h2>
      ${children}
      ${error && html`<${Failure} error=${error} />`}
      <footer>
        <button type="button" class="secondary" onClick=${onClose}>${submit ? "Cancel" : "Close"}
        </button>
        ${submit && html`<button type="submit" aria-busy=${busy} disabled=${busy}
          class=${danger ? "danger" : ""}>${submit}</button>`}
      </footer>
    </form></article>
  </dialog>`;
}

/** Buttons of which one is chosen. `options`: [value, label]. */
export function Choice({ label, options, value, onChange }) {
  return html`<div class="choice" role="group" aria-label=${label}>
    ${options.map(([option, text]) => html`<button key=${option} type="button"
      aria-pressed=${option === value ? "true" : "false"}
      onClick=${() => onChange(option)}>${text}</button>`)}</div>`;
}

export async function copyText(text) {
  await navigator.clipboard.writeText(text);
  announce("Copied.");
}
