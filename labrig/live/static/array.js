// What is shown of one array; with several, of the one that was chosen.

import { Chart } from "/static/charts.js";
import { count, largestOf, number, percent, quantity, unitFor, unpack } from "/static/format.js";
import { Heatmap } from "/static/heatmap.js";

const $ = (id) => document.getElementById(id);

export class ArrayPanel {
  constructor() {
    this.transfer = new Chart($("transfer"), "Transfer curve", {
      x: "current that the target would give",
      y: "measured",
      mode: 2,
      series: [
        { label: "measured", kind: "dots", colour: "dot" },
        { label: "ideal", kind: "dash", colour: "ink" },
        { label: "fit", kind: "line", colour: "second" },
      ],
    });
    this.noise = new Chart($("noise"), "Noise", {
      x: "size of the output",
      y: "left after the cells' fit",
      series: [{ label: "standard deviation", kind: "marks", colour: "accent" }],
    });
    this.heatmap = new Heatmap({ canvas: $("cells-canvas"), readout: $("cells-readout"), low: $("scale-low"), high: $("scale-high") });
    $("array").addEventListener("change", () => this.show());
    this.reset();
  }

  reset() {
    this.arrays = new Map();
    $("array").replaceChildren();
    $("array-card").hidden = true;
  }

  take(section) {
    const known = this.arrays.has(section.array);
    this.arrays.set(section.array, section);
    if (!known) this.list();
    if (Number($("array").value) === section.array) this.show();
  }

  list() {
    const chosen = $("array").value;
    const names = [...this.arrays.keys()].sort((one, other) => one - other);
    $("array").replaceChildren(...names.map((name) => new Option(String(name), String(name))));
    if (chosen) $("array").value = chosen;
    $("array-choice").hidden = names.length < 2;
  }

  show() {
    const one = this.arrays.get(Number($("array").value));
    if (!one) return;
    $("array-card").hidden = false;
    $("array-name").textContent = String(one.array);
    const saturated = one.saturated === null ? "" : `, ${percent(one.saturated)} of the outputs saturated`;
    const write = one.write < 0 ? "an earlier write" : `write ${one.write}`;
    $("array-note").textContent = `${write}, ${count(one.measured)} MVMs${saturated}; curves are drawn from samples`;
    this.showTransfer(one);
    this.showNoise(one.noise);
    this.showCells(one.cells);
  }

  showTransfer(one) {
    const [ideal, measured] = [unpack(one.cloud.ideal_a), unpack(one.cloud.measured_a)];
    $("transfer").hidden = ideal.length === 0;
    if (!ideal.length) return;
    const [x, y] = [unitFor(largestOf(ideal), "A"), unitFor(largestOf(measured), "A")];
    const scaled = (values, factor) => Array.from(values, (value) => value * factor);
    const end = largestOf(ideal);
    const ends = [-end, end];
    const low = ideal.every((value) => value >= 0) ? [0, end] : ends;
    const data = [null, [scaled(ideal, x.factor), scaled(measured, y.factor)], [scaled(low, x.factor), scaled(low, y.factor)]];
    const fit = one.fit;
    data.push(fit ? [scaled(unpack(fit.ideal_a), x.factor), scaled(unpack(fit.fitted_a), y.factor)] : [[], []]);
    const sentence = fit
      ? `Fit over all columns: gain ${number(fit.gain, 4)}, offset ${quantity(fit.offset_a, "A")}, ` +
        `${percent(fit.compression)} less at the end by the cubic term, spread ${quantity(fit.sigma_a, "A")}.`
      : "Too few outputs for a fit so far.";
    this.transfer.draw(data, { x: x.unit, y: y.unit }, sentence);
  }

  showNoise(noise) {
    $("noise").hidden = !noise;
    if (!noise) return;
    const [signal, sigma] = [unpack(noise.signal_a), unpack(noise.sigma_a)];
    const [x, y] = [unitFor(largestOf(signal), "A"), unitFor(largestOf(sigma), "A")];
    const data = [Array.from(signal, (value) => value * x.factor), Array.from(sigma, (value) => value * y.factor)];
    const sentence =
      `Half of the bins are below ${quantity(noise.median_a, "A")}: what the fitted cells, before they saw it, ` +
      `left of ${count(noise.outputs)} outputs.`;
    this.noise.draw(data, { x: x.unit, y: y.unit }, sentence);
  }

  showCells(cells) {
    $("cells").hidden = !cells;
    if (!cells) return;
    const of = cells.writes > 1 ? " of the latest writes" : "";
    const enough = cells.enough ? "" : ", too few as yet";
    $("cells-note").textContent = `${count(cells.rows)} × ${count(cells.columns)} cells, least squares over ${count(cells.vectors)} vectors${of}${enough}`;
    const [lines, columns] = cells.target_s.shape;
    this.heatmap.show({
      lines,
      columns,
      perPixel: cells.per_pixel,
      rows: cells.rows,
      allColumns: cells.columns,
      target: unpack(cells.target_s),
      error: unpack(cells.error_s),
    });
  }
}
