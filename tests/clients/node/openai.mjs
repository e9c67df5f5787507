// openai's JS client: chat completions with its tool runner, and responses.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { ASKED, assert, check, end, FORCED, key, model, PLAIN, Report, RESULT, SCHEMA, test, TOOL, url } from "./common.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: ASKED }];
const ENDS = ["stop", "length"];

await test("models", async () => {
  const ids = [];
  for await (const each of client.models.list()) ids.push(each.id);
  assert(ids.includes(model));
});
await test("chat", async () => {
  const found = await client.chat.completions.create({ model, messages, max_completion_tokens: PLAIN });
  assert(ENDS.includes(found.choices[0].finish_reason) && found.usage.completion_tokens > 0);
});
await test("chat streamed", async () => {
  const run = client.chat.completions.stream({ model, messages, max_completion_tokens: PLAIN, stream_options: { include_usage: true } });
  let text = "";
  run.on("content", (delta) => (text += delta));
  const found = await run.finalChatCompletion();
  assert.equal(text, found.choices[0].message.content ?? "");
  assert(ENDS.includes(found.choices[0].finish_reason) && found.usage.completion_tokens > 0);
});
for (const tool_choice of ["required", { type: "function", function: { name: "weather" } }])
  await test(`chat tools ${JSON.stringify(tool_choice)}`, async () => {
    const asked = { model, tools: [TOOL], parallel_tool_calls: false, max_completion_tokens: FORCED };
    const first = await client.chat.completions.stream({ ...asked, messages, tool_choice }).finalChatCompletion();
    const [call] = first.choices[0].message.tool_calls;
    assert.equal(first.choices[0].finish_reason, "tool_calls");
    check(call.function.arguments);
    const said = [...messages, first.choices[0].message, { role: "tool", tool_call_id: call.id, content: RESULT }];
    const second = await client.chat.completions.create({ ...asked, messages: said, tool_choice: "none" });
    assert(ENDS.includes(second.choices[0].finish_reason));
  });
await test("chat tool runner", async () => {
  const run = client.chat.completions.runTools(
    {
      model, messages, tool_choice: { type: "function", function: { name: "weather" } }, max_completion_tokens: FORCED,
      tools: [{ type: "function", function: { ...TOOL.function, parse: check, function: () => RESULT } }],
    },
    { maxChatCompletions: 2 },
  );
  await run.done();
  assert(run.messages.some((each) => each.role === "tool" && each.content === RESULT));
});
await test("chat structured", async () => {
  const found = await client.chat.completions.parse({
    model, messages, max_completion_tokens: FORCED, response_format: zodResponseFormat(Report, "report"),
  });
  check(found.choices[0].message.parsed);
});
await test("responses", async () => {
  const found = await client.responses.create({ model, input: ASKED, max_output_tokens: PLAIN });
  assert(["completed", "incomplete"].includes(found.status) && typeof found.output_text === "string");
  assert(found.usage.output_tokens > 0);
  const run = client.responses.stream({ model, input: ASKED, max_output_tokens: PLAIN });
  let text = "";
  run.on("response.output_text.delta", (event) => (text += event.delta));
  const final = await run.finalResponse();
  assert.equal(text, final.output_text);
});
await test("responses tools", async () => {
  const asked = { model, tools: [{ type: "function", strict: true, ...TOOL.function }], parallel_tool_calls: false, max_output_tokens: FORCED };
  const first = await client.responses.stream({ ...asked, input: messages, tool_choice: "required" }).finalResponse();
  const call = first.output.find((each) => each.type === "function_call");
  check(call.arguments);
  const said = [...messages, ...first.output, { type: "function_call_output", call_id: call.call_id, output: RESULT }];
  const second = await client.responses.create({ ...asked, input: said, tool_choice: "none" });
  assert.equal(second.output.at(-1).type, "message");
});
await test("responses structured", async () => {
  const found = await client.responses.parse({ model, input: ASKED, max_output_tokens: FORCED, text: { format: zodTextFormat(Report, "report") } });
  check(found.output_parsed);
});
end();
