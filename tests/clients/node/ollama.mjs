// Ollama's JS client. It sends fields that it does not know on, so tool_choice gets there if the server takes it.
import { Ollama } from "ollama";
import { ASKED, assert, check, end, FORCED, key, model, PLAIN, RESULT, SCHEMA, test, TOOL, url } from "./common.mjs";

const client = new Ollama({ host: url, headers: { Authorization: `Bearer ${key}` } });
const messages = [{ role: "user", content: ASKED }];
const options = { num_predict: PLAIN, temperature: 0, seed: 1 };
const forced = { num_predict: FORCED };

await test("models", async () => {
  const names = (await client.list()).models.map((each) => each.name);
  assert(names.includes(model) || names.includes(`${model}:latest`));
  assert((await client.show({ model })).capabilities.includes("completion"));
  assert(Array.isArray((await client.ps()).models));
  assert.match((await client.version()).version, /^\d+\.\d+/);
});
await test("chat", async () => {
  const whole = await client.chat({ model, messages, options });
  assert(whole.done && ["stop", "length"].includes(whole.done_reason) && whole.eval_count > 0 && whole.prompt_eval_count > 0);
  let [text, last] = ["", null];
  for await (const part of await client.chat({ model, messages, options, stream: true })) {
    text += part.message.content;
    last = part;
  }
  assert.equal(text, whole.message.content);
  assert.equal(last.eval_count, whole.eval_count);
});
await test("generate", async () => {
  const whole = await client.generate({ model, prompt: ASKED, options });
  let text = "";
  for await (const part of await client.generate({ model, prompt: ASKED, options, stream: true })) text += part.response;
  assert.equal(text, whole.response);
});
await test("tools", async () => {
  const first = await client.chat({ model, messages, tools: [TOOL], tool_choice: "required", options: forced });
  const call = first.message.tool_calls?.[0] ?? { function: { name: "weather", arguments: { city: "Rome", celsius: true } } };
  check(call.function.arguments);
  const said = [...messages, { role: "assistant", content: "", tool_calls: [call] }, { role: "tool", tool_name: "weather", content: RESULT }];
  const second = await client.chat({ model, messages: said, tools: [TOOL], options });
  assert(second.done && typeof second.message.content === "string");
});
await test("structured", async () => {
  check((await client.chat({ model, messages, format: SCHEMA, options: forced })).message.content);
  check((await client.generate({ model, prompt: ASKED, format: SCHEMA, options: forced })).response);
});
end();
