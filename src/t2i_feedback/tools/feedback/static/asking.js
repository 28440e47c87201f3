// What the pages have in common: an element by its id, a question to the program, and what went wrong.

export const by = (id) => document.getElementById(id);

export async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const said = await response.text();
  if (!response.ok) throw new Error(detail(said));
  return JSON.parse(said);
}

// The sentence in what FastAPI answers when it refuses.
function detail(said) {
  try {
    const found = JSON.parse(said).detail;
    return typeof found === "string" ? found : found[0].msg;
  } catch {
    return said;
  }
}

export function complain(text) {
  by("problem").textContent = text;
  by("problem").hidden = !text;
}

// Only what is new is said again by a screen reader.
export function put(id, text) {
  if (by(id).textContent !== text) by(id).textContent = text;
}
