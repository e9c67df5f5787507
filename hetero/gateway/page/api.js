// What the server is asked, and its stream of chunks.

export async function facts() {
  const props = await (await fetch("props")).json();
  return {name: props.model_alias, context: props.default_generation_settings.n_ctx,
          sampling: props.default_generation_settings.params, drafter: props.drafter};
}

// Ask, and hand each chunk on. Throws what the server says went wrong.
export async function ask(body, signal, onChunk) {
  const answer = await fetch("v1/chat/completions", {
    method: "POST", headers: {"Content-Type": "application/json"}, signal,
    body: JSON.stringify({...body, stream: true, stream_options: {include_windows: true}}),
  });
  if (!answer.ok) throw new Error(await said(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) throw new Error("the server broke off");
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      if (!event.startsWith("data: {")) continue;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      onChunk(chunk);
    }
  }
}

async function said(answer) {
  try { return (await answer.json()).error.message; } catch { return `the server answered ${answer.status}`; }
}
