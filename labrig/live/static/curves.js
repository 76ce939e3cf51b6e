// Curves over time or steps: training, and the array supply.

import { Chart } from "/static/charts.js";
import { count, largestOf, number, percent, quantity, unitFor, unpack } from "/static/format.js";

const $ = (id) => document.getElementById(id);
const COLOURS = ["accent", "second", "ink", "dot"];

export class Curves {
  constructor() {
    this.accuracy = new Chart($("accuracy"), "Accuracy against passes", { x: "passes through the chip", y: "accuracy of the batch", series: [{ label: "accuracy", kind: "line", colour: "accent" }] });
    this.gap = new Chart($("gap"), "Gap between chip and surrogate", { x: "passes through the chip", y: "relative difference", series: [{ label: "largest gap of a layer", kind: "line", colour: "second" }] });
    this.power = new Chart($("supply"), "Power", { x: "time", y: "power", series: [{ label: "power", kind: "line", colour: "accent" }] });
    this.loss = null;
    this.phases = "";
  }

  reset() {
    for (const id of ["training-card", "supply-card", "accuracy", "gap", "loss"]) $(id).hidden = true;
  }

  steps({ losses, accuracy, gap }) {
    const names = Object.keys(losses);
    $("training-card").hidden = !names.length && !accuracy && !gap;
    this.overPasses(this.accuracy, "accuracy", accuracy, (value) => percent(value));
    this.overPasses(this.gap, "gap", gap, (value) => number(value));
    $("loss").hidden = !names.length;
    if (names.length) this.showLosses(names, losses);
  }

  overPasses(chart, name, columns, said) {
    $(name).hidden = !columns;
    if (!columns) return;
    const [passes, values] = [Array.from(unpack(columns.passes)), Array.from(unpack(columns[name]))];
    chart.draw([passes, values], { x: "", y: "" }, `Now ${said(values.at(-1))}, after ${count(passes.at(-1))} passes.`);
  }

  showLosses(names, losses) {
    if (this.phases !== names.join("\n")) {
      $("loss").replaceChildren();
      const series = names.map((label, index) => ({ label, kind: index < COLOURS.length ? "line" : "dash", colour: COLOURS[index % COLOURS.length] }));
      this.loss = new Chart($("loss"), "Loss", { x: "step of the phase", y: "loss", series });
      this.phases = names.join("\n");
    }
    const each = names.map((name) => [Array.from(unpack(losses[name].step)), Array.from(unpack(losses[name].loss))]);
    const said = names.map((name, index) => `${name} ${number(each[index][1].at(-1), 4)}`).join(", ");
    this.loss.draw(uPlot.join(each), { x: "", y: "" }, `Now: ${said}.`);
  }

  supply(columns) {
    const [time, power] = [Array.from(unpack(columns.time_s)), unpack(columns.power_w)];
    $("supply-card").hidden = time.length < 2;
    if (time.length < 2) return;
    const { factor, unit } = unitFor(largestOf(power), "W");
    this.power.draw([time, Array.from(power, (value) => value * factor)], { x: "s", y: unit }, `Now ${quantity(power.at(-1), "W")}.`);
  }
}
