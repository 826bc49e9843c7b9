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
        <${List} keys=${keys} onRevoke=${(key) => setOpen(key)}
          onRotate=${(key) => setOpen({ rotate: key })} /></${Card}>`
    : html`<${Empty} title="No keys yet"><button type="button" onClick=${() => setOpen("new")}>Make a
        key</button></${Empty}>`}
    ${open === "new" && html`<${NewKey} onClose=${() => setOpen(null)} onDone=${(answer) => {
      setMade(answer);
      load.reload();
    }} />`}
    ${open?.rotate && html`<${Rotate} key_=${open.rotate} onClose=${() => setOpen(null)}
      onDone=${(answer) => {
        setMade(answer);
        load.reload();
      }} />`}
    ${open?.name && html`<${Dialog} title=${`Revoke ${open.name}?`} submit="Revoke" danger
      onClose=${() => setOpen(null)} onSubmit=${async () => {
        await call("DELETE", `api/v1/keys/${encodeURIComponent(open.name)}`);
        announce(`The key ${open.name} was revoked.`);
        load.reload();
      }}><p>Requests with it are refused within a second, and whoever signed in with it is signed
        out. This cannot be taken back.</p></${Dialog}>`}
    ${made && html`<${Secret} made=${made} onClose=${() => setMade(null)} />`}`}</${Loaded}>`;
}

function List({ keys, onRevoke, onRotate }) {
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
    { name: "Bounds", cell: (key) => html`${key.deployments ? `only ${key.deployments.join(", ")}`
      : html`<span class="quiet">none</span>`}${key.expires_s ? html`<br /><span class="small">${
      key.expires_s * 1000 < Date.now() ? "expired" : "until"} ${formatTime(key.expires_s,
      { second: false })}</span>` : ""}` },
    { name: "Made", cell: (key) => formatTime(key.created_s, { second: false }) },
    { name: "Act", cell: (key) => html`<button type="button" class="secondary small"
      aria-label=${`Rotate ${key.name}`} onClick=${() => onRotate(key)}>Rotate</button>
      <button type="button" class="secondary small"
      aria-label=${`Revoke ${key.name}`} onClick=${() => onRevoke(key)}>Revoke</button>` },
  ];
  return html`<${Table} caption="API keys" columns=${columns} rows=${keys} rowKey=${(key) => key.id} />`;
}

function NewKey({ onClose, onDone }) {
  const send = async (form) => {
    const limits = Object.fromEntries(LIMITS.map(([name]) => [name, form.get(name)]).filter(
      ([, value]) => value !== "").map(([name, value]) => [name, Number(value)]));
    const tenant = form.get("tenant").trim() || undefined;
    const names = form.get("deployments").split(",").map((name) => name.trim()).filter(Boolean);
    onDone(await call("POST", "api/v1/keys", {
      name: form.get("name").trim(), role: form.get("role"), tenant, limits,
      deployments: names.length ? names : undefined,
      expires_s: form.get("expires") ? Date.parse(`${form.get("expires")}T00:00:00Z`) / 1000
        : undefined }));
  };
  return html`<${Dialog} title="Make a key" submit="Make the key" onClose=${onClose} onSubmit=${send}>
    <label>Name <input name="name" required maxlength="64" autocomplete="off" /></label>
    <label>Role <select name="role">${ROLES.map(([role, what]) => html`<option key=${role} value=${role}
      selected=${role === "user"}>${role}: ${what}</option>`)}</select></label>
    <label>Tenant <input name="tenant" maxlength="64" placeholder="the name" autocomplete="off" /></label>
    <details><summary>Bounds</summary><div class="limits">
      <label>Only these deployments <input name="deployments" placeholder="all, or: chat, embed"
        autocomplete="off" /></label>
      <label>Ends on (UTC) <input name="expires" type="date" /></label></div></details>
    <details><summary>Limits</summary><div class="limits">${LIMITS.map(([name, title]) => html`
      <label key=${name}>${title} <input name=${name} type="number" min=${name.startsWith("budget") ? 0 : 1}
        step=${name.startsWith("budget") ? "any" : 1} placeholder="none" /></label>`)}</div></details>
  </${Dialog}>`;
}

const KEEP = [["0", "at once"], ["3600", "in an hour"], ["86400", "in a day"], ["604800", "in a week"]];

function Rotate({ key_: key, onClose, onDone }) {
  const send = async (form) => onDone(await call("POST",
    `api/v1/keys/${encodeURIComponent(key.name)}/rotate`, { keep_s: Number(form.get("keep")) }));
  return html`<${Dialog} title=${`Rotate ${key.name}`} submit="Make another secret" danger
    onClose=${onClose} onSubmit=${send}>
    <p>The key gets another secret. Its name, role, tenant, limits and spend stay.</p>
    <label>The secret of now ends <select name="keep">${KEEP.map(([seconds, when]) => html`<option
      key=${seconds} value=${seconds} selected=${seconds === "86400"}>${when}</option>`)}</select></label>
  </${Dialog}>`;
}

function Secret({ made, onClose }) {
  return html`<${Dialog} title=${`The key of ${made.key.name}`} onClose=${onClose} onSubmit=${() => {}}>
    <p>It is shown once, and stored nowhere.</p>
    <p><code class="secret">${made.secret}</code></p>
    <button type="button" onClick=${() => copyText(made.secret)}>Copy</button>
  </${Dialog}>`;
}
