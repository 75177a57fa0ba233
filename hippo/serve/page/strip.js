// What target and draft did when: a lane each, time from when the engine took the request to the right.
import { colour, element, sized } from "./dom.js";

const [LABELS, LANE, GAP, AXIS, PER_FORWARD, WIDEST, WORD] = [52, 22, 6, 18, 2, 12000, 46]; // pixels
const STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300]; // seconds
const LANES = ["target", "draft"];

export class Strip {
  constructor(method) {
    this.method = method;
    this.spans = [];
    this.least = { seconds: 0.05, forwards: 0 }; // what the strip has room for, so that two of one turn are comparable
    this.canvas = element("canvas", { role: "img", "aria-label": "Nothing has happened yet" });
    this.root = element("div", { class: "strip", tabindex: "0", role: "group", "aria-label": "Timeline" }, [this.canvas]);
    this.waiting = false;
    new ResizeObserver(() => this.later()).observe(this.root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
  }

  get seconds() {
    return this.spans.reduce((most, span) => Math.max(most, span.ended), 0);
  }

  get forwards() {
    return this.count("verify");
  }

  count(what) {
    return this.spans.filter((span) => span.what === what).length;
  }

  add(spans) {
    this.spans.push(...spans);
    if (spans.length) this.later();
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  describe() {
    const draft = this.method === "ar" ? "no draft" : `the draft ${this.count("propose")} steps`;
    this.canvas.setAttribute(
      "aria-label",
      `Timeline of ${this.seconds.toFixed(2)} seconds: the target made ${this.forwards} forwards, ${draft}`,
    );
  }

  draw() {
    const most = Math.max(this.seconds, this.least.seconds);
    const forwards = Math.max(this.forwards, this.least.forwards);
    const width = Math.max(this.root.clientWidth, Math.min(WIDEST, LABELS + PER_FORWARD * forwards));
    const height = LANES.length * (LANE + GAP) + AXIS;
    this.canvas.style.width = `${width}px`;
    const draw = sized(this.canvas, width, height);
    const at = (seconds) => LABELS + (seconds / most) * (width - LABELS - 1);
    draw.font = "12px system-ui, sans-serif";
    this.axis(draw, at, most, height);
    const first = Math.min(most, ...this.spans.map((span) => span.began));
    if (this.spans.length && at(first) - LABELS > WORD) {
      draw.textAlign = "left";
      draw.fillText("reading", LABELS + 4, LANE / 2 + 4);
    }
    LANES.forEach((who, lane) => {
      const top = lane * (LANE + GAP);
      draw.fillStyle = colour("faint");
      draw.textAlign = "left";
      draw.fillText(who, 0, top + LANE / 2 + 4);
      for (const span of this.spans.filter((one) => one.who === who)) {
        const reads = span.what === "vision" || span.what === "prefill";
        draw.fillStyle = colour(reads ? "prefill" : who);
        const begin = at(Math.max(0, span.began));
        draw.fillRect(begin, top, Math.max(1, at(span.ended) - begin - 0.75), LANE);
        if (reads && at(span.ended) - begin > WORD) {
          draw.fillStyle = colour("ink");
          draw.fillText(span.what, begin + 4, top + LANE / 2 + 4);
        }
      }
    });
  }

  axis(draw, at, most, height) {
    const step = STEPS.find((one) => most / one <= Math.max(2, (at(most) - LABELS) / 70)) ?? STEPS.at(-1);
    draw.textAlign = "center";
    for (let tick = 0; tick <= most; tick += step) {
      const x = Math.round(at(tick)) + 0.5;
      draw.fillStyle = colour("line");
      draw.fillRect(x, 0, 1, height - AXIS + 2);
      draw.fillStyle = colour("faint");
      const text = `${Number(tick.toFixed(2))} s`;
      draw.fillText(text, Math.min(Math.max(x, LABELS), at(most) - 16), height - 4);
    }
  }
}
