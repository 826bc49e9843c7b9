// Playground: talk to a deployment, or to two versions side by side, and say which one is better.
import { html, useEffect, useRef, useState } from "./vendor.js";
import { ApiError, call, may, request } from "./api.js";
import { formatCount, formatMs, formatRate } from "./format.js";
import { announce, Badge, copyText, Empty, Failure, Loaded, useLoad } from "./parts.js";
import { Markdown } from "./markdown.js";
import { link } from "./router.js";

const TEXT_CHUNK = /\r?\n\r?\n/;
let lastTurn = 0;

export default function Playground() {
  const load = useLoad("v1/models");
  return html`<${Loaded} load=${load}>${({ data }) => {
    const models = data.filter((one) => one.deployment === one.id);
    return models.length ? html`<${Table} models=${models} />`
      : html`<${Empty} title="Nothing is deployed">Start something: <code>thrifty up SPEC</code></${Empty}>`;
  }}</${Loaded}>`;
}

/** What one version said in one turn: text, error, times and the response's id. */
const newAnswer = () => ({ text: "", state: "waiting", said: null, begunMs: performance.now() });

function Table({ models }) {
  const [model, setModel] = useState(models[0].id);
  const deployment = models.find((one) => one.id === model);
  const labels = deployment.versions.map((one) => one.label);
  const [left, setLeft] = useState("");
  const [right, setRight] = useState("");
  const [compare, setCompare] = useState(false);
  const [blind, setBlind] = useState(false);
  const [options, setOptions] = useState({ system: "", max_tokens: 512, temperature: "" });
  const [turns, setTurns] = useState([]);
  const [draft, setDraft] = useState("");
  const abort = useRef(null);
  const busy = turns.some((turn) => turn.answers.some((one) => isOpen(one)));
  useEffect(() => () => abort.current?.abort(), []);

  const start = (name) => {
    abort.current?.abort();
    setModel(name);
    setTurns([]);
    const versions = models.find((one) => one.id === name).versions;
    setLeft("");
    setRight("");
    if (versions.length < 2) setCompare(false);
  };
  const compareVersions = (on) => {
    setCompare(on);
    setLeft(on ? left || labels[0] : "");
    if (on && !right) setRight(labels.find((label) => label !== (left || labels[0])));
  };
  const sides = () => {
    if (!compare) return [left];
    const pair = [left, right];
    return blind && Math.random() < 0.5 ? pair.reverse() : pair;
  };
  const change = (id, place, values) => setTurns((all) => all.map((turn) => (turn.id !== id ? turn
    : { ...turn, answers: turn.answers.map((one, i) => (i === place ? { ...one, ...values } : one)) })));

  const ask = async (id, question, versions, before) => {
    abort.current = new AbortController();
    await Promise.all(versions.map(async (version, place) => {
      const messages = [
        ...(options.system ? [{ role: "system", content: options.system }] : []),
        ...before.flatMap((turn) => [{ role: "user", content: turn.question }, {
          role: "assistant", content: turn.answers[place]?.text ?? turn.answers[0].text }]),
        { role: "user", content: question },
      ];
      await stream({ model, version, messages, options, abort: abort.current.signal },
        (values) => change(id, place, values));
    }));
    announce("The answer is complete.");
  };
  const send = (event) => {
    event?.preventDefault();
    const question = draft.trim();
    if (!question || busy) return;
    lastTurn += 1;
    const id = lastTurn;
    // One conversation keeps its sides, so that nobody can tell them apart by their order.
    const versions = turns.length ? turns[0].versions : sides();
    const turn = { id, question, versions, answers: versions.map(newAnswer), revealed: false };
    setDraft("");
    setTurns([...turns, turn]);
    ask(id, question, versions, turns);
  };
  const regenerate = (turn) => {
    turn.answers.forEach((one) => note(one, "regenerated"));
    setTurns((all) => all.map((one) => (one.id === turn.id
      ? { ...one, answers: one.versions.map(newAnswer) } : one)));
    ask(turn.id, turn.question, turn.versions, turns.slice(0, turns.indexOf(turn)));
  };
  const reset = () => {
    abort.current?.abort();
    setTurns([]);
  };

  return html`<div class="toolbar">
      <label>Deployment <select value=${model} onChange=${(event) => start(event.target.value)}>
        ${models.map((one) => html`<option key=${one.id}>${one.id}</option>`)}</select></label>
      ${may("operator") && html`<label>${compare ? "One version" : "Version"}
        <select value=${left} disabled=${turns.length > 0} onChange=${(event) => setLeft(event.target.value)}>
        ${!compare && html`<option value="">By traffic</option>`}${labels.map((label) => html`<option
          key=${label} value=${label}>${label}</option>`)}</select></label>`}
      ${may("operator") && compare && html`<label>Other version
        <select value=${right} disabled=${turns.length > 0}
          onChange=${(event) => setRight(event.target.value)}>
        ${labels.map((label) => html`<option key=${label} value=${label}>${label}</option>`)}</select></label>`}
      ${may("operator") && labels.length > 1 && html`<fieldset class="switches">
        <label><input type="checkbox" role="switch" checked=${compare} disabled=${turns.length > 0}
          onChange=${(event) => compareVersions(event.target.checked)} /> Side by side</label>
        <label><input type="checkbox" role="switch" checked=${blind} disabled=${!compare || turns.length > 0}
          onChange=${(event) => setBlind(event.target.checked)} /> Blind</label></fieldset>`}
      ${turns.length > 0 && html`<button type="button" class="secondary" onClick=${reset}>New conversation</button>`}
    </div>
    <details class="card options"><summary>Instructions and sampling</summary>
      <label>System message <textarea rows="2" value=${options.system}
        onInput=${(event) => setOptions({ ...options, system: event.target.value })}></textarea></label>
      <div class="grid"><label>Most tokens <input type="number" min="1" max="100000" value=${options.max_tokens}
        onInput=${(event) => setOptions({ ...options, max_tokens: Number(event.target.value) })} /></label>
      <label>Temperature <input type="number" min="0" max="2" step="0.1" placeholder="the model's own"
        value=${options.temperature}
        onInput=${(event) => setOptions({ ...options, temperature: event.target.value })} /></label></div>
    </details>
    ${turns.length === 0 ? html`<${Empty} title="Ask something">Your requests count like any other:
      they are in the <a href=${link("requests")}>request log</a>, and thumbs are real feedback.</${Empty}>`
    : html`<ol class="turns">${turns.map((turn) => html`<${Turn} key=${turn.id} turn=${turn}
      blind=${blind} busy=${busy} onRegenerate=${() => regenerate(turn)}
      onReveal=${() => setTurns((all) => all.map((one) => ({ ...one, revealed: true })))}
      onSaid=${(place, said) => change(turn.id, place, { said })} />`)}</ol>`}
    <form class="composer" onSubmit=${send}>
      <label><span class="hidden">Your message</span><textarea rows="3" value=${draft}
        placeholder="Your message; Enter sends, Shift+Enter begins a new line"
        onInput=${(event) => setDraft(event.target.value)}
        onKeyDown=${(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
        }}></textarea></label>
      ${busy ? html`<button type="button" class="secondary" onClick=${() => abort.current?.abort()}>Stop</button>`
        : html`<button type="submit" disabled=${!draft.trim()}>Send</button>`}
    </form>`;
}

const isOpen = (answer) => answer.state === "waiting" || answer.state === "writing";

function Turn({ turn, blind, busy, onRegenerate, onReveal, onSaid }) {
  const hidden = blind && turn.versions.length > 1 && !turn.revealed;
  return html`<li class="turn">
    <div class="question"><p class="who">You</p><p class="asked">${turn.question}</p></div>
    <div class=${turn.answers.length > 1 ? "sides" : ""}>${turn.answers.map((answer, place) => html`
      <${Answer} key=${place} answer=${answer}
        name=${hidden ? `Version ${place === 0 ? "A" : "B"}` : answer.version ?? turn.versions[place]}
        hidden=${hidden} onSaid=${(said) => onSaid(place, said)} />`)}</div>
    <div class="actions">
      <button type="button" class="secondary small" disabled=${busy} onClick=${onRegenerate}>Regenerate</button>
      ${hidden && html`<button type="button" class="secondary small" onClick=${onReveal}>Reveal the versions</button>`}
    </div></li>`;
}

function Answer({ answer, name, hidden, onSaid }) {
  const [correcting, setCorrecting] = useState(false);
  const [error, setError] = useState(null);
  const say = async (fields, said) => {
    setError(null);
    try {
      await give(answer, fields);
      onSaid(said);
      announce("Thank you, the feedback is saved.");
    } catch (fault) {
      setError(fault);
    }
  };
  const copy = async () => {
    await copyText(answer.text);
    note(answer, "copied");
  };
  const whole = !isOpen(answer) && answer.id;
  return html`<section class="answer" aria-label=${`Answer of ${name || "the model"}`}
      aria-busy=${isOpen(answer) ? "true" : "false"}>
    <p class="who">${name || "Answer"} ${answer.cache === "hit" && html`<${Badge} tone="good">cached</${Badge}>`}</p>
    ${answer.state === "waiting" && html`<p class="quiet">Waiting for the first token …</p>`}
    <${Markdown} text=${answer.text} />
    ${answer.error && html`<${Failure} error=${answer.error} />`}
    ${whole && html`<p class="quiet small">${hidden ? "" : describeTimes(answer)}</p>
    <div class="actions">
      <button type="button" class="secondary small" aria-pressed=${answer.said === "up" ? "true" : "false"}
        onClick=${() => say({ thumbs: "up" }, "up")}>Good</button>
      <button type="button" class="secondary small" aria-pressed=${answer.said === "down" ? "true" : "false"}
        onClick=${() => say({ thumbs: "down" }, "down")}>Bad</button>
      <button type="button" class="secondary small" onClick=${copy}>Copy</button>
      <button type="button" class="secondary small" aria-expanded=${correcting ? "true" : "false"}
        onClick=${() => setCorrecting(!correcting)}>Correct</button>
      ${!hidden && html`<a class="small" href=${link("requests", [answer.id])}>In the log</a>`}
    </div>`}
    ${error && html`<${Failure} error=${error} />`}
    ${correcting && html`<form class="correction" onSubmit=${(event) => {
      event.preventDefault();
      const text = new FormData(event.target).get("correction").trim();
      if (text) say({ correction: text }, answer.said).then(() => setCorrecting(false));
    }}><label>How it should read <textarea name="correction" rows="4" required
      maxlength="100000">${answer.text}</textarea></label>
      <button type="submit" class="small">Save the correction</button></form>`}
  </section>`;
}

function describeTimes(answer) {
  const writing = answer.doneMs - answer.firstMs;
  // What comes in one piece, such as an answer from a cache, says nothing of the pace.
  const rate = answer.tokens > 1 && writing > 100 ? ((answer.tokens - 1) / writing) * 1000 : null;
  return [
    answer.firstMs ? `First token ${formatMs(answer.firstMs - answer.begunMs)}` : null,
    rate ? `${formatRate(rate)} tokens/s` : null,
    answer.tokens ? `${formatCount(answer.tokens)} tokens` : null,
    `whole ${formatMs(answer.doneMs - answer.begunMs)}`,
  ].filter(Boolean).join(" · ");
}

const give = (answer, fields) => call("POST", "v1/feedback", { response_id: answer.id, ...fields });

/** An event is worth keeping, and no reason to bother anybody where it cannot be. */
function note(answer, event) {
  if (answer.id) give(answer, { event }).catch(() => {});
}

/** Ask, and tell `change` what is known so far. */
async function stream({ model, version, messages, options, abort }, change) {
  const headers = { "content-type": "application/json" };
  if (version) headers["x-thrifty-version"] = version;
  const body = { model, messages, stream: true, stream_options: { include_usage: true },
    max_tokens: options.max_tokens || undefined,
    temperature: options.temperature === "" ? undefined : Number(options.temperature) };
  const found = { text: "", begunMs: performance.now() };
  try {
    const answer = await request("v1/chat/completions", {
      method: "POST", headers, body: JSON.stringify(body), signal: abort });
    found.id = answer.headers.get("x-thrifty-response-id");
    found.version = answer.headers.get("x-thrifty-version");
    found.cache = answer.headers.get("x-thrifty-cache");
    await readEvents(answer.body, (event) => take(event, found, change));
    change({ ...found, state: "done", doneMs: performance.now() });
  } catch (error) {
    const stopped = error.name === "AbortError";
    change({ ...found, state: stopped ? "stopped" : "failed", doneMs: performance.now(),
      error: stopped ? null : error });
  }
}

let painted = 0;

function take(event, found, change) {
  if (event.error) throw new ApiError(0, event.error.code, event.error.message);
  if (event.usage) found.tokens = event.usage.completion_tokens;
  const text = event.choices?.[0]?.delta?.content;
  if (!text) return;
  found.firstMs ??= performance.now();
  found.text += text;
  // Reading Markdown anew for each token would take longer than writing it.
  if (performance.now() - painted < 60) return;
  painted = performance.now();
  change({ ...found, state: "writing" });
}

async function readEvents(body, onEvent) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    buffer += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const parts = buffer.split(TEXT_CHUNK);
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trim()).join("\n");
      if (data && data !== "[DONE]") onEvent(JSON.parse(data));
    }
    if (done) return;
  }
}

