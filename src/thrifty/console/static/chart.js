// A chart with the same figures as a table beside it. Canvases are drawn by uPlot.
import { html, uPlot, useEffect, useRef } from "./vendor.js";
import { formatTime } from "./format.js";
import { theme } from "./theme_state.js";

const HEIGHT = 190;
const MAX_ROWS = 60;
const DAY_S = 86_400;
const DAY_STEPS = [1, 2, 3, 5, 7, 10, 15, 30].map((days) => days * DAY_S);
const WHOLE_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10_000, 100_000];

/** Colours come from the style sheet, so that they fit the theme. */
function readColours(element) {
  const style = getComputedStyle(element);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    text: read("--quiet"), grid: read("--line"), mark: read("--quiet"),
    lines: [0, 1, 2, 3, 4, 5].map((i) => read(`--s${i}`)),
  };
}

/**
 * `times` in seconds; `series`: {label, values, stepped?}; `format` writes a value; `marks`: {at,
 * label}, events such as a change of traffic.
 */
export function Chart({ title, times, series, format = String, marks = [], stepped = false,
  integer = false }) {
  const box = useRef(null);
  const plot = useRef(null);
  const shown = series.slice(0, 6);
  const daily = times.length > 1 && times[1] - times[0] >= DAY_S;
  const shape = `${daily} ${theme.value} ${stepped} ${shown.map((one) => one.label).join("|")}`;
  const markKey = marks.map((mark) => mark.at).join();
  useEffect(() => {
    const element = box.current;
    const colours = readColours(element);
    const narrow = element.clientWidth < 420;
    plot.current = new uPlot(
      makeOptions(element, colours, shown, { format, marks, stepped, integer, narrow, daily }), pack(times, shown),
      element,
    );
    const watcher = new ResizeObserver(() => {
      plot.current?.setSize({ width: element.clientWidth, height: HEIGHT });
    });
    watcher.observe(element);
    return () => {
      watcher.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape, markKey]);
  useEffect(() => { plot.current?.setData(pack(times, shown)); }, [times, series]);
  return html`<figure class="chart">
    <figcaption>${title}
      <ul class="legend">${shown.map((one, i) => html`<li key=${one.label}><span class="s${i}">
        </span>${one.label}</li>`)}</ul></figcaption>
    <div ref=${box} class="plot" role="img" aria-label=${`${title}: chart; the figures are in the table below`}></div>
    <${Figures} title=${title} times=${times} series=${shown} format=${format} />
  </figure>`;
}

function Figures({ title, times, series, format }) {
  const every = Math.ceil(times.length / MAX_ROWS);
  const rows = times.map((at, i) => [at, i]).filter(([, i]) => i % every === 0).reverse();
  return html`<details class="figures"><summary>Figures as a table</summary>
    <div class="scroll" role="region" aria-label=${`${title}, figures`} tabindex="0"><table>
      <caption class="hidden">${title}</caption>
      <thead><tr><th scope="col">Time</th>${series.map((one) => html`<th scope="col"
        key=${one.label} class="number">${one.label}</th>`)}</tr></thead>
      <tbody>${rows.map(([at, i]) => html`<tr key=${at}><th scope="row">${formatTime(at)}</th>
        ${series.map((one) => html`<td key=${one.label} class="number">${
          one.values[i] == null ? "–" : format(one.values[i])}</td>`)}</tr>`)}</tbody>
    </table></div></details>`;
}

const pack = (times, series) => [times, ...series.map((one) => one.values)];

function makeOptions(element, colours, series, { format, marks, stepped, integer, narrow, daily }) {
  const axis = {
    stroke: colours.text, grid: { stroke: colours.grid, width: 1 },
    ticks: { show: false }, font: "12px system-ui, sans-serif",
  };
  return {
    width: element.clientWidth || 300,
    height: HEIGHT,
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { size: 6 } },
    padding: [8, 24, 0, 0],
    scales: { y: { range: (_, low, high) => findRange(low ?? 0, high ?? 0) } },
    axes: [
      { ...axis, size: 30, space: narrow ? 70 : 60, incrs: daily ? DAY_STEPS : undefined,
        values: (_, splits, __, ___, gap) => splits.map((at) => formatTime(
          at, { date: gap >= DAY_S, time: gap < DAY_S, second: gap < 60 })) },
      { ...axis, size: narrow ? 52 : 60, incrs: integer ? WHOLE_STEPS : undefined, values: (_, splits) => splits.map(format) },
    ],
    series: [
      {},
      ...series.map((one, i) => ({
        label: one.label, stroke: colours.lines[i], width: 2, spanGaps: true,
        fill: series.length === 1 ? `${colours.lines[i]}22` : undefined,
        points: { show: one.values.filter((value) => value != null).length < 12, size: 5 },
        paths: stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
      })),
    ],
    hooks: { draw: [(plot) => drawMarks(plot, marks, colours)] },
  };
}

/** From the lowest to the highest value, and to 0. */
export function findRange(low, high) {
  if (low >= 0 && high <= 0) return [0, 1.08];
  return [Math.min(0, low) * 1.08, Math.max(0, high) * 1.08];
}

function drawMarks(plot, marks, colours) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = colours.mark;
  ctx.setLineDash([4, 4]);
  for (const mark of marks) {
    const x = Math.round(plot.valToPos(mark.at, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}
