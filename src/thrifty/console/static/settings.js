// Settings: the spec in force, with where each value comes from.
import { html, useState } from "./vendor.js";
import { Badge, Card, Choice, Empty, Loaded, Table, useLoad } from "./parts.js";

const VIEWS = [["set", "Set or changed"], ["all", "All"]];

export default function Settings() {
  const load = useLoad("api/v1/settings");
  const [view, setView] = useState("set");
  const [text, setText] = useState("");
  return html`<div class="toolbar"><${Choice} label="Which settings" options=${VIEWS} value=${view}
      onChange=${setView} />
      <label>Find <input type="search" value=${text} placeholder="gateway, replicas …"
        onInput=${(event) => setText(event.target.value)} /></label></div>
    <${Loaded} load=${load} rows=${8}>${({ settings }) => {
      if (!settings.length) {
        return html`<${Empty} title="No spec was applied yet"><code>thrifty up SPEC</code> or
          ${" "}<code>thrifty apply SPEC</code></${Empty}>`;
      }
      const shown = settings.filter((one) => (view === "all" || one.origin !== "default")
        && one.key.toLowerCase().includes(text.trim().toLowerCase()));
      return html`<${Card} title="Spec in force"><${Table} caption="Settings" columns=${COLUMNS}
        rows=${shown} rowKey=${(one) => `${one.origin} ${one.key}`} empty="No setting fits." /></${Card}>
        <p class="quiet small">“spec” is what was set when the spec was applied: by its file, the
        environment or a flag. Secrets are masked. Changes come with <code>thrifty apply</code>.</p>`;
    }}</${Loaded}>`;
}

const COLUMNS = [
  { name: "Key", cell: (one) => html`<code>${one.key}</code>` },
  { name: "Value", cell: (one) => (one.value === null ? html`<span class="quiet">none</span>`
    : typeof one.value === "object" ? html`<code>${JSON.stringify(one.value)}</code>` : String(one.value)) },
  { name: "From", cell: (one) => html`<${Badge} tone=${one.origin === "default" ? "idle"
    : one.origin === "spec" ? "good" : "busy"}>${one.origin}</${Badge}>` },
];
