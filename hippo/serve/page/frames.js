// The frames that the model was given, with the tokens that the draft saw lit and the others dimmed.
import { byId, colour, sized } from "./dom.js";

export class Frames {
  constructor() {
    [this.root, this.canvas, this.slider, this.text] = ["frames", "frame", "slider", "frame-text"].map(byId);
    this.frames = [];
    this.slider.addEventListener("input", () => this.show());
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

  show() {
    const frame = this.frames[this.slider.value];
    if (!frame || this.root.hidden) return;
    const { naturalWidth: width, naturalHeight: height } = frame.picture;
    const shown = Math.max(1, this.root.clientWidth);
    const draw = sized(this.canvas, shown, (shown * height) / width);
    draw.drawImage(frame.picture, 0, 0, shown, (shown * height) / width);
    if (frame.kept) this.light(draw, frame, shown, (shown * height) / width);
    this.say(frame);
  }

  light(draw, { picture, rows, columns, kept }, width, height) {
    draw.fillStyle = "rgb(0 0 0 / 72%)";
    draw.fillRect(0, 0, width, height);
    const [across, down] = [picture.naturalWidth / columns, picture.naturalHeight / rows];
    const [w, h] = [width / columns, height / rows];
    draw.strokeStyle = colour("draft");
    draw.lineWidth = 1.5;
    for (const cell of kept) {
      const [row, column] = [Math.floor(cell / columns), cell % columns];
      draw.drawImage(picture, column * across, row * down, across, down, column * w, row * h, w, h);
      draw.strokeRect(column * w + 0.75, row * h + 0.75, w - 1.5, h - 1.5);
    }
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

async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
