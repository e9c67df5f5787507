// The document of the API as a page: routes, and the fields of their bodies.
const api = await (await fetch("openapi.json")).json();

function element(name, text = "", ...children) {
  const found = document.createElement(name);
  found.textContent = text;
  found.append(...children);
  return found;
}

const resolved = schema => schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const !== undefined) return String(schema.const);
  if (schema.anyOf) return schema.anyOf.map(kind).filter(text => text !== "null").join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items) || "anything"}`;
  const border = [["minimum", ">="], ["maximum", "<="], ["exclusiveMinimum", ">"]].filter(([key]) => key in schema);
  return [schema.type || "any", ...border.map(([key, sign]) => `${sign} ${schema[key]}`)].join(" ");
}

for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const box = element("details");
    const line = element("summary", "", element("b", method.toUpperCase()), element("code", path));
    box.append(line);
    const body = resolved(operation.requestBody?.content?.["application/json"]?.schema);
    if (body) {
      if (body.description) box.append(element("p", body.description.split("\n\n")[0]));
      const table = element("table");
      for (const [name, field] of Object.entries(body.properties || {})) {
        const must = (body.required || []).includes(name) ? " (must be there)" : "";
        table.append(element("tr", "", element("td", name), element("td", kind(field) + must), element("td", field.description || "")));
      }
      box.append(table);
    }
    document.getElementById("routes").append(box);
  }
}
document.body.dataset.ready = "yes";
