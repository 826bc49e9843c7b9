// Alerts: what is wrong, what was, and what nobody is told of for a while.
import { html, useState } from "./vendor.js";
import { call, may } from "./api.js";
import { formatDuration, formatTime } from "./format.js";
import { announce, Badge, Card, Dialog, Empty, Failure, Loaded, Table, useLoad, When } from "./parts.js";

const TONES = { page: "bad", ticket: "busy" };
const PERIODS = [["3600", "1 hour"], ["14400", "4 hours"], ["86400", "1 day"], ["604800", "7 days"]];
const place = (one) => [one.deployment, one.version].filter(Boolean).join(" ") || "the service";

export default function Alerts() {
  const load = useLoad("api/v1/alerts", { every: 10 });
  const [silencing, setSilencing] = useState(null);
  return html`<${Loaded} load=${load} rows=${4}>${({ alerts, silences }) => {
    const open = alerts.filter((one) => one.resolved === null);
    const over = alerts.filter((one) => one.resolved !== null);
    return html`${open.length ? html`<ul class="inbox">${open.map((one) => html`<${Alert}
        key=${`${one.kind}${place(one)}${one.since}`} one=${one} onSilence=${() => setSilencing(one)} />`)}</ul>`
      : html`<${Empty} title="No alert is open">Objectives, crash loops, budgets and feedback are
        watched while the service runs. <code>thrifty alerts test</code> tries whether people are
        told.</${Empty}>`}
      <${Silences} silences=${silences} onDone=${load.reload} />
      <${Card} title="Over"><${Table} caption="Alerts that are over" columns=${COLUMNS} rows=${over}
        empty="Nothing was wrong in the last seven days." /></${Card}>
      ${silencing && html`<${SilenceDialog} one=${silencing} onClose=${() => setSilencing(null)}
        onDone=${load.reload} />`}`;
  }}</${Loaded}>`;
}

function Alert({ one, onSilence }) {
  return html`<li class="card">
    <div class="verdicthead"><h2>${one.kind.replace(/_/g, " ")} <span class="quiet">${place(one)}</span></h2>
      <${Badge} tone=${TONES[one.severity]}>${one.severity}</${Badge}></div>
    <p>${one.summary}</p>
    <p class="quiet small">Since ${formatTime(one.since)} (<${When} at=${one.since} />). What to do:
      ${" "}<code>${one.runbook}</code>${one.silenced_until
        ? ` · silenced until ${formatTime(one.silenced_until)}` : ""}</p>
    ${may("operator") && !one.silenced_until && html`<button type="button" class="secondary small"
      onClick=${onSilence}>Silence</button>`}</li>`;
}

const COLUMNS = [
  { name: "Alert", cell: (one) => one.kind.replace(/_/g, " ") },
  { name: "Where", cell: place },
  { name: "What", cell: (one) => one.summary },
  { name: "Since", cell: (one) => formatTime(one.since) },
  { name: "Lasted", number: true, cell: (one) => formatDuration(one.resolved - one.since) },
];

function SilenceDialog({ one, onClose, onDone }) {
  const send = async (form) => {
    await call("POST", "api/v1/alerts/silences", {
      kind: one.kind, deployment: one.deployment || null, version: one.version || null,
      seconds: Number(form.get("seconds")), why: form.get("why") });
    announce("The alert is silenced.");
    onDone();
  };
  return html`<${Dialog} title=${`Silence ${one.kind.replace(/_/g, " ")} of ${place(one)}`} submit="Silence"
    onClose=${onClose} onSubmit=${send}>
    <label>For <select name="seconds">${PERIODS.map(([seconds, name]) => html`<option key=${seconds}
      value=${seconds}>${name}</option>`)}</select></label>
    <label>Why <input name="why" maxlength="500" /></label>
    <p class="quiet small">It stays here, and nobody is told of it.</p></${Dialog}>`;
}

function Silences({ silences, onDone }) {
  const [error, setError] = useState(null);
  if (!silences.length) return null;
  const end = async (one) => {
    setError(null);
    try {
      await call("DELETE", `api/v1/alerts/silences/${one.id}`);
      announce("The silence has ended.");
      onDone();
    } catch (fault) {
      setError(fault);
    }
  };
  const columns = [
    { name: "Alerts", cell: (one) => one.kind?.replace(/_/g, " ") ?? "all" },
    { name: "Where", cell: (one) => [one.deployment, one.version].filter(Boolean).join(" ") || "everywhere" },
    { name: "Until", cell: (one) => formatTime(one.until) },
    { name: "Why", cell: (one) => one.why },
    ...(may("operator") ? [{ name: "Act", cell: (one) => html`<button type="button"
      class="secondary small" aria-label=${`End silence ${one.id}`} onClick=${() => end(one)}>End</button>` }] : []),
  ];
  return html`<${Card} title="Silences">${error && html`<${Failure} error=${error} />`}
    <${Table} caption="Silences" columns=${columns} rows=${silences} rowKey=${(one) => one.id} /></${Card}>`;
}
