// Overview: is it healthy, fast, right, liked and cheap; each against its objective.
import { html, useState } from "./vendor.js";
import { figures, recent, status } from "./api.js";
import { Chart } from "./chart.js";
import { findInterval, formatCount, formatMoney, formatMs, formatRate, formatShare } from "./format.js";
import { Badge, Card, Choice, Empty, Loaded, Sparkline, Table, useLoad, When } from "./parts.js";
import { link } from "./router.js";

const WINDOWS = [["hour", "Last hour"], ["day", "Last day"], ["month", "Last 30 days"]];
const FAILED_BOUND = 0.01;

export function Overview() {
  const [window, setWindow] = useState("hour");
  const load = useLoad(`api/v1/overview?window=${window}`, { every: window === "hour" ? 10 : 60 });
  const history = useLoad("api/v1/history?limit=30", { every: 30 });
  const alerts = useLoad("api/v1/alerts", { every: 15 });
  const open = alerts.data?.alerts.filter((one) => one.resolved === null) ?? [];
  return html`
    ${open.length > 0 && html`<div class="notice bad"><p><strong>${open.length === 1 ? "An alert is open"
      : `${open.length} alerts are open`}:</strong> ${open[0].summary}
      ${" "}<a href=${link("alerts")}>Look at ${open.length === 1 ? "it" : "them"}</a></p></div>`}
    <div class="toolbar"><${Choice} label="Window" options=${WINDOWS} value=${window}
      onChange=${setWindow} /></div>
    <${Loaded} load=${load} rows=${5}>${(data) => html`<${Figures} data=${data}
      changes=${history.data?.changes ?? []} />`}</${Loaded}>
    <${Now} />
    <${Card} title="What changed"><${Loaded} load=${history}>${({ changes }) => html`
      <${Changes} changes=${changes} />`}</${Loaded}></${Card}>`;
}

function Figures({ data, changes }) {
  const total = add(data.versions);
  const marks = changes.map((change) => ({ at: Date.parse(change.at) / 1000, label: change.kind }))
    .filter((mark) => mark.at > data.since);
  const pick = (name, map = (x) => x) => data.series.map((one) => ({
    label: `${one.labels.deployment} ${one.labels.version}`, values: one.values[name].map(map),
  }));
  // The last step goes on: its rate is over the part that has passed.
  const rate = (value, i) => value / Math.min(data.step_s, Math.max(1, data.until - data.times[i]));
  return html`
    <ul class="verdicts">${judge(data, total).map((verdict) => html`<${Verdict}
      key=${verdict.name} ...${verdict} />`)}</ul>
    ${total.requests === 0 ? html`<${Empty} title="No requests in this window">Send one:
      ${" "}<a href=${link("playground")}>open the playground</a>, or point an OpenAI client at
      this address with <code>/v1</code>.</${Empty}>`
    : html`<div class="two">
      <${Card} title="Requests per second"><${Chart} title="Requests per second" times=${data.times}
        series=${pick("requests", rate)} format=${formatRate} marks=${marks} /></${Card}>
      <${Card} title="Time to the first token, p95"><${Chart} title="Time to the first token, p95"
        times=${data.times} series=${pick("ttft_p95_ms")} format=${formatMs} marks=${marks} /></${Card}>
    </div>
    <${Card} title="By version"><${Versions} versions=${data.versions} /></${Card}>`}`;
}

function add(versions) {
  const total = {};
  for (const name of ["requests", "failed", "refused", "cache_hits", "prompt_tokens",
    "cached_tokens", "completion_tokens", "liked", "disliked", "corrected", "saved"]) {
    total[name] = versions.reduce((sum, one) => sum + one[name], 0);
  }
  const priced = versions.filter((one) => one.cost != null);
  total.cost = priced.length ? priced.reduce((sum, one) => sum + one.cost, 0) : null;
  total.pricedRequests = priced.reduce((sum, one) => sum + one.requests, 0);
  return total;
}

/** Without the last step, which goes on. */
const sum = (data, name) => data.times.slice(0, -1).map((_, i) => data.series.reduce(
  (found, one) => found + (one.values[name][i] ?? 0), 0));

/** The five verdicts. `tone`: good, bad, busy (look at it) or idle (nothing is known). */
function judge(data, total) {
  return [judgeHealth(data, total), judgeSpeed(data), judgeRight(data, total),
    judgeLiking(data, total), judgeCost(data, total)];
}

function judgeHealth(data, total) {
  const all = (status.value?.deployments ?? []).flatMap((one) => one.versions);
  const ready = all.reduce((found, one) => found + Math.min(one.ready, one.wanted), 0);
  const wanted = all.reduce((found, one) => found + one.wanted, 0);
  const lost = all.some((one) => one.weight > 0 && one.wanted > 0 && one.ready === 0);
  const failed = total.requests ? total.failed / total.requests : null;
  const tone = lost || (failed ?? 0) > 5 * FAILED_BOUND ? "bad"
    : ready < wanted || (failed ?? 0) > FAILED_BOUND ? "busy" : "good";
  return {
    name: "Healthy", tone, value: total.requests ? formatShare(1 - failed, 2) : "–",
    unit: "of requests answered",
    detail: status.value ? `${ready} of ${wanted} replicas ready; at most 1% may fail`
      : "Reading the replicas …",
    spark: sum(data, "requests"),
  };
}

function judgeSpeed(data) {
  const known = data.versions.filter((one) => one.ttft_p95_ms != null);
  const worst = known.reduce((found, one) => (found && found.ttft_p95_ms >= one.ttft_p95_ms
    ? found : one), null);
  const objective = known.filter((one) => one.ttft_objective_ms != null);
  const missed = objective.filter((one) => one.ttft_p95_ms > one.ttft_objective_ms);
  const goal = objective.length ? Math.min(...objective.map((one) => one.ttft_objective_ms)) : null;
  return {
    name: "Fast", value: worst ? formatMs(worst.ttft_p95_ms) : "–",
    unit: "to the first token, p95",
    word: worst && goal === null ? "No objective" : undefined,
    tone: !worst || goal === null ? "idle" : missed.length ? "bad" : "good",
    detail: goal === null ? "No objective in the spec (slo.ttft_p95)"
      : missed.length ? `${missed[0].version} misses ${formatMs(missed[0].ttft_objective_ms)}`
        : `Objective: ${formatMs(goal)}`,
    spark: data.times.slice(0, -1).map((_, i) => Math.max(0, ...data.series.map(
      (one) => one.values.ttft_p95_ms[i] ?? 0))),
  };
}

function judgeRight(data, total) {
  const judged = Math.max(total.liked + total.disliked, total.corrected);
  if (!judged) {
    return { name: "Right", value: "–", unit: "accepted as they are", tone: "idle",
      detail: "Nobody has judged or corrected an answer yet" };
  }
  const share = 1 - total.corrected / judged;
  return { name: "Right", value: formatShare(share), unit: "accepted as they are",
    tone: share >= 0.95 ? "good" : share >= 0.8 ? "busy" : "bad",
    detail: `${formatCount(total.corrected)} of ${formatCount(judged)} judged answers were
      corrected` };
}

function judgeLiking(data, total) {
  const count = total.liked + total.disliked;
  if (!count) {
    return { name: "Liked", value: "–", unit: "thumbs up", tone: "idle",
      detail: "No thumbs yet" };
  }
  const [low, high] = findInterval(total.liked, count);
  return { name: "Liked", value: formatShare(total.liked / count), unit: "thumbs up",
    tone: low >= 0.7 ? "good" : high < 0.5 ? "bad" : "busy",
    detail: `${formatCount(count)} judged; 95% interval ${formatShare(low, 0)} to ${
      formatShare(high, 0)}`,
    spark: sum(data, "liked") };
}

function judgeCost(data, total) {
  const cached = total.prompt_tokens ? total.cached_tokens / total.prompt_tokens : null;
  const hits = total.requests ? total.cache_hits / total.requests : null;
  const saved = `Caches: ${formatShare(hits)} of answers, ${formatShare(cached)} of prompt tokens`;
  if (total.cost === null) {
    return { name: "Cheap", value: formatCount(total.completion_tokens), unit: "tokens written",
      tone: "idle", word: "No prices", detail: `No prices in the spec. ${saved}`,
      spark: sum(data, "completion_tokens") };
  }
  return { name: "Cheap", tone: "idle", word: "No budget",
    value: formatMoney((total.cost / Math.max(1, total.pricedRequests)) * 1000),
    unit: "per 1000 requests", detail: `${formatMoney(total.cost)} in all, ${formatMoney(total.saved)} saved. ${saved}`,
    spark: sum(data, "completion_tokens") };
}

const WORDS = { good: "Good", busy: "Look at it", bad: "Bad", idle: "Not known" };

function Verdict({ name, tone, word, value, unit, detail, spark }) {
  return html`<li class="verdict ${tone}">
    <div class="verdicthead"><h2>${name}</h2><${Badge} tone=${tone}>${word ?? WORDS[tone]}</${Badge}></div>
    <p class="value">${value}</p><p class="unit">${unit}</p>
    <p class="quiet small">${detail}</p>
    ${spark && html`<${Sparkline} values=${spark} />`}
  </li>`;
}

function Versions({ versions }) {
  const columns = [
    { name: "Version", cell: (one) => html`<a href=${link("deployments", [one.deployment])}>
      ${one.deployment}</a> <span class="quiet">${one.version}</span>` },
    { name: "Requests", number: true, cell: (one) => formatCount(one.requests) },
    { name: "Failed", number: true, cell: (one) => (one.failed ? html`<a href=${link("requests", [],
      { model: one.deployment, version: one.version, error: "any" })}>${formatShare(
      one.failed / one.requests, 2)}</a>` : formatShare(one.requests ? 0 : null)) },
    { name: "TTFT p50, p95", number: true, cell: (one) => `${formatMs(one.ttft_p50_ms)}, ${
      formatMs(one.ttft_p95_ms)}` },
    { name: "In objective", number: true, cell: (one) => formatShare(one.within_objective) },
    { name: "Per token", number: true, cell: (one) => formatMs(one.tpot_p95_ms) },
    { name: "Whole answer", number: true, cell: (one) => formatMs(one.e2e_p95_ms) },
    { name: "Cached", number: true, cell: (one) => formatShare(
      one.requests ? one.cache_hits / one.requests : null) },
    { name: "Liked", number: true, cell: (one) => formatShare(one.liked + one.disliked
      ? one.liked / (one.liked + one.disliked) : null) },
    { name: "Cost", number: true, cell: (one) => formatMoney(one.cost) },
  ];
  return html`<${Table} caption="Figures by version" columns=${columns} rows=${versions}
    rowKey=${(one) => `${one.deployment}/${one.version}`} />`;
}

/** The last two minutes, second by second. */
function Now() {
  const seen = recent.value;
  if (!figures.value) return null;
  const total = (one, name) => one.versions.reduce((found, version) => found + version[name], 0);
  const now = figures.value;
  const line = (label, name) => ({ label, values: seen.map((one) => total(one, name)) });
  return html`<${Card} title="Right now">
    <dl class="now">
      <div><dt>Requests to replicas</dt><dd>${formatRate(total(now, "arrivals_per_s"))} /s</dd></div>
      <div><dt>Tokens written</dt><dd>${formatRate(total(now, "output_tokens_per_s"))} /s</dd></div>
      <div><dt>Being answered</dt><dd>${formatCount(total(now, "in_flight"))}</dd></div>
      <div><dt>Waiting</dt><dd>${formatCount(total(now, "queued") + total(now, "held"))}</dd></div>
    </dl>
    ${seen.length > 2 && html`<${Chart} title="Requests at replicas, last two minutes"
      times=${seen.map((one) => one.at)} format=${formatCount} integer
      series=${[line("being answered", "in_flight"), line("waiting", "queued")]} />`}
  </${Card}>`;
}

export function Changes({ changes }) {
  if (!changes.length) return html`<p class="quiet">Nothing was changed yet.</p>`;
  return html`<ol class="changes">${changes.map((change) => html`<li key=${change.id}>
    <${Badge} tone="idle">${change.kind}</${Badge}>
    <div><strong>${change.deployment ?? "the service"}</strong>
      ${change.versions && html` <span class="quiet">${change.versions.map((one) => `${one.label} ${
        one.weight}`).join(", ")}</span>`}
      ${change.why && html`<br />${change.why}`}
      <br /><span class="quiet small">${change.who}, <${When} at=${Date.parse(change.at) / 1000} />
      </span></div></li>`)}</ol>`;
}
