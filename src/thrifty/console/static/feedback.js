// Feedback: an inbox to look through and label, and what becomes of it.
import { html, useState } from "./vendor.js";
import { call, may, query as makeQuery, url } from "./api.js";
import { announce, Card, Choice, Empty, Failure, Loaded, useLoad, When } from "./parts.js";
import { go, link } from "./router.js";
import { Said } from "./requests.js";

const BOXES = [["open", "To look at"], ["all", "All"], ["score:triage", "Looked at"]];
const LABELS = ["real problem", "not a problem", "good example", "unclear"];
const FORMS = [
  ["sft", "SFT: corrections and liked answers"], ["dpo", "DPO: better and worse answers"],
  ["kto", "KTO: liked and disliked answers"],
];

export default function Feedback({ query }) {
  const box = query.box ?? "open";
  const filter = box === "open" ? { untriaged: "true" } : box === "all" ? {} : { kind: box };
  const path = `v1/feedback${makeQuery({ ...filter, model: query.model, after: query.after, limit: 30 })}`;
  const load = useLoad(path, { every: query.after ? 0 : 15 });
  return html`<div class="toolbar"><${Choice} label="Which feedback" options=${BOXES} value=${box}
      onChange=${(value) => go("feedback", [], { box: value })} /></div>
    <div class="split"><div>
    <${Loaded} load=${load} rows=${6}>${(page) => (page.data.length
      ? html`<ul class="inbox">${page.data.map((one) => html`<${Item} key=${one.id} one=${one}
          open=${box === "open"} onDone=${load.reload} />`)}</ul>
        ${page.has_more && html`<a role="button" class="secondary" href=${link("feedback", [],
          { ...query, after: page.last_id })}>Older</a>`}`
      : html`<${Empty} title=${box === "open" ? "Nothing left to look at" : "No feedback yet"}>
        ${box === "open" ? "What people say from now on appears here."
          : html`It comes with <code>POST /v1/feedback</code>, from pages, or from the
            ${" "}<a href=${link("playground")}>playground</a>.`}</${Empty}>`)}</${Loaded}></div>
    ${may("operator") && html`<${Export} />`}</div>`;
}

function Item({ one, open, onDone }) {
  const [error, setError] = useState(null);
  const label = async (text) => {
    setError(null);
    try {
      await call("POST", `v1/feedback/${one.id}/triage`, { label: text });
      announce(`Marked as ${text}.`);
      onDone();
    } catch (fault) {
      setError(fault);
    }
  };
  const about = one.response_id ? link("requests", [one.response_id])
    : link("requests", [], { conversation_id: one.conversation_id });
  return html`<li class="card">
    <div class="verdicthead"><p><${Said} one=${one} /></p>
      <span class="quiet small"><${When} at=${one.updated_at} /></span></div>
    <p class="quiet small">${one.deployment ? `${one.deployment}, ${one.version}` : "not in the log"}
      ${one.user ? ` · ${one.user}` : ""}${one.history.length ? ` · changed ${one.history.length} times` : ""}
      ${" "}· <a href=${about} aria-label=${`The ${one.response_id ? "answer" : "conversation"} that ${
        one.id} is about`}>${one.response_id ? "The answer" : "The conversation"}</a></p>
    ${open && may("operator") && html`<fieldset class="actions" aria-label=${`Label ${one.id}`}>
      ${LABELS.map((text) => html`<button type="button" key=${text} class="secondary small"
        onClick=${() => label(text)}>${text}</button>`)}</fieldset>`}
    ${error && html`<${Failure} error=${error} />`}</li>`;
}

function Export() {
  const [form, setForm] = useState("sft");
  const path = url(`v1/feedback/export?as=${form}`);
  return html`<${Card} title="Turn into data">
    <p class="quiet">Training rows with their provenance, as JSON lines. Only answers whose texts are
      kept give rows, and no row teaches a pseudonym.</p>
    <label>Rows for <select value=${form} onChange=${(event) => setForm(event.target.value)}>
      ${FORMS.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}
    </select></label>
    <p><a role="button" href=${String(path)} download=${`feedback-${form}.jsonl`}>Download</a></p>
    <p class="quiet small">A downloaded file is out of this service's reach: erasing a person
      (<code>thrifty forget</code>) does not change it. The export is in the audit log.</p>
  </${Card}>`;
}
