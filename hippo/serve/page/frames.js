// The frames that the model was given, with the tokens that the draft saw lit and the others dimmed.
import { byId, colour, sized } from "./dom.js";

const GAP = 3; // pixels

export class Frames {
  constructor() {
    const ids = ["frames", "frame", "slider", "frame-text", "all-frames"];
    [this.root, this.canvas, this.slider, this.text, this.all] = ids.map(byId);
    this.frames = [];
    this.slider.addEventListener("input", () => this.show());
    this.all.addEventListener("click", (event) => this.choose(event));
    new ResizeObserver(() => this.show()).observe(this.root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show());
  }

  // videos: [{rows, columns, frames: [{time, image, kept}]}]; kept: cells of the frame, or null without a draft.
  async load(videos) {
    const frames = videos.flatMap(({ rows, columns, frames }) => frames.map((frame) => ({ ...frame, rows, columns })));
    const images = await Promise.all(frames.map(({ image }) => decoded(image)));
    this.frames = frames.map((frame, index) => ({ ...frame, picture: images[index] }));
    this.slider.max = Math.max(0, frames.length - 1);
    this.slider.value = Math.min(this.slider.value, this.slider.max);
    this.root.hidden = !frames.length;
    this.show();
  }

  get perLine() {
    return this.frames.length > 16 ? 8 : Math.min(4, this.frames.length);
  }

  show() {
    const frame = this.frames[this.slider.value];
    if (!frame || this.root.hidden) return;
    const width = Math.max(1, this.root.clientWidth);
    const height = (width * frame.picture.naturalHeight) / frame.picture.naturalWidth;
    paint(sized(this.canvas, width, height), frame, 0, 0, width, height);
    this.showAll(width);
    this.say(frame);
  }

  // All frames at a glance, the chosen one framed.
  showAll(width) {
    const across = this.perLine;
    const { naturalWidth, naturalHeight } = this.frames[0].picture;
    const w = (width - (across - 1) * GAP) / across;
    const h = (w * naturalHeight) / naturalWidth;
    const draw = sized(this.all, width, Math.ceil(this.frames.length / across) * (h + GAP));
    this.frames.forEach((frame, index) => {
      const [x, y] = [(index % across) * (w + GAP), Math.floor(index / across) * (h + GAP)];
      paint(draw, frame, x, y, w, h);
      if (index !== Number(this.slider.value)) return;
      draw.strokeStyle = colour("ink");
      draw.lineWidth = 3;
      draw.strokeRect(x + 1.5, y + 1.5, w - 3, h - 3);
    });
  }

  // With a pointer a small frame can be chosen, too; the slider does the same from the keyboard.
  choose({ offsetX, offsetY }) {
    const across = this.perLine;
    const lines = Math.ceil(this.frames.length / across);
    const [column, line] = [(offsetX / this.all.clientWidth) * across, (offsetY / this.all.clientHeight) * lines];
    this.slider.value = Math.floor(line) * across + Math.floor(column);
    this.show();
  }

  say({ time, kept, rows, columns }) {
    const place = `Frame ${Number(this.slider.value) + 1} of ${this.frames.length}, at ${time.toFixed(1)} s`;
    const all = this.frames.reduce((sum, frame) => sum + (frame.kept?.length ?? 0), 0);
    const words = kept
      ? `${place}: the draft sees ${kept.length} of its ${rows * columns} tokens (${all} in all frames).`
      : `${place}. Without a draft there is nothing to leave out.`;
    this.text.textContent = words;
    this.canvas.setAttribute("aria-label", words);
    this.slider.setAttribute("aria-valuetext", words);
  }
}

// One frame into a rectangle, as it is where tokens are kept and dark elsewhere.
function paint(draw, { picture, rows, columns, kept }, x, y, width, height) {
  draw.drawImage(picture, x, y, width, height);
  if (!kept) return;
  draw.fillStyle = "rgb(0 0 0 / 72%)";
  draw.fillRect(x, y, width, height);
  const [across, down] = [picture.naturalWidth / columns, picture.naturalHeight / rows];
  const [w, h] = [width / columns, height / rows];
  draw.strokeStyle = colour("draft");
  draw.lineWidth = Math.min(1.5, w / 12);
  for (const cell of kept) {
    const [row, column] = [Math.floor(cell / columns), cell % columns];
    const [left, top] = [x + column * w, y + row * h];
    draw.drawImage(picture, column * across, row * down, across, down, left, top, w, h);
    draw.strokeRect(left + draw.lineWidth / 2, top + draw.lineWidth / 2, w - draw.lineWidth, h - draw.lineWidth);
  }
}

async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
