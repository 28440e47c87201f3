// A prompt is typed, and its rounds appear as they come. Everything shown comes from /try/state.
import { by, call, complain, put } from "/static/asking.js";

const figures = new Map(); // an image's address -> its place on the page, so that no image is loaded twice

function figure(round, number) {
  const item = figures.get(round.image) ?? made(round, number);
  figures.set(round.image, item);
  item.classList.toggle("kept", round.kept);
  item.querySelector("h3").textContent = `Round ${number}: ${round.outcome}${round.kept ? ", the best so far" : ""}`;
  return item;
}

function made(round, number) {
  const item = document.createElement("li");
  const image = document.createElement("img");
  image.src = round.image;
  image.alt = `Round ${number}: ${round.prompt}`;
  image.addEventListener("load", () => image.classList.toggle("smooth", image.naturalWidth >= 256));
  item.append(image, document.createElement("h3"));
  for (const text of [round.prompt, round.missed && `Missed: ${round.missed}`].filter(Boolean)) {
    const line = document.createElement("p");
    line.textContent = text;
    item.append(line);
  }
  return item;
}

function show(state) {
  complain(state.problem);
  const found = state.rounds.map((round, i) => figure(round, i + 1));
  if (found.length !== by("rounds").children.length || found[0] !== by("rounds").firstChild) {
    by("rounds").replaceChildren(...found);
  }
  by("go").disabled = state.running;
  by("trained").hidden = !state.trained;
  put("asked", state.prompt ? `“${state.prompt}”` : "");
  put("warning", state.warning);
  const done = state.folder ? `All of it is in ${state.folder}.` : "";
  const next = state.max_rounds ? `Round ${state.rounds.length + 1} of at most ${state.max_rounds} …` : "One moment …";
  put("progress", state.running ? next : done);
}

by("typed").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    show(await call("/try/prompts", { prompt: by("text").value, adapter: by("adapter").checked && !by("trained").hidden }));
  } catch (error) {
    complain(error.message);
  }
});

let refused = false; // the program is gone, and that was said
async function watch() {
  try {
    const state = await call("/try/state");
    if (state.running || state.rounds.length || refused || !by("asked").textContent) show(state);
    refused = false;
  } catch (error) {
    refused = true;
    complain(`Nothing is heard of \`make feedback\`: ${error.message}. Is it still running?`);
  }
  setTimeout(watch, 500);
}
watch();
