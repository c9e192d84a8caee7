// Shows openapi.json, with nothing loaded from elsewhere.

const make = (tag, ...children) => {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
};

const api = await (await fetch("openapi.json")).json();
const find = (schema) => (schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema);

function type(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(type).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.prefixItems) return `[${schema.prefixItems.map(type).join(", ")}]`;
  return schema.type === "array" ? `list of ${type(schema.items)}` : schema.type || "anything";
}

function rows(schema) {
  const { properties = {}, required = [] } = find(schema);
  return Object.entries(properties).map(([name, value]) =>
    make("tr", make("td", make("code", name)), make("td", type(value), required.includes(name) ? ", required" : "")),
  );
}

document.getElementById("about").textContent = api.info.description;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const section = make("section", make("h2", make("b", method.toUpperCase()), ` ${path}`), make("p", route.description || ""));
    const body = route.requestBody?.content["application/json"]?.schema;
    const query = (route.parameters || []).map(({ name, schema, required }) =>
      make("tr", make("td", make("code", name)), make("td", type(schema), required ? ", required" : "")),
    );
    const table = [...query, ...(body ? rows(body) : [])];
    if (table.length) section.append(make("table", ...table));
    document.getElementById("routes").append(section);
  }
}
