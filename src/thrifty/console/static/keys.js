// Keys and budgets: who may call, with which role and limits.
import { html, useState } from "./vendor.js";
import { call, session } from "./api.js";
import { formatCount, formatMoney, formatTime } from "./format.js";
import { announce, Badge, Card, copyText, Dialog, Empty, Loaded, Table, useLoad } from "./parts.js";

const ROLES = [
  ["viewer", "sees metrics and the state of the service"], ["user", "calls models"],
  ["operator", "also shifts traffic, scales, rolls back, applies specs"],
  ["admin", "everything, keys and all tenants' data too"],
];
const LIMITS = [
  ["rpm", "Requests a minute"], ["tpm", "Tokens a minute"], ["concurrency", "Requests at once"],
  ["budget_day", "Budget a day"], ["budget_month", "Budget a month"],
];

export default function Keys() {
  const load = useLoad("api/v1/keys");
  const [open, setOpen] = useState(null);
  const [made, setMade] = useState(null);
  return html`<${Loaded} load=${load} rows=${5}>${({ keys }) => html`
    ${!session.value.keys_exist && html`<div class="notice"><p><strong>This service has no keys.</strong>
      <br />Only this machine can manage it. With the first key every request needs one, and this page
      asks you to sign in: make yourself an admin's key first.</p></div>`}
    ${keys.length ? html`<${Card} title="Keys" actions=${html`<button type="button" class="small"
        onClick=${() => setOpen("new")}>Make a key</button>`}>
        <${List} keys=${keys} onRevoke=${(key) => setOpen(key)} /></${Card}>`
    : html`<${Empty} title="No keys yet"><button type="button" onClick=${() => setOpen("new")}>Make a
        key</button></${Empty}>`}
    ${open === "new" && html`<${NewKey} onClose=${() => setOpen(null)} onDone=${(answer) => {
      setMade(answer);
      load.reload();
    }} />`}
    ${open && open !== "new" && html`<${Dialog} title=${`Revoke ${open.name}?`} submit="Revoke" danger
      onClose=${() => setOpen(null)} onSubmit=${async () => {
        await call("DELETE", `api/v1/keys/${encodeURIComponent(open.name)}`);
        announce(`The key ${open.name} was revoked.`);
        load.reload();
      }}><p>Requests with it are refused within a second, and whoever signed in with it is signed
        out. This cannot be taken back.</p></${Dialog}>`}
    ${made && html`<${Secret} made=${made} onClose=${() => setMade(null)} />`}`}</${Loaded}>`;
}

function List({ keys, onRevoke }) {
  const limit = (key, name) => {
    const value = key.limits[name];
    if (value == null) return html`<span class="quiet">none</span>`;
    return name.startsWith("budget") ? formatMoney(value) : formatCount(value);
  };
  const columns = [
    { name: "Name", cell: (key) => html`<strong>${key.name}</strong>${key.name === session.value.name
      ? html` <${Badge} tone="good">you</${Badge}>` : ""}<br />
      <span class="quiet small">${key.hint}…</span>` },
    { name: "Role", cell: (key) => key.role },
    { name: "Tenant", cell: (key) => key.tenant },
    ...LIMITS.map(([name, title]) => ({ name: title, number: true, cell: (key) => limit(key, name) })),
    { name: "Made", cell: (key) => formatTime(key.created_s, { second: false }) },
    { name: "Act", cell: (key) => html`<button type="button" class="secondary small"
      aria-label=${`Revoke ${key.name}`} onClick=${() => onRevoke(key)}>Revoke</button>` },
  ];
  return html`<${Table} caption="API keys" columns=${columns} rows=${keys} rowKey=${(key) => key.id} />`;
}

function NewKey({ onClose, onDone }) {
  const send = async (form) => {
    const limits = Object.fromEntries(LIMITS.map(([name]) => [name, form.get(name)]).filter(
      ([, value]) => value !== "").map(([name, value]) => [name, Number(value)]));
    const tenant = form.get("tenant").trim() || undefined;
    onDone(await call("POST", "api/v1/keys", {
      name: form.get("name").trim(), role: form.get("role"), tenant, limits }));
  };
  return html`<${Dialog} title="Make a key" submit="Make the key" onClose=${onClose} onSubmit=${send}>
    <label>Name <input name="name" required maxlength="64" autocomplete="off" /></label>
    <label>Role <select name="role">${ROLES.map(([role, what]) => html`<option key=${role} value=${role}
      selected=${role === "user"}>${role}: ${what}</option>`)}</select></label>
    <label>Tenant <input name="tenant" maxlength="64" placeholder="the name" autocomplete="off" /></label>
    <details><summary>Limits</summary><div class="limits">${LIMITS.map(([name, title]) => html`
      <label key=${name}>${title} <input name=${name} type="number" min=${name.startsWith("budget") ? 0 : 1}
        step=${name.startsWith("budget") ? "any" : 1} placeholder="none" /></label>`)}</div></details>
  </${Dialog}>`;
}

function Secret({ made, onClose }) {
  return html`<${Dialog} title=${`The key of ${made.key.name}`} onClose=${onClose} onSubmit=${() => {}}>
    <p>It is shown once, and stored nowhere.</p>
    <p><code class="secret">${made.secret}</code></p>
    <button type="button" onClick=${() => copyText(made.secret)}>Copy</button>
  </${Dialog}>`;
}
