// Deployments: versions with their weights, replicas with their load, and what operators do.
import { html, useEffect, useState } from "./vendor.js";
import { call, figures, may, status } from "./api.js";
import { Chart } from "./chart.js";
import { formatBytes, formatCount, formatMs, formatRate, formatShare } from "./format.js";
import { announce, Badge, Card, Dialog, Empty, Loaded, ShareBar, Table, useLoad } from "./parts.js";
import { link } from "./router.js";
import { Changes } from "./overview.js";

export default function Deployments({ rest }) {
  const state = status.value;
  if (!state) return html`<div class="skeleton" role="status" aria-label="Loading"><span></span><span></span></div>`;
  if (!state.deployments.length) {
    return html`<${Empty} title="Nothing is deployed">Start something:
      <code>thrifty up SPEC</code></${Empty}>`;
  }
  const chosen = state.deployments.filter((one) => !rest[0] || one.name === rest[0]);
  if (!chosen.length) {
    return html`<${Empty} title=${`There is no deployment ${rest[0]}`}>
      <a href=${link("deployments")}>All deployments</a></${Empty}>`;
  }
  return html`${rest[0] && html`<p><a href=${link("deployments")}>All deployments</a></p>`}
    ${chosen.map((one) => html`<${Deployment} key=${one.name} deployment=${one}
      alone=${chosen.length === 1} />`)}`;
}

function Deployment({ deployment, alone }) {
  const [open, setOpen] = useState(null);
  const name = deployment.name;
  const path = (end) => `api/v1/deployments/${encodeURIComponent(name)}/${end}`;
  const history = useLoad(`api/v1/history?deployment=${encodeURIComponent(name)}&limit=100`,
    { every: 20 });
  const done = (text) => {
    announce(text);
    history.reload();
  };
  const actions = may("operator") && html`
    ${deployment.versions.length > 1 && html`<button type="button" class="secondary small"
      onClick=${() => setOpen("traffic")}>Shift traffic</button>`}
    <button type="button" class="secondary small" onClick=${() => setOpen("scale")}>Scale</button>
    <button type="button" class="secondary small" onClick=${() => setOpen("rollback")}>Roll
      back</button>`;
  // A button opens a dialog, which asks before anything happens.
  const ask = may("operator") && ((kind, what) => setOpen({ kind, what }));
  return html`<${Card} title=${name} actions=${actions}>
    <p class="quiet">${deployment.family}, ${deployment.engine}; ${deployment.replicas.length}
      ${" "}replica${deployment.replicas.length === 1 ? "" : "s"}</p>
    <${ShareBar} label=${`Traffic: ${deployment.versions.map((one) => `${one.label} ${
      formatShare(one.share, 0)}`).join(", ")}`} parts=${deployment.versions} />
    <${Versions} deployment=${deployment} ask=${ask} />
    <h3>Replicas</h3>
    <${Replicas} deployment=${deployment} ask=${ask} />
    <${Loaded} load=${history}>${({ changes }) => html`<${Past} changes=${changes}
      deployment=${deployment} open=${alone} />`}</${Loaded}>
    ${open === "traffic" && html`<${TrafficDialog} deployment=${deployment} path=${path("traffic")}
      onClose=${() => setOpen(null)} onDone=${done} />`}
    ${open === "scale" && html`<${ScaleDialog} deployment=${deployment} path=${path("scale")}
      onClose=${() => setOpen(null)} onDone=${done} />`}
    ${open === "rollback" && html`<${RollbackDialog} deployment=${deployment}
      history=${history.data?.changes ?? []} path=${path("rollback")}
      onClose=${() => setOpen(null)} onDone=${done} />`}
    ${open?.kind === "restart" && html`<${RestartDialog} deployment=${deployment}
      version=${open.what} path=${path("restart")} onClose=${() => setOpen(null)} onDone=${done} />`}
    ${open?.kind === "drain" && html`<${DrainDialog} deployment=${deployment}
      replica=${open.what} path=${path("drain")} onClose=${() => setOpen(null)} onDone=${done} />`}
  </${Card}>`;
}

function find(deployment, label) {
  return figures.value?.versions.find(
    (one) => one.deployment === deployment.name && one.version === label);
}

function Versions({ deployment, ask }) {
  const live = (label, name) => find(deployment, label)?.[name];
  const columns = [
    { name: "Version", cell: (one) => html`<strong>${one.label}</strong><br />
      <span class="quiet small">${one.model}</span>` },
    { name: "State", cell: (one) => html`<${Badge}>${one.zero && one.zero.rung !== "awake"
      ? one.zero.rung : one.state}</${Badge}>${one.message && html`<br /><span class="small">${
      one.message}</span>`}` },
    { name: "Traffic", number: true, cell: (one) => html`${formatShare(one.share, 0)}${
      one.shadow ? html`<br /><span class="quiet small">shadow ${formatShare(one.shadow, 0)}</span>` : ""}` },
    { name: "Ready", number: true, cell: (one) => `${one.ready} of ${one.wanted}` },
    { name: "Requests", number: true, cell: (one) => `${formatRate(live(one.label, "arrivals_per_s"))} /s` },
    { name: "Tokens", number: true, cell: (one) => `${formatRate(live(one.label, "output_tokens_per_s"))} /s` },
    { name: "In flight", number: true, cell: (one) => formatCount(live(one.label, "in_flight")) },
    { name: "Waiting", number: true, cell: (one) => formatCount(
      (live(one.label, "queued") ?? 0) + (live(one.label, "held") ?? 0)) },
    { name: "Scaling", cell: (one) => html`<${Scaling} scaling=${one.scaling} />` },
    ...(ask ? [{ name: "Do", cell: (one) => html`<button type="button" class="secondary small"
      disabled=${one.wanted === 0} aria-label=${`Restart ${one.label}`}
      onClick=${() => ask("restart", one)}>Restart</button>` }] : []),
  ];
  return html`<${Table} caption=${`Versions of ${deployment.name}`} columns=${columns}
    rows=${deployment.versions} rowKey=${(one) => one.label} />`;
}

function Scaling({ scaling }) {
  if (!scaling) return html`<span class="quiet">fixed</span>`;
  const measured = scaling.measured_ttft_p95_s;
  return html`<span>${scaling.min === scaling.max ? `fixed at ${scaling.max}` : `${scaling.min} to ${
    scaling.max}`}</span><br />
    <span class="quiet small">${scaling.min === scaling.max ? "" : scaling.reason}${measured != null
      ? ` TTFT p95 ${formatMs(measured * 1000)}` : ""}${scaling.limit
      ? `; held by ${scaling.limit}` : ""}</span>`;
}

function Replicas({ deployment, ask }) {
  const load = (id) => figures.value?.replicas.find((one) => one.id === id);
  const columns = [
    { name: "Replica", cell: (one) => one.id },
    { name: "Version", cell: (one) => one.version },
    { name: "State", cell: (one) => html`<${Badge}>${one.state}</${Badge}>` },
    { name: "Running", number: true, cell: (one) => formatCount(load(one.id)?.running) },
    { name: "Waiting", number: true, cell: (one) => formatCount(load(one.id)?.waiting) },
    { name: "KV cache", number: true, cell: (one) => formatShare(load(one.id)?.kv_usage, 0) },
    { name: "Memory", number: true, cell: (one) => formatBytes(
      load(one.id)?.memory_bytes ?? one.memory_bytes) },
    { name: "Restarts", number: true, cell: (one) => formatCount(one.restarts) },
    { name: "Message", cell: (one) => (one.message ? html`<span class="small">${one.message}</span>` : "") },
    ...(ask ? [{ name: "Do", cell: (one) => html`<button type="button" class="secondary small"
      disabled=${one.state === "draining" || one.state === "stopped"}
      aria-label=${`Drain ${one.id}`} onClick=${() => ask("drain", one)}>Drain</button>` }] : []),
  ];
  return html`<${Table} caption=${`Replicas of ${deployment.name}`} columns=${columns}
    rows=${deployment.replicas} rowKey=${(one) => one.id}
    empty="No replica runs; one starts with the next request." />`;
}

/** How many replicas were wanted, from the changes that are known, oldest first. */
function Past({ changes, deployment, open }) {
  const past = changes.filter((one) => one.versions).slice().reverse();
  const times = past.map((one) => Date.parse(one.at) / 1000);
  const labels = deployment.versions.map((one) => one.label);
  const series = labels.map((label) => ({
    label,
    values: past.map((one) => one.versions.find((v) => v.label === label)?.replicas ?? null),
  }));
  // The last state lasts until now.
  const now = Math.floor(Date.now() / 60_000) * 60;
  if (times.length && now > times.at(-1)) {
    times.push(now);
    for (const one of series) one.values.push(one.values.at(-1));
  }
  return html`${times.length > 1 && html`<h3>Scaling timeline</h3><${Chart}
      title=${`Replicas of ${deployment.name}`} times=${times} series=${series}
      format=${formatCount} stepped integer />`}
    <details open=${open}><summary>History (${changes.length})</summary>
      <${Changes} changes=${changes.slice(0, 20)} /></details>`;
}

function TrafficDialog({ deployment, path, onClose, onDone }) {
  const [weights, setWeights] = useState(Object.fromEntries(
    deployment.versions.map((one) => [one.label, one.weight])));
  const total = Object.values(weights).reduce((sum, one) => sum + one, 0);
  const send = async (form) => {
    await call("PUT", path, { weights, why: form.get("why") });
    onDone(`The traffic of ${deployment.name} was changed.`);
  };
  return html`<${Dialog} title=${`Shift the traffic of ${deployment.name}`} submit="Shift traffic"
    onClose=${onClose} onSubmit=${send}>
    <p class="quiet">Conversations that have begun stay with their version as far as the weights
      allow it.</p>
    ${deployment.versions.map((one) => html`<label key=${one.label}>${one.label}: ${
      formatShare(total ? weights[one.label] / total : null, 0)}
      <input type="number" min="0" max="1000000" step="any" required value=${weights[one.label]}
        onInput=${(event) => setWeights({ ...weights, [one.label]: Number(event.target.value) })} />
    </label>`)}
    <label>Why <input name="why" maxlength="500" placeholder="For the history" /></label>
  </${Dialog}>`;
}

function ScaleDialog({ deployment, path, onClose, onDone }) {
  const [label, setLabel] = useState(deployment.versions[0]?.label);
  const version = deployment.versions.find((one) => one.label === label);
  const gone = version === undefined;  // while the dialog is open
  useEffect(() => {
    if (!gone) return;
    announce(`${deployment.name} has no version ${label ?? ""} any more.`);
    onClose();
  }, [gone]);
  if (gone) return null;
  const auto = version.scaling && version.scaling.min !== version.scaling.max;
  const send = async (form) => {
    const numbers = auto ? { min: Number(form.get("min")), max: Number(form.get("max")) }
      : { count: Number(form.get("count")) };
    await call("PUT", path, { version: label, ...numbers, why: form.get("why") });
    onDone(`${deployment.name} ${label} is scaled.`);
  };
  return html`<${Dialog} title=${`Scale ${deployment.name}`} submit="Scale" onClose=${onClose}
    onSubmit=${send}>
    <label>Version <select value=${label} onChange=${(event) => setLabel(event.target.value)}>
      ${deployment.versions.map((one) => html`<option key=${one.label}>${one.label}</option>`)}
    </select></label>
    ${auto ? html`<div class="grid" key=${label}>
      <label>Fewest <input name="min" type="number" min="0" max="1024" required
        value=${version.scaling.min} /></label>
      <label>Most <input name="max" type="number" min="1" max="1024" required
        value=${version.scaling.max} /></label></div>`
    : html`<label key=${label}>Replicas <input name="count" type="number" min="1" max="1024" required
        value=${version.wanted} /></label>`}
    <label>Why <input name="why" maxlength="500" placeholder="For the history" /></label>
    <p class="quiet small">Surplus replicas drain first: they finish what they answer. The next
      ${" "}<code>apply</code> keeps these numbers unless the spec changes them.</p>
  </${Dialog}>`;
}

function RestartDialog({ deployment, version, path, onClose, onDone }) {
  const send = async (form) => {
    await call("POST", path, { version: version.label, why: form.get("why") });
    onDone(`${deployment.name} ${version.label} is being restarted.`);
  };
  return html`<${Dialog} title=${`Restart ${version.label} of ${deployment.name}`} submit="Restart"
    danger onClose=${onClose} onSubmit=${send}>
    <p>${version.wanted === 1 ? "Its replica is" : `Its ${version.wanted} replicas are`} replaced by
      new ones. These become ready before old ones drain, so no request is cut.</p>
    <p class="quiet">Answers of this version that caches hold are made anew.</p>
    <label>Why <input name="why" maxlength="500" placeholder="For the history" /></label>
  </${Dialog}>`;
}

function DrainDialog({ deployment, replica, path, onClose, onDone }) {
  const others = deployment.replicas.filter((one) => one.id !== replica.id
    && one.version === replica.version && one.state === "ready");
  const last = replica.state === "ready" && others.length === 0;
  const send = async (form) => {
    const force = form.get("force") === "on";
    await call("POST", path, { replica: replica.id, force, why: form.get("why") });
    onDone(`${replica.id} is being drained.`);
  };
  return html`<${Dialog} title=${`Drain ${replica.id}`} submit="Drain" danger onClose=${onClose}
    onSubmit=${send}>
    <p>It gets no new requests, finishes what it answers, and ends. Another replica is started in its
      place.</p>
    ${last && html`<p class="notice bad">No other replica of ${replica.version} is ready: until the
      new one is, its requests wait or are answered by another version.</p>
      <label><input type="checkbox" name="force" required /> Drain it all the same</label>`}
    <label>Why <input name="why" maxlength="500" placeholder="For the history" /></label>
  </${Dialog}>`;
}

function RollbackDialog({ deployment, history, path, onClose, onDone }) {
  const newest = history.find((one) => !["autoscale", "restart", "drain", "copies"].includes(one.kind));
  const send = async (form) => {
    await call("POST", path, { why: form.get("why") });
    onDone(`${deployment.name} was rolled back.`);
  };
  return html`<${Dialog} title=${`Roll ${deployment.name} back`} submit="Roll back" danger
    onClose=${onClose} onSubmit=${send}>
    ${newest ? html`<p>This takes back the newest change: <strong>${newest.kind}</strong> by
      ${" "}${newest.who}${newest.why ? `, “${newest.why}”` : ""}.</p>` : html`<p>This takes back the
      newest change.</p>`}
    <p class="quiet">New copies become ready before old ones drain. Rolling back twice restores the
      present state.</p>
    <label>Why <input name="why" maxlength="500" placeholder="For the history" /></label>
  </${Dialog}>`;
}
