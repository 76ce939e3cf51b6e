// The cells of an array as a picture, with a mark that follows the pointer or the arrow keys.

import { number, quantity, unitFor } from "/static/format.js";

// Blue, white, red (ColorBrewer's RdBu, reversed), as in the reports.
const STOPS = [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]];

function colourAt(part) {
  const place = Math.min(Math.max(part, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((value, index) => value + (place - low) * (STOPS[low + 1][index] - value));
}

export class Heatmap {
  /** @param {{canvas: HTMLCanvasElement, readout: HTMLElement, low: HTMLElement, high: HTMLElement}} parts */
  constructor(parts) {
    this.parts = parts;
    this.cells = null;
    this.mark = null;
    const { canvas } = parts;
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => document.activeElement === canvas || this.move(null));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.mark || this.move([0, 0]));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** @param {{lines: number, columns: number, perPixel: number, rows: number, allColumns: number, target: Float32Array, error: Float32Array}} cells */
  show(cells) {
    this.cells = cells;
    const sizes = Array.from(cells.error, Math.abs).sort((one, other) => one - other);
    // A few stuck cells should not make all others white.
    this.limit = sizes[Math.floor(0.98 * (sizes.length - 1))] || 1e-12;
    const { factor, unit } = unitFor(this.limit, "S");
    this.parts.low.textContent = `${number(-this.limit * factor, 2)} ${unit}`;
    this.parts.high.textContent = `+${number(this.limit * factor, 2)} ${unit}`;
    if (this.mark && (this.mark[0] >= cells.lines || this.mark[1] >= cells.columns)) this.mark = null;
    this.picture = new ImageData(cells.columns, cells.lines);
    cells.error.forEach((error, index) => {
      const [red, green, blue] = colourAt(0.5 + (0.5 * error) / this.limit);
      this.picture.data.set([red, green, blue, 255], 4 * index);
    });
    this.draw();
    this.read();
  }

  draw() {
    const { canvas } = this.parts;
    if (!this.cells || !canvas.clientWidth) return;
    canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
    canvas.height = Math.round(canvas.clientHeight * devicePixelRatio);
    const small = new OffscreenCanvas(this.cells.columns, this.cells.lines);
    small.getContext("2d").putImageData(this.picture, 0, 0);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    if (!this.mark) return;
    const [width, height] = [canvas.width / this.cells.columns, canvas.height / this.cells.lines];
    const box = [this.mark[1] * width, this.mark[0] * height, width, height];
    for (const [style, line] of [["#fff", 4], ["#000", 2]]) {
      context.strokeStyle = style;
      context.lineWidth = line * devicePixelRatio;
      context.strokeRect(...box);
    }
  }

  point(event) {
    if (!this.cells) return;
    const box = this.parts.canvas.getBoundingClientRect();
    const line = Math.floor(((event.clientY - box.top) / box.height) * this.cells.lines);
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.cells.columns);
    if (line >= 0 && column >= 0 && line < this.cells.lines && column < this.cells.columns) this.move([line, column]);
  }

  key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = steps[event.key];
    if (!step || !this.cells) return;
    event.preventDefault();
    const [line, column] = this.mark || [0, 0];
    this.move([
      Math.min(Math.max(line + step[0], 0), this.cells.lines - 1),
      Math.min(Math.max(column + step[1], 0), this.cells.columns - 1),
    ]);
  }

  move(mark) {
    this.mark = mark;
    this.draw();
    this.read();
  }

  read() {
    if (!this.cells || !this.mark) {
      this.parts.readout.textContent = "Point at a cell, or use the arrow keys.";
      return;
    }
    const [line, column] = this.mark;
    const { columns, perPixel, rows, allColumns, target, error } = this.cells;
    const index = line * columns + column;
    const span = (from, most) => (perPixel === 1 ? String(from) : `${from * perPixel}–${Math.min((from + 1) * perPixel, most) - 1}`);
    const what = perPixel === 1 ? "" : " (mean)";
    this.parts.readout.textContent =
      `row ${span(line, rows)}, column ${span(column, allColumns)}${what}: target ${quantity(target[index], "S")}, ` +
      `found ${quantity(target[index] + error[index], "S")}, difference ${quantity(error[index], "S", 2)}`;
  }
}
