// Vercel's AI SDK through its providers: OpenAI (responses, chat, completions), OpenAI-compatible, Anthropic, Ollama.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { createOllama } from "ollama-ai-provider-v2";
import { ASKED, assert, check, end, FORCED, key, model, PLAIN, Report, RESULT, test, url } from "./common.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: key });
const compatible = createOpenAICompatible({
  name: "hetero", baseURL: `${url}/v1`, apiKey: key, includeUsage: true, supportsStructuredOutputs: true,
});
const models = {
  responses: openai.responses(model),
  chat: openai.chat(model),
  compatible: compatible.chatModel(model),
  anthropic: createAnthropic({ baseURL: `${url}/v1`, apiKey: key })(model),
  ollama: createOllama({ baseURL: `${url}/api`, headers: { Authorization: `Bearer ${key}` } })(model),
};
const ENDS = ["stop", "length"];
const one = { openai: { parallelToolCalls: false, store: false }, anthropic: { disableParallelToolUse: true }, hetero: { parallel_tool_calls: false } };
// Ollama's provider sends maxOutputTokens as max_output_tokens, which Ollama does not know: the limit is num_predict.
const limited = (tokens) => ({ ...one, ollama: { options: { num_predict: tokens } } });

for (const [name, llm] of Object.entries(models)) {
  const base = { model: llm, maxRetries: 0, providerOptions: limited(PLAIN) };
  const tools = {
    weather: tool({ description: "The weather of a city", inputSchema: Report, execute: async (got) => (check(got), RESULT) }),
  };
  await test(`${name} chat`, async () => {
    const found = await generateText({ ...base, system: "Be brief.", prompt: ASKED, maxOutputTokens: PLAIN });
    assert.equal(typeof found.text, "string");
    assert(ENDS.includes(found.finishReason), found.finishReason);
    assert(found.usage.inputTokens > 0 && found.usage.outputTokens > 0, JSON.stringify(found.usage));
  });
  await test(`${name} chat streamed`, async () => {
    const run = streamText({ ...base, prompt: ASKED, maxOutputTokens: PLAIN, onError() {} });
    let [text, kinds] = ["", new Set()];
    for await (const part of run.fullStream) {
      if (part.type === "error") throw part.error;
      kinds.add(part.type);
      if (part.type === "text-delta") text += part.text;
    }
    assert.equal(text, await run.text);
    assert(kinds.has("finish"));
    assert(ENDS.includes(await run.finishReason), await run.finishReason);
    assert((await run.usage).outputTokens > 0, JSON.stringify(await run.usage));
  });
  for (const toolChoice of ["required", { type: "tool", toolName: "weather" }])
    await test(`${name} tools ${JSON.stringify(toolChoice)}`, async () => {
      if (name === "ollama") return "skip"; // Ollama's API has no tool_choice
      // The first step is forced, the second may only answer.
      const asked = {
        ...base, prompt: ASKED, tools, stopWhen: stepCountIs(2), maxOutputTokens: FORCED,
        prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : toolChoice }),
      };
      const run = streamText({ ...asked, onError() {} });
      for await (const part of run.fullStream) if (part.type === "error") throw part.error;
      for (const steps of [(await generateText(asked)).steps, await run.steps]) {
        assert.equal(steps.length, 2);
        assert.equal(steps[0].finishReason, "tool-calls");
        assert.equal(steps[0].toolCalls.length, 1);
        assert.equal(steps[0].toolCalls[0].toolName, "weather");
        check(steps[0].toolCalls[0].input);
        assert.equal(steps[0].toolResults[0].output, RESULT);
        assert(ENDS.includes(steps[1].finishReason), steps[1].finishReason);
      }
    });
  await test(`${name} structured`, async () => {
    const asked = { ...base, prompt: ASKED, output: Output.object({ schema: Report, name: "report" }), maxOutputTokens: FORCED, providerOptions: limited(FORCED) };
    check((await generateText(asked)).output);
    const run = streamText({ ...asked, onError() {} });
    let last;
    for await (const part of run.partialOutputStream) last = part;
    assert.deepEqual(check(last), await run.output);
  });
}
await test("completions", async () => {
  for (const llm of [openai.completion(model), compatible.completionModel(model)]) {
    const found = await generateText({ model: llm, prompt: "import", maxOutputTokens: 5, maxRetries: 0 });
    assert(typeof found.text === "string" && found.usage.outputTokens > 0);
  }
});
end();
