// One answer on the page: its words, its numbers and its strip.
import { element } from "./dom.js";
import { Strip } from "./strip.js";

const TITLES = { ar: "ar: the target alone", hippo: "hippo: target and draft" };

export class Answer {
  constructor(method) {
    this.method = method;
    this.tokens = [];
    this.words = element("p", { class: "words", "aria-live": "polite", "aria-busy": "true" });
    this.numbers = element("dl", { class: "numbers" });
    this.strip = new Strip(method);
    this.root = element("article", { class: "answer", "data-method": method }, [
      element("h4", {}, [TITLES[method] ?? method]),
      this.words,
      this.numbers,
      this.strip.root,
    ]);
  }

  get text() {
    return this.words.textContent;
  }

  // A chunk of the stream, see docs/page.md.
  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices[0];
    if (choice) {
      this.add(choice.hippo?.tokens ?? []);
      if (choice.hippo?.videos) this.videos = choice.hippo.videos;
      this.strip.add(choice.hippo?.timeline ?? []);
    }
    this.count();
  }

  add(tokens) {
    this.tokens.push(...tokens);
    for (const token of tokens.filter(({ text }) => text)) {
      this.words.append(element("span", { class: token.drafted ? "token drafted" : "token" }, [token.text]));
    }
  }

  end() {
    this.words.setAttribute("aria-busy", "false");
    this.strip.describe();
  }

  // Tokens a second between the first token and the last: what decoding does once the video is read.
  get rate() {
    const [first, last] = [this.tokens[0], this.tokens.at(-1)];
    return this.tokens.length > 1 && last.seconds > first.seconds
      ? (this.tokens.length - 1) / (last.seconds - first.seconds)
      : 0;
  }

  count() {
    const [{ length }, first] = [this.tokens, this.tokens[0]];
    const drafted = this.tokens.filter((token) => token.drafted).length;
    const rows = { "tokens a second": this.rate ? this.rate.toFixed(this.rate < 10 ? 1 : 0) : "–" };
    rows["time to first token"] = first?.seconds ? `${first.seconds.toFixed(2)} s` : "–";
    rows["tokens"] = length;
    if (this.method !== "ar") rows["from the draft"] = length ? `${Math.round((100 * drafted) / length)} %` : "–";
    if (this.usage) {
      const { prompt_tokens: prompt, prompt_tokens_details: details, speculative } = this.usage;
      if (this.method !== "ar" && speculative) {
        rows["accepted of checked"] = `${speculative.accepted} / ${speculative.drafted}`;
        rows["video tokens kept"] = `${speculative.kept_video_tokens} / ${details?.video_tokens ?? "?"}`;
      }
      if (speculative?.draft_lost) rows["the draft, so the target went on alone"] = "lost";
      rows["prompt tokens cached"] = `${details?.cached_tokens ?? 0} / ${prompt}`;
    }
    this.numbers.replaceChildren(
      ...Object.entries(rows).map(([name, value]) =>
        element("div", {}, [element("dt", {}, [name]), element("dd", {}, [String(value)])]),
      ),
    );
  }
}
