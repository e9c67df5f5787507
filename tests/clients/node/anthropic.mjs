// Anthropic's JS client: messages, its stream helper and its tool runner.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { ASKED, assert, check, end, FORCED, key, model, PLAIN, Report, RESULT, SCHEMA, test, url } from "./common.mjs";

const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: ASKED }];
const TOOL = { name: "weather", description: "The weather of a city", input_schema: SCHEMA };
const ENDS = ["end_turn", "max_tokens", "stop_sequence"];

await test("chat", async () => {
  const found = await client.messages.create({ model, messages, max_tokens: PLAIN, system: [{ type: "text", text: "Be brief." }] });
  assert.equal(found.content[0].type, "text");
  assert(ENDS.includes(found.stop_reason) && found.usage.input_tokens > 0 && found.usage.output_tokens > 0);
});
await test("chat streamed", async () => {
  const run = client.messages.stream({ model, messages, max_tokens: PLAIN });
  let text = "";
  run.on("text", (delta) => (text += delta));
  const found = await run.finalMessage();
  assert.equal(text, found.content[0].text);
  assert(ENDS.includes(found.stop_reason) && found.usage.output_tokens > 0);
});
for (const tool_choice of [{ type: "any" }, { type: "tool", name: "weather" }])
  await test(`tools ${tool_choice.type}`, async () => {
    const asked = { model, max_tokens: FORCED, tools: [TOOL] };
    const forced = { ...asked, messages, tool_choice: { ...tool_choice, disable_parallel_tool_use: true } };
    for (const first of [await client.messages.create(forced), await client.messages.stream(forced).finalMessage()]) {
      const call = first.content.find((each) => each.type === "tool_use");
      assert.equal(first.stop_reason, "tool_use");
      check(call.input);
      const said = [
        ...messages, { role: "assistant", content: first.content },
        { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: RESULT }] },
      ];
      const second = await client.messages.create({ ...asked, messages: said, tool_choice: { type: "none" }, max_tokens: PLAIN });
      assert(ENDS.includes(second.stop_reason));
    }
  });
// A runner uses message threads unless told not to; a server without them says so by error.details (see test_anthropic.py).
for (const thread of [undefined, false]) await test(`tool runner ${thread}`, async () => {
  let called = 0;
  const weather = betaZodTool({ name: "weather", description: "The weather", inputSchema: Report, run: (got) => (check(got), called++, RESULT) });
  // The forced choice holds for both requests, so both call; max_iterations ends it.
  await client.beta.messages.toolRunner({
    model, messages, max_tokens: FORCED, tools: [weather], max_iterations: 2, thread,
    tool_choice: { type: "any", disable_parallel_tool_use: true },
  });
  assert(called >= 1);
});
await test("structured", async () => {
  const found = await client.messages.parse({ model, messages, max_tokens: FORCED, output_config: { format: zodOutputFormat(Report) } });
  check(found.parsed_output);
});
await test("count_tokens", async () => {
  assert((await client.messages.countTokens({ model, messages, tools: [TOOL] })).input_tokens > 0);
});
end();
