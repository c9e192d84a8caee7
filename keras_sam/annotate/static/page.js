// The page of the server: the editor, which asks by HTTP.

import { openEditor } from "./editor.js";

const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";

class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function call(method, path, body, read = (answer) => answer.json()) {
  const headers = { authorization: `Bearer ${token}` };
  if (body) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new ServerError("The server does not answer. Is it still running?", 0);
  }
  if (answer.ok) return read(answer);
  const { error } = await answer.json().catch(() => ({}));
  throw new ServerError(error || `The server answered ${answer.status}.`, answer.status);
}

const query = (values) => new URLSearchParams(values).toString();
const blob = (answer) => answer.blob();
const server = {
  session: () => call("GET", "api/session"),
  picture: (values) => call("GET", `api/picture?${query(values)}`, null, blob),
  embed: (values) => call("POST", "api/embed", values),
  predict: (values) => call("POST", "api/predict", values),
  everything: (values) => call("POST", "api/everything", values),
  objects: (values) => call("GET", `api/objects?${query(values)}`),
  keep: (values) => call("POST", "api/objects", values),
  change: ({ number, ...values }) => call("PUT", `api/objects/${number}`, values),
  remove: ({ number, ...values }) => call("DELETE", `api/objects/${number}?${query(values)}`),
  restore: ({ number, ...values }) => call("POST", `api/objects/${number}/restore?${query(values)}`),
  label: (values) => call("POST", "api/labels", values),
  save: (values) => call("POST", "api/save", values),
  export: (values) => call("GET", `api/export?${query(values)}`, null, blob),
};

const editor = openEditor(document, server, {
  first: sessionStorage.getItem("photo"),
  turned(name) {
    sessionStorage.setItem("photo", name);
    document.title = `${name} – annotate`;
  },
});

window.addEventListener("beforeunload", (event) => {
  if (editor.holdsWork) event.preventDefault();
});
