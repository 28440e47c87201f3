// What awaits a score, one image at a time, and the training in between. Everything shown comes from /state.
"use strict";

const by = (id) => document.getElementById(id);
const [lowest, highest] = [Number(document.body.dataset.lowest), Number(document.body.dataset.highest)];
let state = null; // as the server said last
let skipped = []; // images to come back to, behind all others
let given = []; // what this page has scored: {image, prompt, before}, the last one last
let times = []; // when answers were given, in ms
let busy = false; // an answer is on its way
let acts = 0; // answers and other acts so far
let pair = null; // the number of the pair on the page
let shown = null; // the image on the page: {image, prompt}

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const said = await response.text();
  if (!response.ok) throw new Error(said);
  return JSON.parse(said);
}

function complain(text) {
  by("problem").textContent = text;
  by("problem").hidden = !text;
}

// Only what is new is said again by a screen reader.
function put(id, text) {
  if (by(id).textContent !== text) by(id).textContent = text;
}

function pace() {
  const gaps = times.slice(1).map((time, i) => time - times[i]).filter((gap) => gap < 60000).slice(-20);
  if (gaps.length < 2) return "";
  const seconds = state.waiting.length * gaps.reduce((a, b) => a + b) / gaps.length / 1000;
  return seconds < 90 ? `, about ${Math.max(1, Math.round(seconds))} s at this pace` : `, about ${Math.round(seconds / 60)} min at this pace`;
}

function next() {
  const later = (one) => skipped.indexOf(one.image);
  return [...state.waiting].sort((a, b) => later(a) - later(b))[0] ?? null;
}

function show() {
  complain(state.problem);
  const running = state.training === "running";
  const scoring = state.waiting.length > 0 && !running;
  by("score").hidden = !scoring;
  const comparing = !scoring && !running && state.scored > 0 && state.pairs.length > 0; // not another preference's
  by("compare").hidden = !comparing;
  by("train").hidden = scoring || (comparing && state.training === "ended");
  tell(state.tally);
  by("undo").disabled = given.length === 0;
  const trained = state.epoch ? `epoch ${state.epoch} of ${state.epochs} is trained; ` : "";
  if (scoring) {
    const one = next();
    if (shown === null || shown.image !== one.image) {
      shown = one;
      by("image").src = `/images/${encodeURIComponent(one.image)}`;
      by("image").alt = one.prompt;
      by("prompt").textContent = one.prompt;
      slide((lowest + highest) / 2);
    }
    put("progress", `${trained}${state.waiting.length} left, ${state.scored} scored${pace()}`);
    return;
  }
  shown = null;
  const left = comparing ? `; ${state.pairs.length} pairs left` : "";
  put("progress", `${trained}${state.scored} images scored${left}`);
  if (comparing) confront(state.pairs[0]);
  by("draw").hidden = running || !state.trained || state.training !== "ended" || comparing || state.tally !== null;
  by("log").textContent = state.log.join("\n");
  const [doing, advice, button] = {
    running: ["Training", "New images appear here by themselves. You may close this page.", ""],
    ended: ["Done", "The adapter is in models/lora; `make repro` measures it.", ""],
    failed: ["The run ended", "Its last lines say why. What was answered is kept.", "Run again"],
    none: state.scored ? ["All is scored", "Go on with the training.", "Go on"]
      : ["Nothing is drawn yet", "The first images are drawn now, then you score them.", "Begin"],
  }[state.training];
  by("doing").textContent = doing;
  by("advice").textContent = advice;
  by("start").textContent = button;
  by("start").hidden = !button;
}

// The pair with this number, and its caption.
function confront(number) {
  if (pair === number) return;
  pair = number;
  for (const side of ["left", "right"]) by(side).querySelector("img").src = `/pairs/${number}/${side}`;
  call(`/pairs/${number}`).then((caption) => { by("caption").textContent = caption; }).catch(() => {});
}

function tell(tally) {
  by("tally").hidden = tally === null;
  if (tally === null) return;
  const percent = (share) => `${Math.round(100 * share)} %`;
  const share = tally.share === null ? "nothing was preferred"
    : `after is preferred in ${percent(tally.share)} of those decided, 95 % interval ${percent(tally.low)} to ${percent(tally.high)}`;
  put("tally", `Of held-out pairs you preferred ${tally.after} after fine-tuning, ${tally.before} before, `
    + `${tally.neither} neither: ${share}.`);
}

function prefer(side) {
  if (by("compare").hidden || pair === null) return;
  const number = pair;
  act(() => call("/pairs", { pair: number, preferred: side }));
}

// What a person does; while it is on its way, what else is pressed would be about an image that is answered already.
async function act(work) {
  if (busy) return;
  busy = true;
  acts += 1;
  try {
    state = await work();
    show();
  } catch (error) {
    complain(`This did not reach the disk: ${error.message}. Is \`make feedback\` still running?`);
  } finally {
    busy = false;
  }
}

const score = (value) => {
  const one = shown;
  if (one === null || by("score").hidden) return;
  act(async () => {
    const found = await call("/answers", { image: one.image, score: value });
    given.push(one);
    times.push(Date.now());
    return found;
  });
};

const undo = () => {
  if (given.length === 0 || by("score").hidden) return;
  act(async () => {
    const last = given.at(-1);
    const found = await call("/answers", { image: last.image, score: null });
    given.pop();
    skipped = skipped.filter((name) => name !== last.image);
    found.waiting = [last, ...found.waiting.filter((one) => one.image !== last.image)];
    return found;
  });
};

function skip() {
  if (shown === null) return;
  skipped = [...skipped.filter((name) => name !== shown.image), shown.image];
  show();
}

function toggle(button) {
  const pressed = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(pressed));
  return pressed;
}

function slide(value) {
  by("slider").value = value;
  by("value").textContent = Number(value).toFixed(1);
}

for (let value = lowest; value <= highest; value += 1) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = String(value);
  button.addEventListener("click", () => score(value));
  by("keys").append(button);
}
by("slider").addEventListener("input", (event) => slide(event.target.value));
by("give").addEventListener("click", () => score(Number(by("slider").value)));
by("skip").addEventListener("click", skip);
by("undo").addEventListener("click", undo);
by("zoom").addEventListener("click", () => toggle(by("zoom")));
by("ask").addEventListener("click", () => { by("prompt").hidden = !toggle(by("ask")); });
by("start").addEventListener("click", () => act(() => call("/training", {})));
by("draw").addEventListener("click", () => act(() => call("/drawing", {})));
for (const side of ["left", "right", "neither"]) by(side).addEventListener("click", () => prefer(side));
for (const image of document.images) {
  image.addEventListener("load", () => image.classList.toggle("smooth", image.naturalWidth >= 256));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (/^[0-9]$/.test(key)) score(key === "0" ? highest : Number(key));
  else if (key === "enter" && !(event.target instanceof HTMLButtonElement)) score(Number(by("slider").value));
  else if (key === "arrowleft" && !by("compare").hidden) prefer("left");
  else if (key === "arrowright" && !by("compare").hidden) prefer("right");
  else if (key === "arrowup" && !by("compare").hidden) prefer("neither");
  else if (key === "s") skip();
  else if (key === "u") undo();
  else if (key === "p") by("ask").click();
  else if (key === "z") by("zoom").click();
  else return;
  event.preventDefault();
});

// Asks what is new, in nobody's way: an answer that a person's act has overtaken is dropped.
async function watch() {
  if (!busy && (state === null || state.training === "running" || state.waiting.length === 0)) {
    const before = acts;
    try {
      const found = await call("/state");
      if (acts === before) {
        state = found;
        show();
      }
    } catch (error) {
      if (acts === before) complain(`Nothing is heard of \`make feedback\`: ${error.message}. Is it still running?`);
    }
  }
  setTimeout(watch, 1000);
}
watch();
