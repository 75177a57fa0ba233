// The page: which video, which question, and what became of it.
import { Answer } from "./answer.js";
import { Refused, chat, modelName, useKey } from "./api.js";
import { byId, element } from "./dom.js";
import { Frames } from "./frames.js";

const frames = new Frames();
const state = { model: "", video: null, history: [], abort: null };

async function connect() {
  try {
    state.model = await modelName();
    byId("model").textContent = state.model;
    byId("key-form").hidden = true;
    fail("");
  } catch (error) {
    byId("key-form").hidden = error.status !== 401;
    if (error.status === 401) byId("model").textContent = "Not connected";
    fail(error.status === 401 ? "" : `The server cannot be reached. ${error.message}`);
  }
}

const fail = (message) => { byId("error").textContent = message; };
const say = (message) => { byId("status").textContent = message; };

async function choose(blob, name) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
  // A file whose type the browser does not know is still a video to the server, which looks at its content.
  const known = blob.type.startsWith("video/");
  state.video = known ? url : url.replace(/^data:[^,]*?(;base64)?,/, "data:video/mp4;base64,");
  const preview = byId("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(blob);
  preview.hidden = false;
  byId("chosen").textContent = name;
  begin();
}

function begin() {
  state.abort?.abort();
  state.history = [];
  byId("turns").replaceChildren();
  byId("frames").hidden = true;
  fail("");
  say("");
}

async function ask(question) {
  const compare = byId("compare").checked;
  const methods = compare ? ["ar", "hippo"] : [byId("method").value];
  const answers = methods.map((method) => new Answer(method));
  const content = [{ type: "text", text: question }];
  if (!state.history.length && state.video) content.unshift({ type: "video_url", video_url: { url: state.video } });
  const asked = [...state.history, { role: "user", content }];
  const turn = element("div", { class: "turn" }, [
    element("h3", {}, [question]),
    element("div", { class: "answers" }, answers.map((answer) => answer.root)),
  ]);
  byId("turns").append(turn);
  busy(true);
  const abort = (state.abort = new AbortController());
  try {
    for (const answer of answers) {
      say(`Answering by ${answer.method}`);
      await run(answer, asked, abort.signal);
      sameScale(answers.map(({ strip }) => strip));
    }
    if (abort.signal.aborted) return;
    if (compare) turn.append(verdict(...answers));
    state.history = [...asked, { role: "assistant", content: answers.at(-1).text }];
    say("Done");
    byId("question").value = "";
  } catch (error) {
    if (abort.signal.aborted) say("Stopped");
    else {
      say("");
      fail(error.message);
      if (error instanceof Refused && error.status === 401) byId("key-form").hidden = false;
    }
  } finally {
    answers.forEach((answer) => answer.end());
    if (state.abort === abort) busy(false);
  }
}

async function run(answer, messages, signal) {
  const body = { model: state.model, messages, method: answer.method, max_tokens: 256, temperature: 0 };
  if (answer.method !== "ar") body.keep_ratio = Number(byId("keep").value);
  for await (const chunk of chat(body, signal)) answer.take(chunk);
  answer.end();
  if (answer.videos?.length) await frames.load(answer.videos);
}

function sameScale(strips) {
  const most = (name) => Math.max(...strips.map((strip) => strip[name]));
  const least = { seconds: most("seconds"), forwards: most("forwards") };
  for (const strip of strips) {
    strip.least = least;
    strip.later();
  }
}

function verdict(alone, both) {
  const same = alone.text === both.text ? "The words are the same." : "The words differ.";
  const times = alone.rate && both.rate ? ` hippo made ${(both.rate / alone.rate).toFixed(1)} times the tokens a second.` : "";
  const note = " They ran one after the other on one machine; the second found the video cached, so compare tokens a second and not the time to the first token.";
  return element("p", { class: "verdict faint" }, [element("strong", {}, [same + times]), note]);
}

function busy(is) {
  const [send, stop] = [byId("send"), byId("stop")];
  const focused = document.activeElement;
  send.disabled = is;
  stop.disabled = !is;
  // A button that is disabled would lose the keyboard's place.
  if (is && focused === send) stop.focus();
  if (!is && focused === stop) byId("question").focus();
  if (!is) state.abort = null;
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  fail("");
  if (!state.video) fail("Choose a video first, or use the sample clip.");
  else if (!state.abort) ask(byId("question").value.trim());
});
byId("stop").addEventListener("click", () => state.abort?.abort());
byId("clear").addEventListener("click", begin);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key").value = "";
  connect();
});
byId("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) choose(target.files[0], target.files[0].name);
});
byId("sample").addEventListener("click", async () => {
  const response = await fetch("page/sample.mp4");
  if (response.ok) choose(await response.blob(), "The sample clip");
  else fail("The sample clip is not there.");
});

byId("preview").addEventListener("error", () => { byId("preview").hidden = true; }); // the browser cannot play it

// The whole page takes a video: one that misses the field must not replace the page.
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) addEventListener(kind, () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) choose(file, file.name);
});
byId("compare").addEventListener("change", ({ target }) => { byId("method").disabled = target.checked; });

connect();
