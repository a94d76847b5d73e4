// The search tab: each step's answer with the tokens that it flipped, and its reward, as it is made.

import { $, events, number, post, submits } from "./common.js";

let halting = null; // AbortController of the search under way

export const offer = (models) => $("searched").replaceChildren(...models.map((id) => new Option(id)));

async function search() {
  const question = $("wanted").value.trim();
  if (!question) throw new Error("There is no question yet.");
  const body = { model: $("searched").value, question, steps: Number($("count").value) };
  if ($("gold").value.trim()) body.answer = $("gold").value.trim();
  $("steps").replaceChildren();
  $("best").textContent = "";
  $("searching").hidden = false;
  halting = new AbortController();
  $("halt").hidden = false;
  try {
    for await (const event of events(await post("v1/search", body, halting.signal))) {
      if (event.error) throw new Error(event.error.message);
      if ("best" in event) conclude(event);
      else $("steps").append(row(event));
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    $("best").textContent = "Stopped.";
  } finally {
    $("halt").hidden = true;
  }
}

function row({ step, reward, flipped, tokens, pieces }) {
  const item = document.createElement("li");
  const figures = document.createElement("p");
  const words = document.createElement("p");
  const rated = reward === null ? "no reward" : `reward ${reward.toFixed(3)}`;
  const moved = step === 0 ? "the model's own answer" : `${flipped} ${flipped === 1 ? "token" : "tokens"} flipped`;
  figures.className = "figures";
  figures.textContent = `step ${step}: ${rated}, ${moved}, ${number.format(tokens)} tokens run over`;
  words.className = "said";
  words.replaceChildren(
    ...pieces.map(([text, is_flipped]) => {
      const piece = document.createElement(is_flipped ? "mark" : "span");
      piece.textContent = text;
      return piece;
    }),
  );
  item.append(figures, words);
  item.dataset.step = step;
  return item;
}

function conclude({ best, reward, note, failure }) {
  const chosen = [...$("steps").children].find((item) => item.dataset.step === String(best));
  chosen?.classList.add("best");
  const words = [];
  if (failure) words.push(`The search ended: ${failure}.`);
  if (best !== null) words.push(`The best answer is that of step ${best}, with reward ${reward.toFixed(3)}.`);
  if (note) words.push(`${note}.`);
  $("best").textContent = words.join(" ");
}

submits("search-form", search);
$("halt").addEventListener("click", () => halting?.abort());
