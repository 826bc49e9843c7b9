// Quality: canary questions, faults of answers, what users did, the judge with its agreement, drift.
import { html, useState } from "./vendor.js";
import { call, may } from "./api.js";
import { Chart } from "./chart.js";
import { formatCount, formatShare, formatTime } from "./format.js";
import { announce, Badge, Card, Choice, Empty, Failure, Loaded, Table, useLoad, When } from "./parts.js";
import { link } from "./router.js";

const NAMES = {
  empty: "Empty", loop: "Repeats itself", refusal: "Refuses", truncated: "Cut off at its limit",
  format: "Not the JSON asked for", schema: "Does not fit the schema", language: "Another language",
  short: "Unusually short", long: "Unusually long", accepted: "Accepted", regenerated: "Asked again",
  rephrased: "Asked in other words", corrected: "Corrected by the user", abandoned: "Left unfinished",
  prompt_tokens: "Tokens of prompts", completion_tokens: "Tokens of answers",
  asked_meaning: "Meaning of questions", answer_meaning: "Meaning of answers",
  word_length: "Letters of words", distinct_words: "Distinct words",
};
const TONES = { worse: "bad", better: "good" };
const DAY = { time: false };
const LEAST_DAYS = 7;

export default function Quality({ query }) {
  const [deployment, setDeployment] = useState(query.deployment ?? "");
  const load = useLoad("api/v1/quality", { every: 30 });
  return html`<${Loaded} load=${load} rows=${8}>${(data) => {
    const names = [...new Set([...data.canaries, ...data.versions, ...data.judged].map(
      (one) => one.deployment))].sort();
    const fits = (one) => !deployment || (one.deployment ?? one.labels.deployment) === deployment;
    const shown = { canaries: data.canaries.filter(fits), versions: data.versions.filter(fits),
      judged: data.judged.filter(fits), drift: data.drift.filter(fits),
      course: { times: data.course.times, series: data.course.series.filter(fits) } };
    if (!names.length) {
      return html`<${Empty} title="Nothing is known of the answers yet">Answers are checked within
        seconds after they are in the request log: ask something in the
        ${" "}<a href=${link("playground")}>playground</a>. Canary questions are asked where the spec
        names some: <code>quality: {"{"}questions: FILE{"}"}</code>.</${Empty}>`;
    }
    const choices = [["", "All"], ...names.map((name) => [name, name])];
    return html`${names.length > 1 && html`<div class="toolbar"><${Choice} label="Deployment"
        options=${choices} value=${deployment} onChange=${setDeployment} /></div>`}
      <${Canaries} rows=${shown.canaries} />
      <${Shares} title="Faults of answers" kind="faults" data=${shown} preferred="truncated"
        empty="No answer was checked yet." />
      <${Shares} title="What users did" kind="engagement" data=${shown} preferred="accepted"
        empty="Nothing followed an answer yet. This needs recorded texts: record: {prompts: true}." />
      <${Sessions} rows=${shown.versions} />
      <${Judged} rows=${shown.judged} onReviewed=${load.reload} />
      <${Drift} rows=${shown.drift} />`;
  }}</${Loaded}>`;
}

const nameVersion = (one) => html`${one.version} <span class="quiet">${one.deployment}</span>`;

/** A share with its interval, on a scale that ends at `top`. */
function Interval({ one, top }) {
  if (one.share == null && one.mean == null) return html`<span class="quiet">–</span>`;
  const x = (value) => (Math.min(value, top) / top) * 96 + 2;
  return html`<svg class="interval" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">
    <line class="track" x1="2" x2="98" y1="6" y2="6" /><line class="range" x1=${x(one.low)}
      x2=${x(one.high)} y1="6" y2="6" /><line class="middle" x1=${x(one.share ?? one.mean)}
      x2=${x(one.share ?? one.mean)} y1="1" y2="11" /></svg>`;
}

const writeInterval = (one) => `${formatShare(one.low)} to ${formatShare(one.high)}`;

function Canaries({ rows }) {
  const columns = [
    { name: "Version", cell: nameVersion },
    { name: "Right", number: true, cell: (one) => `${one.right} of ${one.asked}` },
    { name: "Share", number: true, cell: (one) => formatShare(one.share) },
    { name: "Interval", cell: (one) => html`<${Interval} one=${one} top=${1} />` },
    { name: "95%", number: true, cell: writeInterval },
    { name: "Lost, gained", number: true, cell: (one) => `${one.lost}, ${one.gained}` },
    { name: "Change", cell: (one) => html`<${Badge} tone=${TONES[one.change] ?? "idle"}>${
      one.change}</${Badge}>` },
    { name: "Faults", cell: (one) => one.failed || Object.entries(one.faults).map(
      ([kind, count]) => `${kind} ${count}`).join(", ") || "none" },
    { name: "Asked", cell: (one) => html`<${When} at=${one.last_s} />` },
  ];
  return html`<${Card} title="Canary questions">${rows.length ? html`<p class="quiet">Questions with
      known answers, asked of every version past the gateway. Each counts once.</p><${Table}
      caption="Canary questions, by version" columns=${columns} rows=${rows}
      rowKey=${(one) => `${one.deployment} ${one.version} ${one.revision} ${one.questions}`} />`
    : html`<p class="quiet">None is asked. <code>quality: {"{"}questions: FILE{"}"}</code> in the spec
      says which.</p>`}</${Card}>`;
}

function Shares({ title, kind, data, preferred, empty }) {
  const [chosen, setChosen] = useState(preferred);
  const rows = data.versions.flatMap((version) => version[kind].filter((one) => one.all_count).map(
    (one) => ({ ...one, deployment: version.deployment, version: version.version })));
  const order = Object.keys(NAMES);
  rows.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
  const names = [...new Set(rows.map((one) => one.name))];
  if (!rows.length) return html`<${Card} title=${title}><p class="quiet">${empty}</p></${Card}>`;
  const top = (name) => Math.max(0.05, ...rows.filter((one) => one.name === name).map(
    (one) => one.high));
  const columns = [
    { name: "What", cell: (one) => NAMES[one.name] },
    { name: "Version", cell: nameVersion },
    { name: "Share", number: true, cell: (one) => formatShare(one.share) },
    { name: "Interval", cell: (one) => html`<${Interval} one=${one} top=${top(one.name)} />` },
    { name: "95%", number: true, cell: writeInterval },
    { name: "Conversations", number: true, cell: (one) => formatCount(one.count) },
    { name: "In all answers", number: true, cell: (one) => `${formatCount(one.all_found)} of ${
      formatCount(one.all_count)}` },
  ];
  const shown = names.includes(chosen) ? chosen : names[0];
  const { times } = data.course;
  // From the first day with answers on, and at least a week.
  const first = Math.min(times.length - LEAST_DAYS, ...data.course.series.map((one) => {
    const place = one.values[shown].findIndex((value) => value != null);
    return place < 0 ? times.length : place;
  }));
  const series = data.course.series.map((one) => ({ label: data.versions.some(
    (other) => other.deployment !== one.labels.deployment) ? `${one.labels.deployment} ${
    one.labels.version}` : one.labels.version, values: one.values[shown].slice(first) }));
  return html`<${Card} title=${title}>
    <p class="quiet">${kind === "faults" ? sayChecked(data.versions) : html`Of the answers that
      something followed; what was left unfinished is of all. Intervals stay valid however often one
      looks.`}</p>
    <label class="pick">Course of <select value=${shown} onChange=${(event) => setChosen(
      event.target.value)}>${names.map((name) => html`<option key=${name} value=${name}>${
      NAMES[name]}</option>`)}</select></label>
    <${Chart} title=${`${NAMES[shown]}, by day`} times=${times.slice(first)} series=${series}
      format=${(value) => formatShare(value)} />
    <${Table} caption=${`${title}, by version`} columns=${columns} rows=${rows}
      rowKey=${(one) => `${one.name} ${one.deployment} ${one.version}`} /></${Card}>`;
}

function sayChecked(versions) {
  const sum = (name) => versions.reduce((total, one) => total + one[name], 0);
  const [answers, checked] = [sum("answers"), sum("checked")];
  return `${formatCount(checked)} of ${formatCount(answers)} answers were checked (${formatShare(
    answers ? checked / answers : null)}). One of each conversation and day counts, so that intervals `
    + "are right; they stay valid however often one looks.";
}

function Sessions({ rows }) {
  const known = rows.filter((one) => one.sessions.count);
  if (!known.length) return null;
  const show = (value) => (value == null ? "–" : value.toFixed(2));
  const columns = [
    { name: "Version", cell: nameVersion },
    { name: "Sessions", number: true, cell: ({ sessions }) => formatCount(sessions.count) },
    { name: "Requests in each", number: true, cell: ({ sessions }) => show(sessions.turns) },
    { name: "95%", number: true, cell: ({ sessions }) => `${show(sessions.low)} to ${
      show(sessions.high)}` },
    { name: "Minutes", number: true, cell: ({ sessions }) => show(sessions.minutes) },
    { name: "Came back", number: true, cell: ({ sessions }) => formatCount(sessions.returned) },
  ];
  return html`<${Card} title="Sessions"><${Table} caption="Sessions, by version" columns=${columns} rows=${known}
    rowKey=${(one) => `${one.deployment} ${one.version}`} /></${Card}>`;
}

const writeKappa = (one) => (one.kappa == null ? "not known"
  : `${one.kappa.toFixed(2)} (${one.kappa_low.toFixed(2)} to ${one.kappa_high.toFixed(2)})`);

function Judged({ rows, onReviewed }) {
  const columns = [
    { name: "Version", cell: nameVersion },
    { name: "Judge", cell: (one) => one.judge },
    { name: "Mean", number: true, cell: (one) => (one.mean == null ? "–" : one.mean.toFixed(2)) },
    { name: "Interval", cell: (one) => html`<${Interval} one=${one} top=${1} />` },
    { name: "95%", number: true, cell: (one) => `${one.low.toFixed(2)} to ${one.high.toFixed(2)}` },
    { name: "Corrected", cell: (one) => (one.corrected ? `by ${one.labels} reviews`
      : html`no, <span class="quiet">${one.labels} reviews</span>`) },
    { name: "Agrees with people (kappa)", number: true, cell: writeKappa },
    { name: "Compared", number: true, cell: (one) => formatCount(one.compared) },
    { name: "Scored", number: true, cell: (one) => `${formatCount(one.scored)}${
      one.unusable ? `, ${one.unusable} unusable` : ""}` },
  ];
  return html`<${Card} title="Judge">${rows.length ? html`<p class="quiet">A judge errs: its mean is
      corrected by what people say of answers that chance chose, from 20 reviews of a version on.</p>
      <${Table} caption="The judge, by version" columns=${columns} rows=${rows}
        rowKey=${(one) => `${one.deployment} ${one.version} ${one.judge}`} />
      ${may("operator") && html`<${Reviews} onReviewed=${onReviewed} />`}`
    : html`<p class="quiet">No judge has scored an answer. <code>quality: {"{"}judge: …{"}"}</code> in
      the spec names one.</p>`}</${Card}>`;
}

/** One answer at a time, without its version and its score, so that neither is in the way. */
function Reviews({ onReviewed }) {
  const load = useLoad("v1/feedback/reviews?limit=1");
  return html`<h3>Review an answer</h3><${Loaded} load=${load} rows=${2}>${({ data }) => (data.length
    ? html`<${Review} key=${data[0].id} id=${data[0].id} onDone=${() => {
      load.reload();
      onReviewed();
    }} />` : html`<p class="quiet">Every judged answer was reviewed.</p>`)}</${Loaded}>`;
}

function Review({ id, onDone }) {
  const load = useLoad(`v1/requests/${encodeURIComponent(id)}`);
  const [error, setError] = useState(null);
  const send = async (good) => {
    setError(null);
    try {
      await call("POST", "v1/feedback/reviews", { response_id: id, good });
      announce(good ? "Reviewed: good." : "Reviewed: not good.");
      onDone();
    } catch (fault) {
      setError(fault);
    }
  };
  return html`<${Loaded} load=${load} rows=${3}>${(row) => html`
    <ol class="talk">${[...(row.prompt ?? []).slice(-2), ...(row.answer ?? [])].map((one, i) => html`
      <li key=${i} class=${one.role}><p class="who">${one.role || "text"}</p>
        <pre tabindex="0">${one.content ?? ""}</pre></li>`)}</ol>
    ${row.prompt === null && html`<p class="quiet">Its texts are kept no longer.</p>`}
    <p class="actions"><button type="button" class="small" onClick=${() => send(true)}>Good</button>
      <button type="button" class="secondary small" onClick=${() => send(false)}>Not good</button>
      <a href=${link("requests", [id])}>The whole request</a></p>
    ${error && html`<${Failure} error=${error} />`}`}</${Loaded}>`;
}

function Drift({ rows }) {
  const [all, setAll] = useState(false);
  const told = rows.filter((one) => one.drifted);
  const columns = [
    { name: "Day", cell: (one) => formatTime(one.at_s, DAY) },
    { name: "Of", cell: (one) => (one.version ? nameVersion(one) : html`what is asked
      <span class="quiet">${one.deployment}</span>`) },
    { name: "What", cell: (one) => NAMES[one.name] ?? one.name },
    { name: "Change", number: true, cell: (one) => one.effect.toFixed(3) },
    { name: "p", number: true, cell: (one) => (one.p_value < 1e-4 ? "< 0.0001" : one.p_value.toFixed(4)) },
    { name: "Before, now", number: true, cell: (one) => `${formatCount(one.before)}, ${
      formatCount(one.now)}` },
    { name: "Verdict", cell: (one) => (one.drifted ? html`<${Badge} tone="busy">changed</${Badge}>` : "no change") },
  ];
  return html`<${Card} title="Drift" actions=${rows.length > 0 && html`<button type="button"
      class="secondary small" aria-pressed=${all ? "true" : "false"}
      onClick=${() => setAll(!all)}>${all ? "Changes only" : "Every comparison"}</button>`}>
    <p class="quiet">Each day that is over, against up to seven days before it: by how far
      distributions are apart (0 to 1), or by how much a share changed. A change must be more than
      chance, and large enough to matter.</p>
    ${rows.length ? html`<${Table} caption="Days compared" columns=${columns} rows=${all ? rows : told}
      empty=${`${rows.length} comparisons of the last 30 days, and no change.`}
      rowKey=${(one) => `${one.at_s} ${one.deployment} ${one.version} ${one.name}`} />`
      : html`<p class="quiet">No day was compared yet: it takes 200 conversations in a day, and 500 in
        the days before.</p>`}</${Card}>`;
}
