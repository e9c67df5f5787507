// The page: one chat at a time, its turns, and what is asked next.
import {ask, facts} from "./api.js";
import * as history from "./history.js";
import {Lanes} from "./lanes.js";
import {showPlan} from "./plan.js";
import {copier, show} from "./text.js";

const $ = id => document.getElementById(id);
const SAMPLED = ["temperature", "top_p", "top_k", "min_p"];
const lanes = new Lanes($("lanes"), text => { $("at").textContent = text; });
let chat = history.begun();
let running = null;  // AbortController of the request under way
let last = null;     // the last question and what came of it, to be asked again without speculation
let kept = 0;        // turns that are shown, and gone on with: all, but while a question is edited
let follows = true;  // the end of the chat is in view, and stays there

const server = await facts().catch(() => null);
if (server) {
  $("model").textContent = `${server.name}, ${server.context.toLocaleString("en")} tokens of context`;
  for (const name of SAMPLED) $(name).placeholder = +server.sampling[name].toPrecision(6);
  for (const part of document.querySelectorAll(".drafting")) part.hidden = !server.drafter;
} else {
  $("model").textContent = "the server does not answer";
}
const phone = matchMedia("(max-width: 60rem)");
$("lanes-box").open = !phone.matches;
$("plan-box").ontoggle = () => { if ($("plan-box").open) showPlan($("plan-box")).catch(() => {}); };
$("hello").textContent = "Enter sends, Shift+Enter begins a line, Esc stops, \u2191 in an empty box edits the last question.";

// Scrolling: the end is kept in view while somebody looks at it, and never otherwise.

const atEnd = () => $("said").scrollHeight - $("said").scrollTop - $("said").clientHeight < 40;
$("said").addEventListener("scroll", () => { follows = atEnd(); $("down").hidden = follows; });
$("down").onclick = () => { $("said").scrollTop = $("said").scrollHeight; };
function follow() { if (follows) $("said").scrollTop = $("said").scrollHeight; else $("down").hidden = false; }

// Turns

function turnBox(turn) {
  const box = document.createElement("article");
  box.className = `turn ${turn.role}`;
  box.setAttribute("aria-label", turn.role === "user" ? "You" : "Answer");
  const thought = document.createElement("details");
  thought.innerHTML = "<summary class=soft>Thinking</summary><div class=thought></div>";
  const body = document.createElement("div");
  body.className = "body";
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(copier(() => turn.content));
  if (turn.role === "user") tools.append(tool("Edit", () => edit(turn)));
  else tools.append(tool("Again", () => again(turn)));
  box.append(...(turn.role === "assistant" ? [thought] : []), body, tools);
  const fill = () => {
    if (turn.role === "user") body.textContent = turn.content; else show(body, turn.content);
    thought.hidden = !turn.reasoning;
    thought.lastChild.textContent = turn.reasoning || "";
  };
  fill();
  $("said").append(box);
  return {box, fill};
}

function tool(name, work) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = name;
  button.onclick = work;
  return button;
}

function showChat(upto = chat.turns.length) {
  kept = upto;
  $("unsaid").hidden = upto === chat.turns.length;
  $("hello").hidden = upto > 0;
  for (const old of document.querySelectorAll(".turn")) old.remove();
  chat.turns.slice(0, upto).forEach(turnBox);
  $("system").value = chat.system;
  $("failed").hidden = true;
  last = null;
  $("compare").disabled = true;
  lanes.clear();
  follows = true;
  follow();
  showChats();
}

function showChats() {
  $("chats").replaceChildren(...history.all().map(each => {
    const line = document.createElement("li");
    line.className = each.id === chat.id ? "now" : "";
    const open = tool(each.title || "(empty)", () => { if (!running) { chat = each; showChat(); shut(); } });
    open.className = "open";
    const gone = tool("\u00d7", () => { history.forget(each); if (each.id === chat.id) fresh(); else showChats(); });
    gone.className = "gone";
    gone.setAttribute("aria-label", `Forget ${each.title}`);
    line.append(open, gone);
    return line;
  }));
}

function fresh() {
  if (running) return;
  const system = chat.system;
  chat = history.begun();
  chat.system = system;
  showChat();
  shut();
  $("text").focus();
}

// What stands from a question on is replaced once another answer to it is there, and not before.
function edit(turn) {
  if (running) return;
  showChat(chat.turns.indexOf(turn));
  $("text").value = turn.content;
  $("text").focus();
}

function again(turn) {
  if (running) return;
  const at = chat.turns.indexOf(turn) - 1, question = chat.turns[at].content;
  showChat(at);
  send(question).then(() => busy(false));
}

// Asking

function settings() {
  const found = {};
  for (const name of [...SAMPLED, "seed"]) {
    const value = parseFloat($(name).value);
    if (!Number.isNaN(value)) found[name] = value;
  }
  const most = parseInt($("tokens").value);
  if (most > 0) found.max_completion_tokens = most;
  found.seed ??= Math.floor(Math.random() * 2 ** 31);
  found.speculation = $("speculation").checked;
  return found;
}

async function send(text) {
  chat.system = $("system").value;
  const asked = {role: "user", content: text};
  const before = chat.turns.slice(0, kept);
  const messages = [...before, asked].map(({role, content}) => ({role, content}));
  if (chat.system.trim()) messages.unshift({role: "system", content: chat.system});
  const question = {messages, ...settings()};
  const turn = {role: "assistant", content: "", reasoning: ""};
  $("failed").hidden = $("hello").hidden = true;
  const boxes = [turnBox(asked), turnBox(turn)];
  follows = true;
  follow();
  try {
    last = {question, turn, ...await answer(question, turn, boxes[1])};
    $("compared").textContent = "The last question is asked again, with the same seed and without speculation, while this page shows it in the same way.";
  } catch (error) {
    if (error.name !== "AbortError" || !turn.content) {
      // The turn did not take place: its text goes back to where it was typed.
      for (const {box} of boxes) box.remove();
      if (!$("text").value) $("text").value = text;
      if (error.name !== "AbortError") { $("failed").textContent = error.message; $("failed").hidden = false; }
      $("hello").hidden = kept > 0;
      return;
    }
  }
  chat.turns = [...before, asked, turn];
  kept = chat.turns.length;
  $("unsaid").hidden = true;
  chat.title ||= text.trim().slice(0, 60);
  history.keep(chat);
  showChats();
}

// Stream an answer into a turn; what it cost at the end, and at any moment before.
async function answer(question, turn, box) {
  running = new AbortController();
  busy(true);
  lanes.clear();
  const counts = {tokens: 0, forwards: 0, accepted: 0, drafted: 0};
  let first = 0, timings = null, due = false;
  try {
    await ask(question, running.signal, chunk => {
      const delta = chunk.choices[0]?.delta || {}, w = chunk.window;
      turn.content += delta.content || "";
      turn.reasoning += delta.reasoning_content || "";
      if (w) {
        lanes.add(w);
        first ||= performance.now();
        counts.tokens += w.tokens; counts.forwards += 1; counts.accepted += w.accepted; counts.drafted += w.drafted;
      }
      timings = chunk.timings || timings;
      if (due) return;
      due = true;
      setTimeout(() => { due = false; if (running) { box.fill(); figures(counts, first); follow(); } }, 80);
    });
  } finally {
    box.fill();
    follow();
    running = null;
    busy(false);
    $("live").textContent = "";
  }
  if (timings) settled(timings);
  return {timings};
}

function figures(counts, first) {
  const seconds = (performance.now() - first) / 1000;
  if (!first || seconds < 0.2) return;
  const speed = (counts.tokens / seconds).toFixed(1);
  $("live").textContent = `${speed} tokens/s`;
  $("with").textContent = speed;
  $("length").textContent = (counts.tokens / Math.max(1, counts.forwards)).toFixed(2);
  $("accepted").textContent = counts.accepted;
  $("rejected").textContent = counts.drafted - counts.accepted;
}

function settled(timings) {
  $("with").textContent = timings.predicted_per_second.toFixed(1);
  $("length").textContent = (timings.predicted_n / Math.max(1, timings.target_forwards_n)).toFixed(2);
  $("accepted").textContent = timings.draft_n_accepted;
  $("rejected").textContent = timings.draft_n - timings.draft_n_accepted;
  $("sources").textContent = Object.entries(timings.draft_sources || {})
    .map(([name, found]) => `${name} ${found.accepted} of ${found.n}`).join(", ") || "-";
  $("state").textContent = timings.speculation;
}

// Speculation's gain is told only of two runs that this page drew alike.
$("compare").onclick = async () => {
  const {question, turn, timings} = last;
  const plain = {role: "assistant", content: "", reasoning: ""};
  const box = turnBox(plain);
  box.box.querySelector(".tools").remove();
  follow();
  try {
    const found = await answer({...question, speculation: false}, plain, box);
    const gain = timings.predicted_per_second / found.timings.predicted_per_second;
    const same = plain.content === turn.content && plain.reasoning === turn.reasoning;
    $("compared").textContent = `With speculation ${timings.predicted_per_second.toFixed(1)} tokens a second, without `
      + `${found.timings.predicted_per_second.toFixed(1)}: ${gain.toFixed(2)} times as fast. `
      + (same ? "The text is the same, as it should be." : "The text differs: a near-tie fell otherwise (--exact forbids that).");
    settled(timings);
    $("with").textContent = timings.predicted_per_second.toFixed(1);
  } catch (error) {
    if (error.name !== "AbortError") $("compared").textContent = error.message;
  } finally {
    box.box.remove();
  }
};

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("compare").disabled = is || !last?.timings || !last.question.speculation;
  $("new").disabled = is;
}

function shut() { $("side").classList.remove("shown"); $("menu").setAttribute("aria-expanded", "false"); }

$("form").onsubmit = event => {
  event.preventDefault();
  const text = $("text").value;
  if (running || !text.trim()) return;
  $("text").value = "";
  send(text).then(() => busy(false));
};
$("stop").onclick = () => running?.abort();
$("new").onclick = fresh;
$("unsaid").onclick = () => { if (!running) { $("text").value = ""; showChat(); } };
$("menu").onclick = () => {
  const shown = $("side").classList.toggle("shown");
  $("menu").setAttribute("aria-expanded", shown);
};
$("system").onchange = () => { chat.system = $("system").value; if (chat.turns.length) history.keep(chat); };
$("text").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
  const question = chat.turns.slice(0, kept).findLast(turn => turn.role === "user");
  if (event.key === "ArrowUp" && !$("text").value && question) { event.preventDefault(); edit(question); }
};
document.addEventListener("keydown", event => {
  if (event.key === "Escape") { if (running) running.abort(); else if (!$("unsaid").hidden) $("unsaid").click(); else shut(); }
  if (event.key.toLowerCase() === "o" && event.ctrlKey && event.shiftKey) { event.preventDefault(); fresh(); }
});
showChats();
document.body.dataset.ready = "yes";
