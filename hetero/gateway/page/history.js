// Chats, kept in this browser.
const KEY = "hetero.chats", MOST = 100;

let chats = read();

// Another window of this browser may have changed them meanwhile.
function read() { try { return JSON.parse(localStorage.getItem(KEY)) || []; } catch { return []; } }

export const all = () => chats;

export function begun() {
  const chat = {id: crypto.getRandomValues(new Uint32Array(2)).join("-"), title: "", turns: [], system: ""};
  return chat;
}

// Keep it, the latest first. Where the browser's room is used up, the oldest go.
export function keep(chat) {
  chats = [chat, ...read().filter(other => other.id !== chat.id)].slice(0, MOST);
  while (chats.length) {
    try { localStorage.setItem(KEY, JSON.stringify(chats)); return; } catch { chats.pop(); }
  }
}

export function forget(chat) {
  chats = read().filter(other => other.id !== chat.id);
  try { localStorage.setItem(KEY, JSON.stringify(chats)); } catch { /* nothing is kept, then */ }
}
