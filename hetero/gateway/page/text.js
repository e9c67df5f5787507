// Markdown as the page shows it; nothing of an answer can run or load anything.
import {marked} from "./marked.js";

// HTML in an answer is shown as it is written.
const written = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
marked.use({gfm: true, breaks: true, renderer: {html: token => written(token.text)}});
DOMPurify.addHook("afterSanitizeAttributes", node => {
  if (node.tagName === "A") { node.setAttribute("target", "_blank"); node.setAttribute("rel", "noreferrer noopener"); }
});

export function show(box, text) {
  box.innerHTML = DOMPurify.sanitize(marked.parse(text), {FORBID_TAGS: ["img", "style", "form", "input", "video", "audio"], FORBID_ATTR: ["style"]});
  for (const pre of box.querySelectorAll("pre")) {
    const frame = document.createElement("div");
    frame.className = "code";
    pre.replaceWith(frame);
    frame.append(pre, copier(() => pre.textContent));
  }
}

export function copier(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.onclick = async () => {
    button.textContent = await copied(text()) ? "Copied" : "Not copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  return button;
}

async function copied(text) {
  try { await navigator.clipboard.writeText(text); return true; } catch { /* no clipboard over plain HTTP */ }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
