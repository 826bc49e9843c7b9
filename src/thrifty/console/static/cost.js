// Cost: what requests cost, what was saved, and what the month will come to.
import { html, useState } from "./vendor.js";
import { may } from "./api.js";
import { formatCount, formatDuration, formatMoney, formatShare } from "./format.js";
import { Badge, Card, Choice, Empty, Loaded, Table, useLoad } from "./parts.js";
import { link } from "./router.js";

const SPANS = [["day", "Last day"], ["week", "Last 7 days"], ["month", "Last 30 days"]];
const SECONDS = { day: 86_400, week: 7 * 86_400, month: 30 * 86_400 };
const BY = [["version", "Version"], ["deployment", "Deployment"], ["tenant", "Tenant"], ["day", "Day"]];

export default function Cost() {
  const [span, setSpan] = useState("month");
  const [by, setBy] = useState("version");
  // To the minute, so that the address stays the same while the page is looked at.
  const [now] = useState(() => Math.floor(Date.now() / 60_000) * 60);
  const load = useLoad(`api/v1/cost?by=${by}&from=${now - SECONDS[span]}`);
  const divisions = may("admin") ? BY : BY.filter(([name]) => name !== "tenant");
  return html`<div class="toolbar"><${Choice} label="Time" options=${SPANS} value=${span} onChange=${setSpan} />
      <${Choice} label="Divided by" options=${divisions} value=${by} onChange=${setBy} /></div>
    <${Loaded} load=${load} rows=${8}>${(data) => html`<${Report} data=${data} />`}</${Loaded}>`;
}

function Report({ data }) {
  const { total } = data;
  const tiles = [
    ["In all", formatMoney(data.machine_cost + total.tokens_cost), "the machine and servers of others"],
    ["Per 1000 requests", formatMoney(total.per_request == null ? null : total.per_request * 1000),
      `${formatCount(total.requests)} requests`],
    ["Per million tokens", formatMoney(total.per_million_tokens), "of answers"],
    ["Per accepted answer", formatMoney(total.per_accepted), total.accepted_share == null
      ? "nobody has judged answers" : `${formatShare(total.accepted_share)} accepted`],
    ["Idle", formatMoney(total.idle_cost), `${formatDuration(total.held_s - total.worked_s)} of replicas`],
  ];
  return html`${!data.priced && html`<div class="notice"><p><strong>Not all of the time has a
      price.</strong><br />${data.how_to_price ?? ""}</p></div>`}
    <ul class="tiles">${tiles.map(([name, value, detail]) => html`<li class="card" key=${name}>
      <h2>${name}</h2><p class="value">${value}</p><p class="quiet small">${detail}</p></li>`)}</ul>
    ${data.lines.length ? html`<${Card} title="Where it goes"><${Lines} data=${data} /></${Card}>`
      : html`<${Empty} title="Nothing was served in this time">The
        ${" "}<a href=${link("playground")}>playground</a> changes that.</${Empty}>`}
    <${Card} title="Budgets and forecasts"><${Budgets} budgets=${data.budgets} /></${Card}>
    <${Card} title="Saved"><${Savings} savings=${data.savings} /></${Card}>
    ${data.bases.length > 0 && html`<p class="quiet small">Prices: ${data.bases.join("; ")}.</p>`}`;
}

const PARTS = [["requests_cost", "At work"], ["others_cost", "Shadows, tests"],
  ["idle_cost", "Idle"], ["tokens_cost", "Others' servers"]];

function nameLine(line, by) {
  if (by === "tenant") return line.of === "tenant" ? line.tenant || "(no key)" : line.of;
  if (by === "day") return line.day;
  return by === "version" ? html`${line.deployment} <span class="quiet">${line.version}</span>`
    : line.deployment;
}

function Lines({ data }) {
  const columns = [
    { name: "What", cell: (line) => nameLine(line, data.by) },
    { name: "Cost", number: true, cell: (line) => formatMoney(line.cost) },
    ...PARTS.map(([key, title]) => ({ name: title, number: true,
      cell: (line) => formatMoney(line[key]) })),
    { name: "Requests", number: true, cell: (line) => formatCount(line.requests) },
    { name: "Per request", number: true, cell: (line) => formatMoney(line.per_request) },
    { name: "Per accepted", number: true, cell: (line) => formatMoney(line.per_accepted) },
  ];
  return html`<${Table} caption=${`Cost by ${data.by}`} columns=${columns} rows=${data.lines} />`;
}

function Budgets({ budgets }) {
  const over = (one) => one.budget != null && (one.forecast ?? one.spent) > one.budget;
  const columns = [
    { name: "Of", cell: (one) => `${one.of} ${one.name}` },
    { name: "This month", number: true, cell: (one) => formatMoney(one.spent) },
    { name: "Forecast", number: true, cell: (one) => formatMoney(one.forecast) },
    { name: "95% interval", number: true, cell: (one) => (one.forecast_low == null ? "–"
      : `${formatMoney(one.forecast_low)} to ${formatMoney(one.forecast_high)}`) },
    { name: "Budget", number: true, cell: (one) => (one.budget == null
      ? html`<span class="quiet">none</span>` : html`${formatMoney(one.budget)} <${Badge}
        tone=${over(one) ? "bad" : "good"}>${over(one) ? "over" : "within"}</${Badge}>`) },
    { name: "Basis", cell: (one) => html`<span class="quiet small">${one.basis}</span>` },
  ];
  return html`<${Table} caption="Budgets" columns=${columns} rows=${budgets}
    empty="Nothing to forecast yet." />`;
}

function Savings({ savings }) {
  const columns = [
    { name: "By", cell: (one) => one.what },
    { name: "Version", cell: (one) => html`${one.deployment} <span class="quiet">${one.version}</span>` },
    { name: "Saved", number: true, cell: (one) => formatMoney(one.saved) },
    { name: "Time of a replica", number: true, cell: (one) => formatDuration(one.saved_s) },
    { name: "Against", cell: (one) => html`<span class="quiet small">${one.baseline}</span>` },
  ];
  return html`<${Table} caption="What was saved" columns=${columns} rows=${savings} empty="Nothing to compare yet." />`;
}
