// Calls of the API, and what all tabs share: how a form's work runs and how errors are told.

export const $ = (id) => document.getElementById(id);
const key = new URLSearchParams(location.hash.slice(1)).get("key");
const headers = key ? { Authorization: `Bearer ${key}` } : {};
export const number = new Intl.NumberFormat();

export async function api(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is latentwire serve still running?");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) throw new Error("This server has a key: open this page as /#key=YOUR-KEY.");
  throw new Error(body.error?.message ?? `The server answered ${answer.status}.`);
}

export const post = (path, body, signal) =>
  api(path, { method: "POST", body: JSON.stringify(body), signal, headers: { "Content-Type": "application/json" } });

export function tell(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

// Runs a form's work: one at a time, its button shows it, what goes wrong is told in words.
export function submits(form, work) {
  $(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = $(form).querySelector("[type=submit]");
    if (button.disabled) return;
    button.disabled = true;
    tell(null);
    try {
      await work();
    } catch (error) {
      tell(error);
    } finally {
      button.disabled = false;
    }
  });
}

export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.slice("data: ".length);
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
