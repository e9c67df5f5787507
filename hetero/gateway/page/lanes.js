// What drafter and target did, window by window, over a scale of time.
const LABELS = 52, TOP = 6, AXIS = 18, SHOWN = 24;

export class Lanes {
  constructor(canvas, tell) {
    this.canvas = canvas;
    this.windows = [];
    this.boxes = [];
    this.tell = tell;
    this.due = false;
    canvas.onpointermove = event => this.point(event.offsetX);
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  clear() { this.windows = []; this.draw(); }

  add(window) {
    this.windows.push(window);
    if (!this.due) { this.due = true; requestAnimationFrame(() => { this.due = false; this.draw(); }); }
  }

  point(x) {
    const box = this.boxes.find(each => x >= each.from && x <= each.to);
    if (box) {
      const w = box.window;
      this.tell(`${w.drafted} draft tokens checked in ${w.forward_ms.toFixed(1)} ms, ${w.accepted} accepted; ${w.tokens} tokens came of it`
        + (w.waited_ms >= 0.1 ? `, after a wait of ${w.waited_ms.toFixed(1)} ms` : ""));
    }
  }

  draw() {
    const {canvas} = this, scale = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    canvas.width = width * scale; canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(canvas), colour = name => style.getPropertyValue(name);
    const lane = (height - TOP - AXIS - 6) / 2, below = TOP + lane + 6;
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = style.color;
    pen.textBaseline = "middle";
    pen.fillText("drafter", 4, TOP + lane / 2);
    pen.fillText("target", 4, below + lane / 2);
    const shown = this.windows.slice(-SHOWN);
    const total = shown.reduce((sum, w) => sum + w.waited_ms + w.forward_ms, 0);
    this.boxes = [];
    if (!shown.length) return;
    const unit = (width - LABELS - 4) / Math.max(total, 1e-9);
    let at = 0;
    for (const w of shown) {
      const span = w.waited_ms + w.forward_ms, left = LABELS + at * unit, begin = LABELS + (at + w.waited_ms) * unit;
      pen.fillStyle = colour("--draft");
      pen.fillRect(left, TOP, Math.max(0, Math.min(w.draft_ms, span) * unit - 1), lane);
      pen.fillStyle = colour("--check");
      pen.fillRect(begin, below, Math.max(1, w.forward_ms * unit - 1), lane);
      const step = Math.min(8, (lane - 2) / Math.max(1, w.drafted));
      for (let n = 0; n < w.drafted; n++) {
        pen.fillStyle = colour(n < w.accepted ? "--yes" : "--no");
        pen.fillRect(begin + 1, below + lane - (n + 1) * step, Math.max(2, w.forward_ms * unit - 3), Math.max(1, step - 1));
      }
      this.boxes.push({from: left, to: left + span * unit, window: w});
      at += span;
    }
    // The scale: some five marks of 1, 2 or 5 times a power of ten.
    const rough = total / 5, power = 10 ** Math.floor(Math.log10(rough));
    const mark = [1, 2, 5, 10].map(n => n * power).find(n => n >= rough) || rough;
    pen.fillStyle = style.color;
    for (let t = 0; t <= total; t += mark) {
      const x = LABELS + t * unit;
      pen.fillRect(x, height - AXIS, 1, 4);
      const text = t ? `${+t.toPrecision(3)} ms` : "0";
      if (x + 30 < width) pen.fillText(text, x + 2, height - AXIS + 10);
    }
  }
}
