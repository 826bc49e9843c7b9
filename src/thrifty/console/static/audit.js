// Audit: administrative acts, and whether anybody tampered with them.
import { html, useState } from "./vendor.js";
import { get } from "./api.js";
import { formatCount, formatTime } from "./format.js";
import { announce, Badge, Card, copyText, Failure, Loaded, Table, useLoad } from "./parts.js";

export default function Audit() {
  const load = useLoad("api/v1/audit?limit=200");
  const [verdict, setVerdict] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const verify = async () => {
    setBusy(true);
    setError(null);
    try {
      const found = await get("api/v1/audit/verify");
      setVerdict(found);
      announce(found.whole ? "The audit log is whole." : `The audit log is broken: ${found.fault}.`);
    } catch (fault) {
      setError(fault);
    }
    setBusy(false);
  };
  const columns = [
    { name: "Number", number: true, cell: (act) => act.id },
    { name: "At", cell: (act) => formatTime(act.at) },
    { name: "Act", cell: (act) => html`<${Badge} tone="idle">${act.act}</${Badge}>` },
    { name: "By (pseudonym)", cell: (act) => html`<code>${act.actor}</code>` },
    { name: "Details", cell: (act) => html`<dl class="inline details">${Object.entries(act.details).map(
      ([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${String(value)}</dd></div>`)}</dl>` },
  ];
  return html`<${Card} title="Is it whole?" actions=${html`<button type="button" class="small"
      aria-busy=${busy} disabled=${busy} onClick=${verify}>Verify the chain</button>`}>
    ${error && html`<${Failure} error=${error} />`}
    ${verdict ? html`<div class=${verdict.whole ? "notice good" : "notice bad"}>
      <p><strong>${verdict.whole ? `Whole: ${formatCount(verdict.entries)} entries`
        : `Broken: ${verdict.fault}`}</strong></p>
      <p class="small">Head: <code>${verdict.head}</code></p>
      <button type="button" class="secondary small" onClick=${() => copyText(verdict.head)}>Copy the head
      </button></div>`
    : html`<p class="quiet">Each act carries a hash over itself and the one before it. Keep the head
      elsewhere now and then: <code>thrifty audit verify --head HEAD</code> then also shows whether the
      whole log was replaced.</p>`}
  </${Card}>
  <${Loaded} load=${load} rows=${6}>${({ acts }) => html`<${Card} title="Acts">
    <${Table} caption="Administrative acts" columns=${columns} rows=${acts} rowKey=${(act) => act.id}
      empty="Nobody has done anything administrative yet." /></${Card}>`}</${Loaded}>`;
}
