// Curves by uPlot, in the colours of the page, with a sentence that says the same.

import { number } from "/static/format.js";

const charts = new Set();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/**
 * One plot in a figure.
 *
 * @param {HTMLElement} figure - where
 * @param {string} title
 * @param {{x: string, y: string, series: {label: string, kind: "dots"|"line"|"dash", colour: string}[], mode?: 2}} what
 */
export class Chart {
  constructor(figure, title, what) {
    this.what = what;
    this.plot = null;
    this.data = null;
    const caption = document.createElement("figcaption");
    const strong = document.createElement("strong");
    strong.textContent = title;
    caption.append(strong);
    this.box = document.createElement("div");
    this.box.className = what.series.length > 1 ? "plot" : "plot single";
    this.box.setAttribute("role", "img");
    this.box.setAttribute("aria-label", title);
    this.text = document.createElement("p");
    this.text.className = "plot-text";
    figure.append(caption, this.box, this.text);
    this.title = title;
    new ResizeObserver(() => this.fit()).observe(this.box);
    charts.add(this);
  }

  /** Draws data as uPlot wants it; `units` are those of the axes, `sentence` is what the curves say. */
  draw(data, units, sentence) {
    this.text.textContent = sentence;
    this.box.setAttribute("aria-label", `${this.title}: ${sentence}`);
    const same = this.plot && this.units && this.units.x === units.x && this.units.y === units.y;
    this.data = data;
    this.units = units;
    if (same) this.plot.setData(data);
    else this.make();
  }

  make() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.data || !this.box.clientWidth) return;
    const label = (text, unit) => (unit ? `${text} (${unit})` : text);
    const axis = (text) => ({ label: text, stroke: colour("faint"), grid: { stroke: colour("grid"), width: 1 }, ticks: { stroke: colour("grid"), width: 1 }, labelSize: 18, labelGap: 0, font: "12px system-ui", labelFont: "12px system-ui" });
    const facets = this.what.mode === 2;
    this.plot = new uPlot(
      {
        width: this.box.clientWidth,
        height: 260,
        mode: facets ? 2 : 1,
        legend: { show: true, live: !facets },
        cursor: { drag: { x: false, y: false }, points: { show: !facets } },
        scales: { x: { time: false }, y: {} },
        axes: [{ ...axis(label(this.what.x, this.units.x)), size: 34 }, { ...axis(label(this.what.y, this.units.y)), size: 48 }],
        series: [facets ? null : { label: this.what.x, value: said }, ...this.what.series.map((one) => styled(one, facets))],
      },
      this.data,
      this.box,
    );
  }

  fit() {
    if (!this.plot) this.make();
    else if (this.plot.width !== this.box.clientWidth && this.box.clientWidth) this.plot.setSize({ width: this.box.clientWidth, height: 260 });
  }
}

function styled(one, facets) {
  const stroke = colour(one.colour);
  const series = { label: one.label, stroke, width: 2, points: { show: false }, spanGaps: true, value: said };
  if (one.kind === "dash") series.dash = [6, 5];
  if (one.kind === "marks") series.points = { show: true, size: 6, fill: stroke, stroke };
  if (facets) {
    series.facets = [{ scale: "x", auto: true }, { scale: "y", auto: true }];
    series.paths = one.kind === "dots" ? dots(stroke) : lines(stroke, one.kind === "dash");
  }
  return series;
}

/** What the legend says at the pointer; nothing where there is none. */
function said(_, value) {
  return value === null || value === undefined ? "" : number(value, 4);
}

/** Small squares: a cloud of a thousand is drawn in a millisecond. */
function dots(stroke) {
  return (plot, index) => {
    const [xs, ys] = plot.data[index];
    const size = Math.max(2, 2.4 * devicePixelRatio);
    plot.ctx.save();
    plot.ctx.fillStyle = stroke;
    plot.ctx.globalAlpha = 0.55;
    for (let point = 0; point < xs.length; point++) {
      plot.ctx.fillRect(plot.valToPos(xs[point], "x", true) - size / 2, plot.valToPos(ys[point], "y", true) - size / 2, size, size);
    }
    plot.ctx.restore();
    return null;
  };
}

function lines(stroke, dashed) {
  return (plot, index) => {
    const [xs, ys] = plot.data[index];
    plot.ctx.save();
    plot.ctx.strokeStyle = stroke;
    plot.ctx.lineWidth = 2 * devicePixelRatio;
    if (dashed) plot.ctx.setLineDash([6 * devicePixelRatio, 5 * devicePixelRatio]);
    plot.ctx.beginPath();
    for (let point = 0; point < xs.length; point++) plot.ctx.lineTo(plot.valToPos(xs[point], "x", true), plot.valToPos(ys[point], "y", true));
    plot.ctx.stroke();
    plot.ctx.restore();
    return null;
  };
}

/** Colours are read when a chart is made, so a change of scheme makes all anew. */
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.make()));
