// The loop: runs that make the next version of a model out of what users said, and their steps.
import { html, useState } from "./vendor.js";
import { call, may } from "./api.js";
import { formatCount, formatDuration, formatShare } from "./format.js";
import { announce, Badge, Card, Dialog, Empty, Loaded, Table, useLoad, When } from "./parts.js";
import { link } from "./router.js";

const TONES = { running: "busy", waiting: "busy", releasing: "busy", failed: "bad", done: "good",
  promoted: "good", rolled_back: "bad", refused: "bad", aborted: "idle", declined: "idle",
  nothing: "idle", given_up: "idle", "not worse": "good", worse: "bad", undecided: "bad" };
const GUARDS = { outlier: "of users who like far more or less than the others", long: "far longer than "
  + "other corrections", per_user: "beyond what counts of one user", per_tenant: "beyond what counts of "
  + "one tenant", agree: "on which too few users agree", trusted: "held out for trusted users" };
const words = (text) => String(text).replaceAll("_", " ");

export default function Improve({ rest }) {
  return rest[0] ? html`<${OneRun} id=${rest[0]} />` : html`<${RunList} />`;
}

function RunList() {
  const load = useLoad("api/v1/improve", { every: 10 });
  const columns = [
    { name: "Run", cell: (one) => html`<a href=${link("improve", [String(one.id)])}>Run ${one.id}</a>${" "}
      <span class="quiet">${one.deployment}</span>` },
    { name: "State", cell: (one) => html`<${Badge} tone=${TONES[one.state]}>${words(one.state)}</${Badge}>` },
    { name: "Step", cell: (one) => one.steps.at(-1)?.step ?? "" },
    { name: "Why", cell: (one) => one.message },
    { name: "Begun", cell: (one) => html`<${When} at=${one.created_s} /> <span class="quiet">by ${
      one.began_by}</span>` },
  ];
  return html`<${Loaded} load=${load} rows=${5}>${({ runs, schedules }) => html`
    <${Card} title="Runs of the loop">${runs.length
      ? html`<${Table} caption="Runs" columns=${columns} rows=${runs} rowKey=${(one) => one.id} />`
      : html`<${Empty} title="No run of the loop yet">A run makes the next version of a model out of
        what users said of its answers: <code>thrifty improve run DEPLOYMENT</code>, or
        ${" "}<code>improve:</code> in the spec.</${Empty}>`}</${Card}>
    ${schedules.length > 0 && html`<${Card} title="What begins the next one"><ul>${schedules.map((one) =>
      html`<li key=${one.deployment}><strong>${one.deployment}</strong>: ${describeSchedule(one)}</li>`)}
      </ul></${Card}>`}`}</${Loaded}>`;
}

function describeSchedule(one) {
  const known = [
    one.every_s && `every ${formatDuration(one.every_s)}`,
    one.feedback && `${formatCount(one.feedback)} new judgements (${formatCount(one.new_feedback)} so far)`,
    one.drift && "drift", one.teacher && "a new teacher",
  ].filter(Boolean);
  return known.length ? known.join(", or ")
    : `by command only; ${formatCount(one.new_feedback)} judgements since the last run began`;
}

function OneRun({ id }) {
  const load = useLoad(`api/v1/improve/runs/${encodeURIComponent(id)}`, { every: 5 });
  const [act, setAct] = useState(null);
  return html`<p><a href=${link("improve")}>All runs</a></p>
    <${Loaded} load=${load} rows=${8}>${(one) => html`
    <${Card} title=${`Run ${one.id} of ${one.deployment}`} actions=${may("operator")
      && one.state === "waiting" && html`<button type="button" class="small"
        onClick=${() => setAct("approve")}>Approve</button> <button type="button"
        class="secondary small" onClick=${() => setAct("decline")}>Decline</button>`}>
      <p><${Badge} tone=${TONES[one.state]}>${words(one.state)}</${Badge}>${one.message
        && html`<br />${one.message}`}</p>
      <p class="quiet small">Begun by ${one.began_by} (${one.who}), <${When} at=${one.created_s} />
        ${one.release != null && html`; <a href=${link("releases", [String(one.release)])}>release ${
          one.release}</a>`}</p></${Card}>
    <${Steps} steps=${one.steps} />
    <${Collected} outputs=${one.steps.find((step) => step.step === "collect")?.outputs ?? {}} />
    ${one.slices.length > 0 && html`<${Card} title="The gate"><${Slices} rows=${one.slices} /></${Card}>`}
    ${act && html`<${Dialog} title=${act === "approve" ? "Release this version?" : "Decline this version?"}
      submit=${act === "approve" ? "Approve" : "Decline"} danger=${act === "decline"}
      onClose=${() => setAct(null)} onSubmit=${async () => {
        await call("POST", `api/v1/improve/runs/${encodeURIComponent(id)}/${act}`, {});
        announce(act === "approve" ? "Approved; its release begins." : "Declined.");
        load.reload();
      }}><p>${act === "approve" ? "Its release begins by the plan in the spec."
        : "The run ends, and what serves stays."}</p></${Dialog}>`}`}</${Loaded}>`;
}

const SHOWN = ["data", "method", "model", "served", "label", "verdict", "against", "state", "who", "before",
  "after", "unit", "best_step", "steps"];
const show = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));

/** How far a step is that runs. */
function showProgress(progress) {
  if (!progress?.total || progress.unit === "bytes") return progress?.step;
  return `${progress.step}: ${formatCount(progress.done)} of ${formatCount(progress.total)} ${progress.unit}`;
}

function Steps({ steps }) {
  const columns = [
    { name: "Step", cell: (one) => one.step },
    { name: "State", cell: (one) => html`<${Badge} tone=${TONES[one.state]}>${one.state}</${Badge}>${
      one.tries > 1 ? html` <span class="quiet">${one.tries} tries</span>` : ""}` },
    { name: "Took", number: true, cell: (one) => (one.ended_s == null ? "–"
      : formatDuration(Math.max(0, one.ended_s - one.began_s))) },
    { name: "What it came to", cell: (one) => one.error || showProgress(one.outputs.progress) || SHOWN.filter((name) => one.outputs[name] != null)
      .map((name) => `${words(name)} ${show(one.outputs[name])}`).join(", ") },
  ];
  return html`<${Card} title="Steps"><${Table} caption="Steps of the run" columns=${columns} rows=${steps}
    rowKey=${(one) => one.step} empty="No step has begun." /></${Card}>`;
}

/** What the first step took, and what it left out and why. */
function Collected({ outputs }) {
  if (outputs.judged == null) return null;
  const counted = (found, name) => Object.entries(found ?? {}).filter(([, count]) => count > 0)
    .map(([key, count]) => html`<li key=${key}>${formatCount(count)} ${name(key)}</li>`);
  const left = [
    ...counted(outputs.left_out, (key) => `judgements ${GUARDS[key] ?? words(key)}`),
    ...counted(outputs.no_row, (key) => `responses: ${words(key)}`),
    ...counted(outputs.removed, (key) => `rows removed by the stage ${words(key)}`),
    ...counted({ own: outputs.own }, () => "rows that teach what the loop's own versions said"),
  ];
  return html`<${Card} title="What was collected"><p>${formatCount(outputs.judged)} judged answers of ${
    formatCount(outputs.users)} users gave ${formatCount(outputs.learned)} rows to learn from and ${
    formatCount(outputs.held_out)} held out, in ${outputs.data}.${outputs.taught?.rows
      ? ` ${formatCount(outputs.taught.rows)} of them are answers of the teacher ${outputs.taught.by}.` : ""}${
    outputs.trusted ? ` ${formatCount(outputs.trusted.rows)} judgements of trusted users are held out in ${
      outputs.trusted.data}, and judge the gate.` : ""}</p>
    ${left.length ? html`<h3>Left out</h3><ul>${left}</ul>` : html`<p class="quiet">Nothing was left out.</p>`}
  </${Card}>`;
}

const change = (value) => `${value >= 0 ? "+" : ""}${(value * 100).toFixed(1)}%`;

function Slices({ rows }) {
  const value = (one, found) => (found == null ? "–" : one.metric === "text"
    ? String(Number(found.toPrecision(4))) : formatShare(found));
  const columns = [
    { name: "Slice", cell: (one) => html`${one.metric} <span class="quiet">${one.name}</span>` },
    { name: "Of", number: true, cell: (one) => formatCount(one.count) },
    { name: "New", number: true, cell: (one) => value(one, one.candidate) },
    { name: "Serving", number: true, cell: (one) => value(one, one.against) },
    { name: "Base", number: true, cell: (one) => value(one, one.base) },
    { name: "Difference", number: true, cell: (one) => change(one.difference) },
    { name: "95%", number: true, cell: (one) => `${change(one.low)} to ${change(one.high)}` },
    { name: "Outcome", cell: (one) => html`<${Badge} tone=${one.failed ? "bad" : TONES[one.outcome]
      === "bad" ? "idle" : TONES[one.outcome]}>${one.outcome}</${Badge}>` },
  ];
  return html`<${Table} caption="Slices of the gate" columns=${columns} rows=${rows}
    rowKey=${(one) => `${one.metric} ${one.name}`} />`;
}
