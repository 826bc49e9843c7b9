// Releases: versions on their way to all of the traffic, and what each decision rested on.
import { html, useRef, useState } from "./vendor.js";
import { call, may, status } from "./api.js";
import { Chart } from "./chart.js";
import { formatCount, formatDuration, formatShare } from "./format.js";
import { announce, Badge, Card, Dialog, Empty, Loaded, Table, useLoad, When } from "./parts.js";
import { link } from "./router.js";

const TONES = { better: "good", "not worse": "good", "nothing worse": "good",
  worse: "bad", inconclusive: "idle",
  running: "busy", paused: "busy", promoted: "good", rolled_back: "bad", aborted: "bad", ended: "idle" };
const SHARES = new Set(["acceptance", "errors", "judged", "rated"]);
const TIMES = new Set(["ttft", "tpot"]);
const LOOK_S = 5;
const MAX_LOOKS = 1000;

export default function Releases({ rest }) {
  return rest[0] ? html`<${OneRelease} id=${rest[0]} />` : html`<${ReleaseList} />`;
}

function ReleaseList() {
  const load = useLoad("api/v1/releases", { every: 10 });
  const [open, setOpen] = useState(false);
  const candidates = (status.value?.deployments ?? []).filter((one) => one.versions.length > 1);
  const columns = [
    { name: "Candidate", cell: (one) => html`<a href=${link("releases", [String(one.id)])}>${
      one.candidate}</a> <span class="quiet">${one.deployment}</span>` },
    { name: "State", cell: (one) => html`<${Badge} tone=${TONES[one.state]}>${one.state}</${Badge}>` },
    { name: "Stage", cell: (one) => one.stage },
    { name: "Verdict", cell: (one) => (one.verdict ? html`<${Badge} tone=${TONES[one.verdict]}>${
      one.verdict}</${Badge}>` : html`<span class="quiet">not yet</span>`) },
    { name: "Why", cell: (one) => one.message || one.why },
    { name: "Begun", cell: (one) => html`<${When} at=${one.created_s} /> <span class="quiet">by ${one.who}</span>` },
  ];
  const actions = may("operator") && candidates.length > 0 && html`<button type="button" class="small"
    onClick=${() => setOpen(true)}>Release a version</button>`;
  return html`<${Loaded} load=${load} rows=${5}>${({ releases }) => html`
    <${Card} title="Releases" actions=${actions}>${releases.length
      ? html`<${Table} caption="Releases" columns=${columns} rows=${releases} rowKey=${(one) => one.id} />`
      : html`<${Empty} title="No release yet">A release moves traffic to a version step by step, as
        long as nothing gets worse: <code>thrifty release</code>.</${Empty}>`}</${Card}>
    ${open && html`<${NewRelease} deployments=${candidates} onClose=${() => setOpen(false)}
      onDone=${load.reload} />`}`}</${Loaded}>`;
}

function NewRelease({ deployments, onClose, onDone }) {
  const [name, setName] = useState(deployments[0].name);
  const versions = deployments.find((one) => one.name === name).versions;
  const send = async (form) => {
    await call("POST", `api/v1/deployments/${encodeURIComponent(name)}/releases`,
      { candidate: form.get("candidate"), why: form.get("why") });
    announce("The release has begun.");
    onDone();
  };
  return html`<${Dialog} title="Release a version" submit="Begin" onClose=${onClose} onSubmit=${send}>
    <label>Deployment <select value=${name} onChange=${(event) => setName(event.target.value)}>
      ${deployments.map((one) => html`<option key=${one.name}>${one.name}</option>`)}</select></label>
    <label>Candidate <select name="candidate" key=${name}>${versions.slice().sort(
      (a, b) => a.weight - b.weight).map((one) => html`<option key=${one.label}>${one.label}</option>`)}
    </select></label>
    <label>Why <input name="why" maxlength="500" /></label>
    <p class="quiet small">By the plan's defaults; <code>thrifty release --plan FILE</code> takes
      another one.</p></${Dialog}>`;
}

const ACTS = { running: ["pause", "promote", "abort"], paused: ["resume", "promote", "abort"] };

function OneRelease({ id }) {
  const load = useLoad(`api/v1/releases/${encodeURIComponent(id)}`, { every: LOOK_S });
  const [act, setAct] = useState(null);
  return html`<p><a href=${link("releases")}>All releases</a></p>
    <${Loaded} load=${load} rows=${8}>${(one) => html`
    <${Card} title=${`${one.candidate} of ${one.deployment}`} actions=${may("operator")
      && (ACTS[one.state] ?? []).map((name) => html`<button type="button" key=${name}
        class="secondary small" onClick=${() => setAct(name)}>${name[0].toUpperCase()}${name.slice(1)}
      </button>`)}>
      <p><${Badge} tone=${TONES[one.state]}>${one.state}</${Badge}> at ${one.stage}${one.verdict
        ? html`, <${Badge} tone=${TONES[one.verdict]}>${one.verdict}</${Badge}>` : ", without a verdict yet"}
        ${one.message && html`<br />${one.message}`}</p>
      <p class="quiet small">By ${one.who}, <${When} at=${one.created_s} />${one.why ? `: ${one.why}` : ""};
        ran for ${formatDuration(one.active_s)}</p>
      <${Metrics} figures=${one.figures} /></${Card}>
    <${Course} key=${one.id} release=${one} />
    <${Card} title="Decisions"><${Events} events=${one.events} /></${Card}>
    <${Card} title="Plan"><pre tabindex="0">${JSON.stringify(one.plan, null, 2)}</pre></${Card}>
    ${act && html`<${Dialog} title=${`${act[0].toUpperCase()}${act.slice(1)} the release?`} submit=${act}
      danger=${act === "abort"} onClose=${() => setAct(null)} onSubmit=${async (form) => {
        await call("POST", `api/v1/releases/${encodeURIComponent(id)}/${act}`, { why: form.get("why") });
        announce(`Done: ${act}.`);
        load.reload();
      }}><label>Why <input name="why" maxlength="500" /></label></${Dialog}>`}`}</${Loaded}>`;
}

const change = (value) => (value == null ? "…" : `${value >= 0 ? "+" : ""}${(value * 100).toFixed(1)}%`);

function Metrics({ figures }) {
  const rows = Object.values(figures.metrics ?? {});
  const show = (one, value) => (value == null ? "–" : SHARES.has(one.metric) ? formatShare(value, 2)
    : `${Number(value.toPrecision(4))}${TIMES.has(one.metric) ? " ms" : ""}`);
  const columns = [
    { name: "Metric", cell: (one) => one.metric },
    { name: "Candidate", number: true, cell: (one) => show(one, one.candidate) },
    { name: "Others", number: true, cell: (one) => show(one, one.others) },
    { name: "Difference", number: true, cell: (one) => (one.difference == null ? "–" : change(one.difference)) },
    { name: "Interval", number: true, cell: (one) => (one.low == null && one.high == null ? "–"
      : `${change(one.low)} to ${change(one.high)}`) },
    { name: "Of", number: true, cell: (one) => `${formatCount(one.candidate_count)} and ${
      formatCount(one.others_count)}` },
    { name: "Verdict", cell: (one) => html`<${Badge} tone=${TONES[one.verdict]}>${one.verdict}</${Badge}>` },
  ];
  return html`<${Table} caption="Metrics" columns=${columns} rows=${rows} rowKey=${(one) => one.metric}
    empty="No figures yet." />${figures.silent_pairs > 0 && html`<p class="quiet small">The judge said
    nothing usable of ${formatCount(figures.silent_pairs)} of ${formatCount(figures.pairs)} pairs; they
    do not count.</p>`}`;
}

/** How the interval of each metric narrows: at each decision, and at each look while the page is open. */
function Course({ release }) {
  const looks = useRef([]);
  const newest = looks.current.at(-1);
  const running = release.state === "running" || release.state === "paused";
  if (running && newest?.figures !== release.figures && release.figures.metrics) {
    looks.current = [...looks.current, { at_s: Date.now() / 1000, figures: release.figures }].slice(-MAX_LOOKS);
  }
  const known = [...release.events.filter((one) => one.figures?.metrics), ...looks.current]
    .sort((a, b) => a.at_s - b.at_s);
  if (known.length < 2) return null;
  const pick = (name, key) => known.map((one) => one.figures.metrics[name]?.[key] ?? null);
  const names = [...new Set(known.flatMap((one) => Object.keys(one.figures.metrics)))]
    .filter((name) => pick(name, "difference").some((value) => value != null));
  return html`<div class="two">${names.map((name) => html`<${Card} key=${name}
    title=${`Difference in ${name}`}><${Chart} title=${`Difference in ${name}`}
      times=${known.map((one) => one.at_s)} format=${change} stepped
      series=${[{ label: "lower end", values: pick(name, "low") }, { label: "difference",
        values: pick(name, "difference") }, { label: "upper end", values: pick(name, "high") }]} />
    </${Card}>`)}</div>`;
}

function Events({ events }) {
  return html`<ol class="changes">${events.slice().reverse().map((one, i) => html`<li key=${i}>
    <${Badge} tone="idle">${one.kind}</${Badge}><div>${one.why}<br /><span class="quiet small">${one.who},
    ${" "}<${When} at=${one.at_s} /></span></div></li>`)}</ol>`;
}
