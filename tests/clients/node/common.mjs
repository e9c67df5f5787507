// HETERO_URL (no /v1), HETERO_KEY, HETERO_MODEL (default: the first served). Each script exits 1 at the first failure.
import assert from "node:assert/strict";
import { z } from "zod";

export const url = (process.env.HETERO_URL ?? "http://127.0.0.1:8000").replace(/\/$/, "");
export const key = process.env.HETERO_KEY ?? "none";
export const model =
  process.env.HETERO_MODEL ??
  (await (await fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${key}` } })).json()).data[0].id;
export const ASKED = "Is it warm in Rome?";
export const RESULT = '{"degrees": 21}';
export const [PLAIN, FORCED] = [24, 200];
export const CITIES = ["Rome", "Oslo"];
export const SCHEMA = {
  type: "object",
  properties: { city: { type: "string", enum: CITIES }, celsius: { type: "boolean" } },
  required: ["city", "celsius"],
  additionalProperties: false,
};
export const Report = z.strictObject({ city: z.enum(CITIES), celsius: z.boolean() });
export const TOOL = { type: "function", function: { name: "weather", description: "The weather of a city", parameters: SCHEMA } };
export const check = (found) => Report.parse(typeof found === "string" ? JSON.parse(found) : found);
export { assert, z };

let [passed, failed, skipped] = [0, 0, 0];
export async function test(name, body) {
  if (process.argv[2] && !name.includes(process.argv[2])) return;
  try {
    if ((await body()) === "skip") skipped++;
    else passed++;
  } catch (error) {
    failed++;
    console.log(`FAILED ${name}: ${error?.stack ?? error}\n${JSON.stringify(error?.responseBody ?? error?.cause ?? "")}`);
  }
}
export function end() {
  console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
  process.exit(failed ? 1 : 0);
}
