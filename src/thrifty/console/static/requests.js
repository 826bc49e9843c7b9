// Requests: the log with its filters, and one request step by step.
import { html, useState } from "./vendor.js";
import { may, query as makeQuery } from "./api.js";
import { formatBytes, formatCount, formatMs, formatTime } from "./format.js";
import { Badge, Card, copyText, Empty, Loaded, Table, useLoad, When } from "./parts.js";
import { Markdown } from "./markdown.js";
import { go, link } from "./router.js";

const PAGE_ROWS = 50;
const FILTERS = ["id", "model", "version", "tenant", "user", "conversation_id", "error",
  "slower_ms", "disliked"];
const SAVED = [
  ["All", {}], ["Errors", { error: "any" }], ["Slower than 2 s", { slower_ms: "2000" }],
  ["Disliked", { disliked: "true" }],
];

export default function Requests({ rest, query }) {
  return rest[0] ? html`<${OneRequest} id=${rest[0]} />` : html`<${RequestList} query=${query} />`;
}

function RequestList({ query }) {
  const path = `v1/requests${makeQuery({ ...query, limit: PAGE_ROWS })}`;
  const load = useLoad(path, { every: query.after ? 0 : 5 });
  const { after: _, ...filters } = query;
  const search = (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    go("requests", [], Object.fromEntries(FILTERS.map((name) => [name, (form.get(name) ?? "").trim()])));
  };
  const same = (wanted) => JSON.stringify(wanted) === JSON.stringify(filters);
  return html`
    <div class="choice tabs" role="group" aria-label="Saved filters">${SAVED.map(([name, wanted]) => html`
      <button type="button" key=${name} aria-pressed=${same(wanted) ? "true" : "false"}
        onClick=${() => go("requests", [], wanted)}>${name}</button>`)}</div>
    <form class="toolbar" key=${JSON.stringify(filters)} onSubmit=${search}
      aria-label="Find requests">
      <${Field} name="id" label="Id (ours or yours)" query=${query} />
      <${Field} name="model" label="Deployment" query=${query} />
      <${Field} name="version" label="Version" query=${query} />
      ${may("admin") && html`<${Field} name="tenant" label="Tenant" query=${query} />`}
      <${Field} name="user" label="User" query=${query} />
      <label>Error <input name="error" value=${query.error ?? ""} list="errors" /></label>
      <datalist id="errors"><option value="any" /></datalist>
      <label>Slower than (ms) <input name="slower_ms" inputmode="decimal" pattern="[0-9.]*"
        value=${query.slower_ms ?? ""} /></label>
      <label>Feedback <select name="disliked" value=${query.disliked ?? ""}>
        <option value="">any</option><option value="true">disliked</option></select></label>
      <button type="submit">Find</button>
    </form>
    <${Loaded} load=${load} rows=${8}>${(page) => (page.data.length
      ? html`<${Card} title="Request log" actions=${html`<span class="quiet small">${
        query.after ? "" : "newest first, refreshed every 5 s"}</span>`}>
        <${Rows} rows=${page.data} />
        <div class="actions pager">
          ${query.after && html`<a role="button" class="secondary" href=${link("requests", [], filters)}>
            Newest</a>`}
          ${page.has_more && html`<a role="button" class="secondary"
            href=${link("requests", [], { ...filters, after: page.last_id })}>Older</a>`}
        </div></${Card}>`
      : html`<${Empty} title="No requests found">${Object.keys(filters).length
        ? html`Nothing in the log fits these filters. <a href=${link("requests")}>Show all</a>`
        : "Requests are in the log within a second after their end."}</${Empty}>`)}</${Loaded}>`;
}

const Field = ({ name, label, query }) => html`<label>${label}
  <input name=${name} value=${query[name] ?? ""} autocomplete="off" /></label>`;

export function Status({ row }) {
  const tone = row.status >= 500 || (row.status < 400 && row.error) ? "bad"
    : row.status >= 400 ? "busy" : "good";
  return html`<${Badge} tone=${tone}>${row.error ? `${row.status} ${row.error}` : row.status}</${Badge}>`;
}

function Rows({ rows }) {
  const columns = [
    { name: "When", cell: (row) => html`<a href=${link("requests", [row.id])}
      aria-label=${`Request ${row.id}`}><${When} at=${row.created_at} /></a>` },
    { name: "Deployment", cell: (row) => row.deployment ?? "–" },
    { name: "Version", cell: (row) => row.version ?? "–" },
    { name: "Status", cell: (row) => html`<${Status} row=${row} />` },
    { name: "Tokens in, out", number: true, cell: (row) => `${formatCount(row.prompt_tokens)}, ${
      formatCount(row.completion_tokens)}` },
    { name: "TTFT", number: true, cell: (row) => formatMs(row.ttft_ms) },
    { name: "Whole", number: true, cell: (row) => formatMs(row.e2e_ms) },
    { name: "Cache", cell: (row) => row.cache ?? "–" },
    { name: "User", cell: (row) => row.user ?? "–" },
    ...(may("admin") ? [{ name: "Tenant", cell: (row) => row.tenant ?? "–" }] : []),
  ];
  return html`<${Table} caption="Requests" columns=${columns} rows=${rows} rowKey=${(row) => row.id} />`;
}

function OneRequest({ id }) {
  const load = useLoad(`v1/requests/${encodeURIComponent(id)}`);
  return html`<p><a href=${link("requests")}>All requests</a></p>
    <${Loaded} load=${load} rows=${6}>${(row) => html`
      <${Card} title="One request" actions=${html`<${Status} row=${row} />`}>
        <p><code>${row.id}</code> <button type="button" class="secondary small"
          onClick=${() => copyText(row.id)}>Copy id</button></p>
        <${Timeline} row=${row} />
      </${Card}>
      <div class="two">
        <${Card} title="Facts"><${Facts} row=${row} /></${Card}>
        <${Card} title="Feedback"><${Feedback} id=${row.id} /></${Card}>
      </div>
      <${Card} title="Conversation"><${Conversation} row=${row} /></${Card}>`}</${Loaded}>`;
}

/** The steps, from the log's columns, in milliseconds from the request's arrival. */
function listSteps(row) {
  const overhead = row.overhead_us == null ? null : row.overhead_us / 1000;
  const queue = row.queue_ms ?? 0;
  const steps = [];
  if (queue > 0) steps.push(["Waiting for a slot", 0, queue]);
  if (row.ttft_ms != null && row.ttft_ms > queue) {
    steps.push([row.cache === "hit" ? "From the cache" : "Reading the prompt", queue, row.ttft_ms]);
    steps.push(["Writing the answer", row.ttft_ms, row.e2e_ms]);
  } else {
    steps.push([row.cache === "hit" ? "From the cache" : "At the replica", queue, row.e2e_ms]);
  }
  return { steps: steps.filter(([, from, to]) => to >= from), overhead };
}

function Timeline({ row }) {
  const { steps, overhead } = listSteps(row);
  const whole = Math.max(row.e2e_ms, 0.001);
  return html`<ol class="timeline" aria-label="Steps of the request">${steps.map(([name, from, to], i) => html`
    <li key=${name}><span class="what">${name}</span>
      <span class="bar" aria-hidden="true"><span class=${`s${i % 6}`} style=${{
        marginLeft: `${(from / whole) * 100}%`, width: `${Math.max(0.5, ((to - from) / whole) * 100)}%`,
      }}></span></span>
      <span class="number">${formatMs(to - from)}</span></li>`)}
    <li class="total"><span class="what">Whole</span><span class="bar"></span>
      <span class="number">${formatMs(row.e2e_ms)}</span></li></ol>
    <p class="quiet small">${overhead != null ? `The gateway's own work took ${formatMs(overhead)}. ` : ""}${
      row.attempts > 1 ? `Sent ${row.attempts} times. ` : ""}${
      row.rerouted ? "Another version than the chosen one answered. " : ""}${
      row.tpot_ms != null ? `${formatMs(row.tpot_ms)} for each further token.` : ""}</p>`;
}

function Facts({ row }) {
  const facts = [
    ["Arrived", formatTime(row.created_at)], ["Deployment", row.deployment], ["Version", row.version],
    ["Replica", row.replica], ["Endpoint", row.endpoint], ["Streamed", row.stream ? "yes" : "no"],
    ["Prompt tokens", `${formatCount(row.prompt_tokens)} (${formatCount(row.cached_tokens)} cached)`],
    ["Answer tokens", formatCount(row.completion_tokens)], ["Cache", row.cache],
    ["Origin", row.origin], ["User", row.user], ["Tenant", row.tenant],
    ["Conversation", row.conversation_id && html`<a href=${link("requests", [],
      { conversation_id: row.conversation_id })}>${row.conversation_id}</a>`],
    ["Your id", row.client_request_id],
    ["Shadow of", row.shadow_of && html`<a href=${link("requests", [row.shadow_of])}>${row.shadow_of}</a>`],
    ...Object.entries(row.tags ?? {}),
  ];
  return html`<dl class="facts">${facts.filter(([, value]) => value != null && value !== "").map(
    ([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function Feedback({ id }) {
  const load = useLoad(`v1/feedback?response_id=${encodeURIComponent(id)}`);
  return html`<${Loaded} load=${load} rows=${2}>${({ data }) => (data.length
    ? html`<ul class="said">${data.map((one) => html`<li key=${one.id}><${Said} one=${one} />
      <span class="quiet small">${one.user ?? "unnamed"}, <${When} at=${one.updated_at} /></span></li>`)}</ul>`
    : html`<p class="quiet">Nobody has said anything about this answer.</p>`)}</${Loaded}>`;
}

/** One piece of feedback in words. */
export function Said({ one }) {
  const name = one.name ? `${one.kind} ${one.name}` : one.kind;
  if (one.kind === "thumbs") {
    return html`<${Badge} tone=${one.value > 0 ? "good" : "bad"}>${one.value > 0 ? "Thumbs up"
      : "Thumbs down"}</${Badge}> `;
  }
  if (one.kind === "rating") {
    return html`<${Badge} tone=${one.value >= 4 ? "good" : one.value <= 2 ? "bad" : "idle"}>Rated ${
      one.value} of 5</${Badge}> `;
  }
  return html`<${Badge} tone="idle">${name}</${Badge}> <span>${one.text ?? (one.kind === "event" ? ""
    : one.value)}</span> `;
}

function Conversation({ row }) {
  const [plain, setPlain] = useState(false);
  if (row.texts_fault) return html`<p class="quiet">${row.texts_fault}</p>`;
  if (row.prompt === null) {
    return html`<p class="quiet">No texts are kept of this request. They are kept where the spec says
      ${" "}<code>record: {"{"}prompts: true{"}"}</code>, with personal data replaced.</p>`;
  }
  const messages = [...row.prompt, ...(row.answer ?? [])];
  return html`<p><button type="button" class="secondary small" onClick=${() => setPlain(!plain)}>
    Show ${plain ? "formatted" : "as plain text"}</button></p>
    <ol class="talk">${messages.map((message, i) => html`<li key=${i}
      class=${i >= row.prompt.length ? "assistant" : message.role}>
      <p class="who">${message.role || "text"}</p><${Message} message=${message} plain=${plain} /></li>`)}</ol>
    ${row.answer?.length === 0 && html`<p class="quiet">No answer was written.</p>`}`;
}

function Message({ message, plain }) {
  const text = message.content ?? "";
  const calls = message.tool_calls ?? [];
  return html`${plain ? html`<pre tabindex="0">${text}</pre>` : html`<${Markdown} text=${text} />`}
    ${calls.map((one, i) => html`<pre key=${i} tabindex="0">${one.function.name}(${one.function.arguments})</pre>`)}
    ${text.length > 2000 && html`<p class="quiet small">${formatBytes(text.length)} of text</p>`}`;
}
