// The page of `latentwire serve`: a document, questions about it from its latents and from its text
// side by side, and what a lens says of a sentence; search.js has the third tab. It knows the API and
// nothing else.

import { $, api, events, number, post, submits, tell } from "./common.js";
import { offer } from "./search.js";

let context = null; // what the questions are about: its entry, and its text where that is known
let stopping = null; // AbortController of the answers under way
let turns = []; // {question, answers: {title: text}}

// -- a document -----------------------------------------------------------------------------------

const MEDIA = { pdf: "application/pdf", html: "text/html", htm: "text/html", md: "text/markdown" };

async function compress() {
  const file = $("file").files[0];
  const stored = $("stored").value;
  const ratio = Number($("ratio").value);
  if (stored && !file) {
    context = await (await api(`v1/contexts/${stored}`)).json();
  } else if (file) {
    const type = MEDIA[file.name.split(".").pop().toLowerCase()] ?? "text/plain";
    const query = new URLSearchParams({ name: file.name, ratio, tokens: true });
    context = await (await api(`v1/contexts?${query}`, { method: "POST", body: file, headers: { "Content-Type": type } })).json();
  } else {
    const text = $("text").value;
    if (!text.trim()) throw new Error("There is no text yet: paste one, or upload a document.");
    context = await (await post("v1/contexts", { text, ratio, tokens: true })).json();
  }
  turns = [];
  $("answers").replaceChildren();
  show(context);
  await list();
  $("question").focus();
}

function show({ tokens, latents, bytes, ratio, milliseconds, kept, text }) {
  const size = bytes > 1e6 ? `${(bytes / 1e6).toFixed(2)} MB` : `${Math.round(bytes / 1e3)} kB`;
  const time = milliseconds === undefined ? "" : `, ${number.format(milliseconds)} ms`;
  $("cost").textContent = `${number.format(tokens)} tokens as ${number.format(latents)} latents at ${ratio}x; message of ${size}${time}`;
  $("kept").hidden = false;
  $("kept").querySelector("details").hidden = !kept;
  if (!kept) return;
  const most = Math.max(...kept.map(([, share]) => share), 1e-9);
  $("tokens").replaceChildren(
    ...kept.map(([piece, share]) => {
      const span = document.createElement("span");
      span.textContent = piece;
      span.title = `${(100 * share).toFixed(1)}% of all heads`;
      span.style.setProperty("--share", (share / most).toFixed(3));
      return span;
    }),
  );
}

async function list() {
  const { data } = await (await api("v1/contexts")).json();
  const chosen = $("stored").value;
  $("stored").replaceChildren(new Option("none", ""), ...data.map((entry) => new Option(entry.name.slice(0, 60), entry.id)));
  $("stored").value = data.some((entry) => entry.id === chosen) ? chosen : "";
}

// -- questions ------------------------------------------------------------------------------------

async function ask() {
  const question = $("question").value.trim();
  if (!question) throw new Error("There is no question yet.");
  if (!context) await compress();
  const columns = [["from latents", { context: context.id }]];
  if ($("beside").checked && context.text !== undefined) {
    columns.push(["from the full text", { text: context.text }]);
    columns.push([`from its first ${number.format(context.latents)} tokens`, { text: context.text, text_tokens: context.latents }]);
  }
  const turn = { question, answers: {} };
  const block = $("turn").content.cloneNode(true).firstElementChild;
  block.querySelector("h3").textContent = question;
  const cells = columns.map(([title]) => {
    const cell = $("column").content.cloneNode(true).firstElementChild;
    cell.querySelector("h4").textContent = title;
    return cell;
  });
  block.querySelector(".columns").replaceChildren(...cells);
  $("answers").prepend(block);
  $("question").value = "";
  stopping = new AbortController();
  $("stop").hidden = false;
  try {
    // One after another, so that each one's milliseconds are its own.
    for (const [i, [title, source]] of columns.entries()) {
      turn.answers[title] = await answer(cells[i], title, question, source, stopping.signal);
    }
  } finally {
    $("stop").hidden = true;
  }
  turns.push(turn);
}

async function answer(cell, title, question, source, signal) {
  const messages = [];
  for (const turn of $("turns").checked ? turns : []) {
    if (!turn.answers[title]) continue;
    messages.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.answers[title] });
  }
  messages.push({ role: "user", content: question });
  const soft = $("soft").checked;
  const body = { model: $("model").value, messages, ...source, soft_prompt: soft, stream: true, stream_options: { include_usage: true } };
  if (soft) Object.assign(body, { max_tokens: 64, stop: "\n" });
  const said = cell.querySelector(".said");
  const start = performance.now();
  let first = null;
  let usage = null;
  cell.classList.add("busy");
  try {
    for await (const chunk of events(await post("v1/chat/completions", body, signal))) {
      if (chunk.error) throw new Error(chunk.error.message);
      const piece = chunk.choices[0]?.delta.content;
      if (piece) {
        first ??= performance.now() - start;
        said.textContent += piece;
      }
      usage = chunk.usage ?? usage;
    }
    said.textContent ||= "(no words)";
    const slots = usage.latents || usage.prompt_tokens;
    const what = usage.latents ? "latents" : "tokens read";
    cell.querySelector(".figures").textContent =
      `${number.format(slots)} ${what}, ${(usage.cache_bytes / 1e6).toFixed(1)} MB of cache; ` +
      `${number.format(Math.round(first ?? 0))} ms to the first word, ${number.format(Math.round(performance.now() - start))} ms in all`;
  } catch (error) {
    if (error.name === "AbortError") {
      said.textContent += " (stopped)";
      return said.textContent;
    }
    said.textContent = error.message;
    said.classList.add("bad");
    return "";
  } finally {
    cell.classList.remove("busy");
  }
  return said.textContent;
}

// -- lens -----------------------------------------------------------------------------------------

let looked = null; // {text, token} of the explanation that is shown

async function read() {
  const text = $("sentence").value;
  const { tokens, first } = await (await post("v1/lens", { text })).json();
  $("explained").hidden = true;
  $("pieces").replaceChildren(
    ...tokens.map((piece, token) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = piece;
      button.disabled = token < first;
      button.addEventListener("click", () => explain(button, text, token).catch(tell));
      return button;
    }),
  );
}

async function explain(button, text, token) {
  tell(null);
  for (const other of $("pieces").children) other.setAttribute("aria-pressed", other === button);
  looked = { text, token };
  const row = await (await post("v1/lens", looked)).json();
  $("explained").hidden = false;
  $("at").textContent = button.textContent.trim();
  $("words").textContent = row.explanation;
  $("variance").textContent = `${(100 * row.explained).toFixed(0)}% of the activation's variance is in these words`;
  $("edited").value = row.explanation;
  ranked("before", row.before);
  ranked("after", row.after);
}

async function edit() {
  const row = await (await post("v1/lens", { ...looked, words: $("edited").value })).json();
  ranked("after", row.after);
}

function ranked(id, tokens) {
  $(id).replaceChildren(
    ...tokens.map(([token, p]) => {
      const item = document.createElement("li");
      item.textContent = `${token.trim() || JSON.stringify(token)} ${(100 * p).toFixed(1)}%`;
      return item;
    }),
  );
}

// -- the page -------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];

function open(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  tell(null);
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    next.focus();
    open(next);
  });
}

submits("context-form", compress);
submits("question-form", ask);
submits("lens-form", read);
submits("edit-form", edit);
$("stop").addEventListener("click", () => stopping?.abort());
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("context-form").requestSubmit();
});
// Whichever was touched last is the document.
$("text").addEventListener("input", () => {
  $("file").value = "";
  $("stored").value = "";
  context = null;
});
$("file").addEventListener("change", () => {
  $("stored").value = "";
  context = null;
});
$("stored").addEventListener("change", () => {
  $("file").value = "";
  context = null;
});
$("ratio").addEventListener("change", () => (context = null));

try {
  const { data } = await (await api("v1/models")).json();
  $("model").replaceChildren(...data.map(({ id }) => new Option(id)));
  offer(data.map(({ id }) => id));
  await list();
} catch (error) {
  tell(error);
}
